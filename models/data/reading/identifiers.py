"""
What an id may be, and how values of any type become one: the single policy of users, items and domains.

An id is kept exactly as it was written, and is as strict as the strictest place that carries it (PostgreSQL's text, a
path of HTTP, a line of ``.inter``): 1 to 512 characters, none of them a control character, a line or paragraph
separator, or half a surrogate pair. Blanks of any kind, joiners and quotes are characters like others.

A number is its plain digits: 1.0 is ``1`` and 4.0e12 is ``4000000000000``, whatever the type of its column, so that an
integer column that met a null on its way through a data frame still names the same items.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputFormatError

Codes = npt.NDArray[np.int32]

MAX_CHARACTERS = 512
MISSING, NOT_UTF8, TOO_LONG, CONTROL, NOT_FINITE, NESTED = -1, -2, -3, -4, -5, -6
# What is said of a row by the code of its id; missing and garbled ones are told for all columns together.
REASON_OF_CODE = {
    TOO_LONG: f"is longer than {MAX_CHARACTERS} characters",
    CONTROL: "holds a control character",
    NOT_FINITE: "is not finite",
    NESTED: "is neither text nor a number",
}
# Control characters, line and paragraph separators, as all regular expressions write them; what is no Unicode besides.
_CONTROL_RANGES = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_CONTROL = re.compile(rf"[{_CONTROL_RANGES}\ud800-\udfff]")
_CONTROL_IN_POLARS = f"[{_CONTROL_RANGES}]"
_EXPONENT, _WHOLE_FLOAT = r"^\d(\.\d+)?[eE]\+\d+$", r"^\d+\.0$"
ID_PATTERN = f"^[^{_CONTROL_RANGES}]*$"
"""What every id matches that is neither too long nor empty, for schemas."""
# Below this, every whole number has a float of its own, of double and of single precision.
EXACT_FLOATS, EXACT_SINGLES = 2.0**53, 2.0**24
# Floats from here on have no digits after the point, and Python's integers print them.
_EXACT_IN_INT64 = 2.0**62


def id_problem(text: str | None) -> str | None:
    r"""
    Why *text* can be no id, in words that follow the name of its field; None if it can.

    >>> id_problem("B00 x"), id_problem(""), id_problem("a\tb")
    (None, 'is missing', 'holds a control character')
    """
    if not text:
        return "is missing"
    if len(text) > MAX_CHARACTERS:
        return REASON_OF_CODE[TOO_LONG]
    return REASON_OF_CODE[CONTROL] if _CONTROL.search(text) else None


def id_text(value: object) -> str | int | None:
    """
    A single value as an id's text; None for nothing, NOT_FINITE or NESTED for what can be no id.

    >>> id_text(1.0), id_text(4006381333901.0), id_text(Decimal("2.50")), id_text(7), id_text(0.5), id_text(None)
    ('1', '4006381333901', '2.5', '7', '0.5', None)
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return NOT_FINITE
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None if value.is_nan() else NOT_FINITE
        return f"{value:f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:f}"
    return NESTED


@dataclass(frozen=True)
class CodedIds:
    """
    A column of ids: ``codes_N`` are places in ``values``, or one of the negative codes above where there is no id.

    Values are distinct and in no order.
    """

    codes_N: Codes
    values: pa.StringArray

    def as_dictionary(self) -> pa.DictionaryArray:
        """The same as Arrow's dictionary type, null where there is no id."""
        return pa.DictionaryArray.from_arrays(pa.array(self.codes_N, mask=self.codes_N < 0), self.values)


def coded_ids(column: pa.Array) -> CodedIds:
    """
    The ids of a column of any single-valued type.

    Raises:
        InputFormatError: the column is nested.
    """
    if pa.types.is_dictionary(column.type) and not _is_text(column.type.value_type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.UuidType):
        stored = column.storage.dictionary_encode()  # each id is written out once
        encoded = pa.DictionaryArray.from_arrays(stored.indices, _uuid_texts(stored.dictionary))
    else:
        encoded = column if pa.types.is_dictionary(column.type) else _as_text(column).dictionary_encode()
    indices = pc.fill_null(encoded.indices.cast(pa.int32()), MISSING).to_numpy()
    return _judged(indices, encoded.dictionary)


def texts_of(values: list[object]) -> CodedIds:
    """The ids of a column of single values, of any types."""
    place: dict[str | int | None, int] = {None: MISSING, NOT_FINITE: NOT_FINITE, NESTED: NESTED}
    texts: list[str] = []
    codes = np.empty(len(values), dtype=np.int32)
    for row, value in enumerate(values):
        text = id_text(value)
        code = place.get(text)
        if code is None:
            code = place[text] = len(texts)
            texts.append(str(text))
        codes[row] = code
    return _judged(codes, pa.array(texts, pa.string()))


def may_be_rounded(column: pa.Array | list[object]) -> bool:
    """Whether a float of the column is beyond what floats tell apart, and so may stand for several whole numbers."""
    if isinstance(column, list):
        return any(isinstance(value, float) and EXACT_FLOATS <= abs(value) < math.inf for value in column)
    if not pa.types.is_floating(column.type):
        return False
    numbers = np.abs(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    exact = EXACT_FLOATS if pa.types.is_float64(column.type) else EXACT_SINGLES
    return bool(((numbers >= exact) & np.isfinite(numbers)).any())


def odd_numbers(ids: CodedIds) -> str | None:
    """
    What texts look like that were whole numbers before a table's program took them for floats; None if none do.

    >>> odd_numbers(coded_ids(pa.array(["7.0", "8.0"]))), odd_numbers(coded_ids(pa.array(["4.00638E+12", "x"])))
    ("'7.0': whole numbers that were written as floats", "'4.00638E+12': numbers without their last digits")
    """
    texts = pl.Series(ids.values, dtype=pl.String)
    short = texts.filter(texts.str.contains(_EXPONENT))
    if len(short):
        return f"{short[0]!r}: numbers without their last digits"
    if len(texts) and texts.str.contains(_WHOLE_FLOAT).all():
        return f"{texts[0]!r}: whole numbers that were written as floats"
    return None


def _judged(indices_N: Codes, values: pa.Array) -> CodedIds:
    """Codes of the allowed values; a value that is not allowed gives its rows the code of the reason."""
    texts = _decoded(values)
    verdict = np.zeros(len(texts), dtype=np.int32)
    if len(texts):
        garbled = texts.is_null().to_numpy()
        verdict[texts.str.contains(_CONTROL_IN_POLARS).fill_null(False).to_numpy()] = CONTROL
        if bool((texts.str.len_bytes() > MAX_CHARACTERS).any()):
            verdict[(texts.str.len_chars() > MAX_CHARACTERS).fill_null(False).to_numpy()] = TOO_LONG
        verdict[(texts == "").fill_null(False).to_numpy()] = MISSING
        verdict[garbled] = np.where(values.is_null().to_numpy(zero_copy_only=False)[garbled], MISSING, NOT_UTF8)
    code_of = np.where(verdict < 0, verdict, np.arange(len(texts), dtype=np.int32)).astype(np.int32)
    codes = np.where(indices_N < 0, indices_N, code_of[np.maximum(indices_N, 0)]) if len(texts) else indices_N
    # A row's value that is not allowed is never looked up; it keeps its place, so that nothing is renumbered.
    allowed = texts.to_arrow().cast(pa.string())
    return CodedIds(codes.astype(np.int32, copy=False), pc.fill_null(allowed, ""))


def _decoded(values: pa.Array) -> pl.Series:
    """Bytes as strings; null where they are not UTF-8."""
    if pa.types.is_string(values.type):
        values = values.view(pa.binary())
    try:
        decoded = values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        decoded = pa.array([_decode(value) for value in values.cast(pa.binary()).to_pylist()], pa.string())
    return pl.Series(decoded, dtype=pl.String)


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_text(kind: pa.DataType) -> bool:
    of_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*of_text, *of_bytes))


def _as_text(column: pa.Array) -> pa.Array:
    """A column of single values as bytes or text; numbers as plain digits, null where there is none."""
    kind = column.type
    if _is_text(kind):
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        return column.cast(pa.string()) if text else column.cast(pa.binary())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        return _digits(column.cast(pa.float64()))
    if pa.types.is_decimal(kind):
        return pa.array([id_text(value) for value in column.to_pylist()], pa.string())
    raise InputFormatError(f"holds {str(kind)[:200]}, neither text nor numbers")


def _uuid_texts(stored: pa.FixedSizeBinaryArray) -> pa.StringArray:
    return pa.array([None if value is None else str(UUID(bytes=value)) for value in stored.to_pylist()], pa.string())


def _digits(column: pa.DoubleArray) -> pa.StringArray:
    """Floats as ``id_text`` writes them; infinities as ``inf``, which is no number of anybody's and stays a text."""
    numbers = column.to_numpy(zero_copy_only=False)
    whole = np.isfinite(numbers) & (np.abs(numbers) < _EXACT_IN_INT64)
    whole[whole] = numbers[whole] == np.floor(numbers[whole])
    integers = np.where(whole, numbers, 0).astype(np.int64)
    texts = pa.array(integers, mask=~whole).cast(pa.string())
    if whole.all():
        return texts
    written = texts.to_pylist()
    for row in np.flatnonzero(~whole).tolist():
        text = id_text(float(numbers[row]))
        written[row] = "\x00" if isinstance(text, int) else text  # an infinity: a control character names it as bad
    return pa.array(written, pa.string())

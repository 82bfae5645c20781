"""
A job's input, row by row in bounded memory: sequences as they stand, interactions put together user by user.

Interactions are read by ``models.data.reading``, as `taesar prepare` reads them, whatever their format and layout; they
are sorted by user (in the order in which users first appear) and time. On top of those there are two formats of whole
sequences, which come one a row and stay in their order:
    ndjson   shaped like a sequence of POST /regenerate, which may have timestamps: a list beside its items
    parquet  user_id, item_ids: list, domains: list, and perhaps timestamps: list

A row that cannot be used becomes a ``BadRow``; a file that is not what it claims to be raises; so does one that grows
over a limit, compressed or not, while it is read: a small file cannot make much memory or work. Nothing here is safe
from a native library that ends its process: ``reading_process`` calls it in another one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from app.errors import RequestTooLargeError, UnsupportedFormatError
from app.jobs.input_warnings import InputWarnings
from app.jobs.user_sort import UserRows, UserSort
from app.serving.json_counting import COUNTED_BYTES, overfull_sequence
from app.serving.regeneration_bodies import MixedSequence
from models.data.reading.compression import expanded
from models.data.reading.identifiers import CONTROL, REASON_OF_CODE, id_problem
from models.data.reading.input_formats import INPUT_FORMATS, SUFFIXES, format_by_content, format_by_name
from models.data.reading.json_lines import JsonLines
from models.data.reading.layouts import Layout, find_column, shown
from models.data.reading.parquet import LIST_BATCH_ROWS, LIST_COLUMNS, Lists, ParquetInput, Values, parquet_errors
from models.data.reading.places import InputFile
from models.data.reading.raw_tables import BadLine, Budget
from models.data.reading.rows import FileFacts, RowReader
from models.data.reading.text_blocks import BYTE_ORDER_MARK, TextBlocks
from models.data.reading.times import iso_seconds, parsed_times
from models.errors import InputFormatError, InputTooLargeError

SourceFormat = str
"""A key of ``INPUT_FORMATS``."""

PARQUET_SOURCE = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("domains", pa.list_(pa.string())),
        ("num_rows", pa.int64()),
        ("times", pa.list_(pa.float64())),
        ("carried", pa.list_(pa.list_(pa.string()))),
    ]
)
SEQUENCE_KEY = "items"
TIMES_COLUMN = "timestamps"
ALL_LISTS = (*LIST_COLUMNS, TIMES_COLUMN)


class TimedSequence(MixedSequence):
    """A sequence of a job, which may say when its items were met: numbers, or dates of ISO 8601."""

    timestamps: list[int | float | str] | None = None


@dataclass(frozen=True)
class SourceLimits:
    """
    What one input may hold.

    Args:
        max_bytes: of the files as stored, together; TAESAR_MAX_INPUT_BYTES.
        max_expanded_bytes: after decompression and decoding; TAESAR_MAX_EXPANDED_BYTES.
        max_items: of one sequence; a longer one is a bad row.
    """

    max_bytes: int
    max_expanded_bytes: int
    max_items: int


@dataclass(frozen=True, slots=True)
class SequenceRow:
    """
    One mixed sequence.

    Args:
        line: 1-based line (Parquet: row) where it begins; a CSV header is line 1. Several files are counted on.
        num_rows: input rows that it was made of.
        times: of its items; empty where the input has none.
        carried: of each item, the values of the columns that the job carries along; empty where there are none.
    """

    line: int
    user_id: str
    item_ids: Sequence[str]
    domains: Sequence[str]
    num_rows: int = 1
    times: Sequence[float] = ()
    carried: Sequence[Sequence[str | None]] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """
    Input that cannot be used, and why.

    Args:
        line: as of a ``SequenceRow``.
        num_rows: input rows that it stands for: all those of a user who is left out whole.
    """

    line: int
    reason: str
    num_rows: int = 1


def format_of(name: str, stated: str | None) -> SourceFormat | None:
    """
    The format that was *stated*, else the one that the file's *name* ends with; None where it has no ending.

    Raises:
        UnsupportedFormatError: neither says one that is known.
    """
    try:
        return format_by_name(name, stated)
    except InputFormatError as error:
        raise UnsupportedFormatError(f"{name!r}: {error}; it may be one of {', '.join(SUFFIXES)}") from error


def check_format(file: BinaryIO, facts: FileFacts, layout: Layout, limits: SourceLimits) -> SourceFormat:
    """
    Look at the beginning of *file*, or of Parquet at the footer, and raise what ``read_rows`` would raise at once.

    Returns:
        The format.

    Raises:
        InputFormatError, RequestTooLargeError: see ``read_rows``.
    """
    with _limits_of_requests():
        source_format = _format(file, facts, layout)
        budget = Budget(limits.max_expanded_bytes)
        if _holds_sequences(file, facts, source_format, layout):
            if source_format == "parquet":
                with _named(facts), parquet_errors():
                    ParquetInput.open(file, _list_columns, budget, lists=ALL_LISTS)
        else:
            RowReader(file, facts, layout, budget).check()
        file.seek(0)
    return source_format


def read_rows(
    files: Sequence[InputFile],
    layout: Layout,
    limits: SourceLimits,
    *,
    scratch: Path | None = None,
    warnings: InputWarnings | None = None,
) -> Iterator[SequenceRow | BadRow]:
    """
    Every row of *files*, good or bad: sequences in their order; of interactions first the bad ones, then each user's.

    Args:
        scratch: a folder for what does not fit into memory; without one everything must.
        warnings: takes what is odd about interactions.

    Raises:
        InputFormatError: a file is not of its format, or damaged; some hold sequences and others interactions.
        RequestTooLargeError: they expand to more bytes than the limit.
    """
    with _limits_of_requests():
        budget = Budget(limits.max_expanded_bytes)
        users = UserSort(scratch, max_rows_of_user=limits.max_items)
        looks = warnings or InputWarnings()
        lines_before, kinds = 0, set()
        for file in files:
            with file.open() as content:
                source_format = _format(content, file.facts, layout)
                sequences = _holds_sequences(content, file.facts, source_format, layout)
                kinds.add(sequences)
                if len(kinds) > 1:
                    raise InputFormatError("some files hold sequences and others interactions: make them two jobs")
                if sequences:
                    rows = _sequences(content, file.facts, source_format, layout, limits, budget)
                else:
                    rows = _gather(RowReader(content, file.facts, layout, budget), users, looks, lines_before)
                last = 0
                for row in rows:
                    last = row.line
                    if isinstance(row, BadRow):
                        reason = f"{file.facts.name} line {row.line}: {row.reason}" if len(files) > 1 else row.reason
                        yield BadRow(row.line + lines_before, reason, row.num_rows)
                    else:
                        yield _moved(row, lines_before)
                lines_before += max(last, users.last_line - lines_before if not sequences else 0)
        for user in users.sorted_users():
            looks.add_user(user)
            yield _row_of(user, limits)


def _format(file: BinaryIO, facts: FileFacts, layout: Layout) -> SourceFormat:
    found = format_by_name(facts.name, layout.input_format) or format_by_content(file)
    assert found in INPUT_FORMATS
    return found


@contextlib.contextmanager
def _named(facts: FileFacts) -> Iterator[None]:
    """Errors of the format say which file it is, as those of ``RowReader`` do."""
    try:
        yield
    except InputFormatError as error:
        raise InputFormatError(f"{facts.name}: {error}" if facts.name else str(error)) from error


def _holds_sequences(file: BinaryIO, facts: FileFacts, source_format: SourceFormat, layout: Layout) -> bool:
    """Whether *file* has a row for each sequence rather than for each interaction; leaves it at its start."""
    with _named(facts):
        return _is_of_sequences(file, source_format, layout)


def _is_of_sequences(file: BinaryIO, source_format: SourceFormat, layout: Layout) -> bool:
    if source_format == "parquet":
        with parquet_errors():
            names: Sequence[str] = pq.ParquetFile(file).schema_arrow.names
        stated = find_column("item", names) is not None or layout.columns.item is not None
        found = not stated and any(name in names for name in LIST_COLUMNS)
    elif source_format == "ndjson":
        start = expanded(file, Budget(), layout.encoding).read(1)  # raises of what is no text
        file.seek(0)
        try:
            found = SEQUENCE_KEY in JsonLines().open(file, layout, Budget()).names
        except InputFormatError:
            if start == b"[":
                raise
            found = True  # no object in its first lines: each is told by itself
    else:
        found = False
    file.seek(0)
    return found


def _moved(row: SequenceRow, lines_before: int) -> SequenceRow:
    return replace(row, line=row.line + lines_before)


@contextlib.contextmanager
def _limits_of_requests() -> Iterator[None]:
    """A budget of the reader that is spent is a limit of the service."""
    try:
        yield
    except InputTooLargeError as error:
        raise RequestTooLargeError(error.what, error.limit, "TAESAR_MAX_EXPANDED_BYTES") from error


# Interactions


def _gather(reader: RowReader, users: UserSort, looks: InputWarnings, lines_before: int) -> Iterator[BadRow]:
    """Put the good rows of a file into *users*; yields the bad ones."""
    for batch in reader.batches():
        users.add(batch, lines_before)
        looks.add_rows(batch)
        for bad in batch.bad:
            yield BadRow(bad.line, bad.reason)
    looks.add_file(reader.name, has_times=reader.has_times, warnings=reader.warnings)


def _row_of(user: UserRows, limits: SourceLimits) -> SequenceRow | BadRow:
    if user.num_rows > limits.max_items:
        reason = f"user {user.user_id!r} has {user.num_rows} items; the limit is {limits.max_items}"
        return BadRow(user.first_line, reason, user.num_rows)
    return SequenceRow(
        user.first_line, user.user_id, user.item_ids, user.domains, user.num_rows, user.times or (), user.carried or ()
    )


# Sequences


def _sequences(
    file: BinaryIO, facts: FileFacts, source_format: SourceFormat, layout: Layout, limits: SourceLimits, budget: Budget
) -> Iterator[SequenceRow | BadRow]:
    with _named(facts):
        if source_format == "ndjson":
            yield from _json_sequences(expanded(file, budget, layout.encoding), limits)
        else:
            yield from _parquet_sequences(file, limits, budget)


def _json_sequences(stream: BinaryIO, limits: SourceLimits) -> Iterator[SequenceRow | BadRow]:
    for block in TextBlocks(stream):
        bad = list(block.broken)
        texts = block.content.split(b"\n")
        for line, text in zip(block.lines_N.tolist(), texts, strict=False):
            while bad and bad[0].line < line:
                yield _bad(bad.pop(0))
            if text.strip():
                yield _parse_sequence(line, text.removeprefix(BYTE_ORDER_MARK) if line == 1 else text, limits)
        yield from map(_bad, bad)


def _bad(line: BadLine) -> BadRow:
    return BadRow(line.line, line.reason)


def _parse_sequence(line: int, content: bytes, limits: SourceLimits) -> SequenceRow | BadRow:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(line, f"not UTF-8: byte {error.start} of the line")
    # Validation builds an object for every part, and the process that serves may be this one
    if len(content) > COUNTED_BYTES and (problem := overfull_sequence(content, max_items=limits.max_items)):
        return BadRow(line, problem)
    try:
        sequence = TimedSequence.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "string_pattern_mismatch":
            return BadRow(line, f"{place} {REASON_OF_CODE[CONTROL]}")
        return BadRow(line, f"{place}: {first['msg']}" if place else first["msg"])
    item_ids, domains = [item.item_id for item in sequence.items], [item.domain for item in sequence.items]
    times = [_time_of(value) for value in sequence.timestamps or ()]
    return _checked(SequenceRow(line, sequence.user_id or "", item_ids, domains, times=times or ()), limits)


def _time_of(value: float | str) -> float:
    """A number as it stands, a date in seconds; NaN for what is neither."""
    try:
        return iso_seconds(value) if isinstance(value, str) else float(value)
    except OverflowError:
        return math.nan


def _checked(row: SequenceRow, limits: SourceLimits) -> SequenceRow | BadRow:
    problem = id_problem(row.user_id)
    if problem is not None:
        return BadRow(row.line, f"user_id {problem}", row.num_rows)
    if len(row.item_ids) > limits.max_items:
        return BadRow(row.line, f"{len(row.item_ids)} items; the limit is {limits.max_items}", row.num_rows)
    for name, values in (("item_ids", row.item_ids), ("domains", row.domains)):
        for position, value in enumerate(values):
            problem = id_problem(value)
            if problem is not None:
                return BadRow(row.line, f"position {position}: {name} {problem}")
    if row.times and len(row.times) != len(row.item_ids):
        return BadRow(row.line, f"{len(row.times)} timestamps of {len(row.item_ids)} items")
    wrong = next((position for position, time in enumerate(row.times) if not math.isfinite(time)), None)
    return row if wrong is None else BadRow(row.line, f"position {wrong}: the timestamp is no time")


def _list_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of sequences in Parquet."""
    user = find_column("user", names)
    for name in LIST_COLUMNS:
        if user is None or name not in names:
            raise InputFormatError(
                f"no column {'for the user' if user is None else name}; a Parquet input holds user_id, item_id, domain "
                f"or user_id, item_ids, domains; the columns are {shown(names)}"
            )
    return (str(user), *LIST_COLUMNS, *((TIMES_COLUMN,) if TIMES_COLUMN in names else ()))


def _parquet_sequences(file: BinaryIO, limits: SourceLimits, budget: Budget) -> Iterator[SequenceRow | BadRow]:
    with parquet_errors():
        parquet = ParquetInput.open(file, _list_columns, budget, lists=ALL_LISTS)
        line = 0
        for batch in parquet.batches(LIST_BATCH_ROWS):
            users = Values(batch.column(parquet.columns[0])).read(0, batch.num_rows)
            item_ids, domains = (Lists(batch.column(name)) for name in LIST_COLUMNS)
            times = _listed_times(batch) if TIMES_COLUMN in parquet.columns else None
            for row, user_id in enumerate(users):
                line += 1
                length = item_ids.lengths[row]
                if length is None or length != domains.lengths[row]:
                    yield BadRow(line, "item_ids and domains are not two lists of the same length")
                elif length > limits.max_items:
                    yield BadRow(line, f"{length} items; the limit is {limits.max_items}")
                else:
                    texts = [_text(value) for value in (user_id, *item_ids.read(row), *domains.read(row))]
                    read = SequenceRow(line, texts[0], texts[1 : length + 1], texts[length + 1 :])
                    yield _checked(read if times is None else replace(read, times=times[row] or ()), limits)


def _listed_times(batch: pa.RecordBatch) -> list[list[float]]:
    """The times of every row, NaN for what is no time; none where a row has no list."""
    column = batch.column(TIMES_COLUMN)
    values = parsed_times(column.values).times_N.tolist()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    starts = column.offsets.to_pylist()
    return [values[start : start + length] for start, length in zip(starts, lengths, strict=False)]


def _text(value: object) -> str:
    """An id of a list; what can be none as an empty text, which is missing."""
    return value if isinstance(value, str) else ""

"""
JSON lines: an object a line, of which some keys are columns.

A key of an object in a row is a column, too, called ``outer.inner``. MongoDB's exports wrap single values
(``{"$oid": "..."}``): what is in them counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from pydantic_core import from_json

from models.data.reading.compression import expanded
from models.data.reading.layouts import Columns, Layout
from models.data.reading.raw_tables import BadLine, Budget, RawBatch, RawTable
from models.data.reading.text_blocks import BYTE_ORDER_MARK, MAX_LINE_BYTES, Resumed, TextBlock, TextBlocks
from models.errors import InputFormatError

# The keys of the first rows are the columns: one row may lack what all others have.
LOOKED_AT_LINES, LOOKED_AT_BYTES = 100, 1 << 20
# Objects within objects within a row, of which the keys are columns.
DEEPEST = 3


class JsonLines:
    """One JSON object a line."""

    suffixes = (".ndjson", ".jsonl", ".json")

    def open(self, file: BinaryIO, layout: Layout, budget: Budget) -> RawTable:
        """See ``InputFormat``."""
        stream = expanded(file, budget, layout.encoding)
        head: list[bytes] = []
        names: dict[str, None] = {}
        while len(head) < LOOKED_AT_LINES and sum(map(len, head)) < (LOOKED_AT_BYTES if names else 3 * MAX_LINE_BYTES):
            line = stream.readline(MAX_LINE_BYTES)
            if not line:
                break
            head.append(line if head else line.removeprefix(BYTE_ORDER_MARK))
            row = json_object(head[-1].strip())
            names |= dict.fromkeys(_names(row) if isinstance(row, dict) else ())
        if not names:
            raise InputFormatError(f"no JSON object in its first lines{_hint(b''.join(head).lstrip())}")
        return JsonTable(Resumed(b"".join(head), stream), list(names))


class JsonTable:
    """
    An open table of JSON lines.

    Args:
        stream: stands at the first row.
        names: keys of the first rows.
    """

    usual: Columns | None = None

    def __init__(self, stream: Resumed, names: Sequence[str]) -> None:
        self.names = names
        self._stream = stream

    def check(self, columns: Sequence[str]) -> None:
        """See ``RawTable``: the first lines have told everything."""

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        """See ``RawTable``."""
        for block in TextBlocks(self._stream):  # type: ignore[arg-type]
            yield _rows(block, columns)


def _names(row: dict[str, object], outer: str = "") -> Iterator[str]:
    """Names of the columns of a row: its keys and, of an object in it, that one's."""
    for key, value in row.items():
        if isinstance(value, dict) and outer.count(".") < DEEPEST and _wrapped(value) is value:
            yield from _names(value, f"{outer}{key}.")
        else:
            yield f"{outer}{key}"


def _value(row: dict[str, object], name: str) -> object:
    """What a row has in the column *name*; None where it has no such key."""
    value = row.get(name)
    if value is None and "." in name and name not in row:
        outer, _, inner = name.partition(".")
        nested = row.get(outer)
        return _value(nested, inner) if isinstance(nested, dict) else None
    return _wrapped(value) if isinstance(value, dict) else value


def _wrapped(value: dict[str, object]) -> object:
    [key, *others] = value or ("",)
    return value[key] if key.startswith("$") and not others else value


def _hint(start: bytes) -> str:
    if start.startswith(b"["):
        return "; of an array, write each element on a line of its own (jq -c '.[]')"
    return "; single quotes are Python's, not JSON's: convert it" if start.startswith((b"{'", b"{u'")) else ""


def json_object(line: bytes) -> dict[str, object] | str:
    """The object of a line, or why it holds none."""
    try:
        row = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return f"not valid JSON: {error}"
    return row if isinstance(row, dict) else "no JSON object"


def _rows(block: TextBlock, columns: Sequence[str]) -> RawBatch:
    values: dict[str, list[object]] = {name: [] for name in columns}
    appends = [(name, values[name].append) for name in columns]
    lines: list[int] = []
    bad: list[BadLine] = list(block.broken)
    texts = block.content.split(b"\n")
    for line, text in zip(block.lines_N.tolist(), texts, strict=False):
        row = json_object(text)
        if isinstance(row, str):
            bad.append(BadLine(line, row))
            continue
        for name, append in appends:
            append(_value(row, name))
        lines.append(line)
    bad.sort(key=lambda row: row.line)
    return RawBatch(dict(values), np.array(lines, dtype=np.int64), tuple(bad), block.blank_lines)

"""
Bytes of results: chunk files, and streams of Parquet, NDJSON, CSV and RecBole's ``.inter``.

Everything here is a pure function of its rows: the same rows give the same bytes, whichever process writes them. A
stream is made from one Arrow batch after the other and holds no more than one of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from app.counts import ITEM_COUNTS, ItemCounts
from app.jobs.formats import PARQUET_SOURCE, SequenceRow

ResultFormat = Literal["parquet", "ndjson", "csv", "inter"]
FileParts = Generator[bytes, None, None]
"""A file, part by part. Closing it lets go of what it is made from."""

RESULT_FORMATS: tuple[ResultFormat, ...] = get_args(ResultFormat)

MEDIA_TYPES: dict[ResultFormat, str] = {
    "parquet": "application/vnd.apache.parquet",
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "inter": "text/tab-separated-values",
}

CHUNK = pa.schema(
    [
        ("user_id", pa.string()),
        ("items", pa.list_(pa.string())),
        *((name, pa.int32()) for name in ITEM_COUNTS),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ResultRow(ItemCounts):
    """One rewritten sequence of a job; the counts add up to the items of its input row."""

    user_id: str
    items: Sequence[str]


def input_file(rows: Sequence[SequenceRow]) -> bytes:
    """The rows of a chunk as a Parquet file."""
    columns = [
        [row.line for row in rows],
        [row.user_id for row in rows],
        [row.item_ids for row in rows],
        [row.domains for row in rows],
        [row.num_rows for row in rows],
    ]
    return _parquet_file(pa.table(columns, schema=PARQUET_SOURCE))


def read_input_file(content: bytes) -> list[SequenceRow]:
    """What ``input_file`` wrote; before it wrote num_rows, every row counted as one."""
    table = pq.read_table(pa.BufferReader(content))
    columns = (table[name].to_pylist() for name in PARQUET_SOURCE.names if name in table.column_names)
    return [SequenceRow(*values) for values in zip(*columns, strict=True)]


def output_file(rows: Sequence[ResultRow]) -> bytes:
    """The results of a chunk as a Parquet file."""
    return _parquet_file(pa.table([[getattr(row, name) for row in rows] for name in CHUNK.names], schema=CHUNK))


def read_output_file(content: bytes) -> pa.Table:
    """What ``output_file`` wrote, as a table of ``CHUNK``; before it wrote unknown_kept, nothing unknown stayed."""
    table = pq.read_table(pa.BufferReader(content))
    if "unknown_kept" in table.column_names:
        return table
    return table.append_column(CHUNK.field("unknown_kept"), pa.nulls(table.num_rows, pa.int32()).fill_null(0))


def encode_results(chunks: Iterable[pa.Table], result_format: ResultFormat) -> FileParts:
    """All *chunks*, in order, as one file of the format."""
    return _RESULT_ENCODERS[result_format](chunks)


def to_parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    """One Parquet file; a row group per table."""
    sink = _Drained()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table)
                yield sink.drain()
    yield sink.drain()


def to_ndjson(tables: Iterable[pa.Table]) -> FileParts:
    """One JSON object per row; keys in the order of the columns."""
    for table in tables:
        yield "".join(f"{_json(row)}\n" for row in table.to_pylist()).encode()


def to_csv(names: Sequence[str], rows: Iterable[Sequence[Sequence[object]]], *, delimiter: str = ",") -> FileParts:
    """A header of *names*, then every row of every block; lines end with a line feed."""
    yield _csv_lines([names], delimiter)
    for block in rows:
        if block:
            yield _csv_lines(block, delimiter)


def _interactions(chunks: Iterable[pa.Table]) -> Iterator[list[tuple[str, str, int]]]:
    """(user, item, position from 1) of every item: the long form that CSV and .inter share."""
    for chunk in chunks:
        users, items = chunk["user_id"].to_pylist(), chunk["items"].to_pylist()
        yield [
            (user, item, position)
            for user, sequence in zip(users, items, strict=True)
            for position, item in enumerate(sequence, start=1)
        ]


_RESULT_ENCODERS: dict[ResultFormat, Callable[[Iterable[pa.Table]], FileParts]] = {
    "parquet": lambda chunks: to_parquet(CHUNK, chunks),
    "ndjson": to_ndjson,
    "csv": lambda chunks: to_csv(("user_id", "item_id", "timestamp"), _interactions(chunks)),
    "inter": lambda chunks: to_csv(
        ("user_id:token", "item_id:token", "timestamp:float"), _interactions(chunks), delimiter="\t"
    ),
}


def _parquet_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _json(row: object) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _csv_lines(rows: Sequence[Sequence[object]], delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class _Drained(io.RawIOBase):
    """A sink that gives up what was written to it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        part = bytes(content)  # type: ignore[call-overload]
        self._parts.append(part)
        return len(part)

    def drain(self) -> bytes:
        """All bytes since the last call."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content

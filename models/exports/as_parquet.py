"""Parquet: one file, or a folder of parts of bounded size; compressed by zstd, in row groups of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.exports.encoding import ExportFormat, FileParts

GROUP_ROWS = 1 << 17
PART_ROWS = 1 << 20


def to_parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    """One Parquet file; a row group per table, or several where a table is longer than ``GROUP_ROWS``."""
    sink = _Drained()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table, row_group_size=GROUP_ROWS)
                yield sink.drain()
    yield sink.drain()


def write_parts(folder: Path, schema: pa.Schema, tables: Iterable[pa.Table], *, part_rows: int = PART_ROWS) -> int:
    """
    Write part-00000.parquet and so on, at most *part_rows* rows each and in order, into *folder*; how many rows.

    Without any row there is one empty part, so that a reader finds the columns.
    """
    folder.mkdir()
    num_rows = 0
    parts = 0
    for part in cut_anew(schema, tables, part_rows):
        pq.write_table(part, folder / f"part-{parts:05d}.parquet", compression="zstd", row_group_size=GROUP_ROWS)
        num_rows += part.num_rows
        parts += 1
    if not parts:
        pq.write_table(schema.empty_table(), folder / "part-00000.parquet", compression="zstd")
    return num_rows


def write_groups(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], *, group_rows: int = GROUP_ROWS) -> None:
    """Write one file in row groups of *group_rows*, so that its bytes do not depend on how *tables* were cut."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in cut_anew(schema, tables, group_rows):
            writer.write_table(group.combine_chunks(), row_group_size=group_rows)


def cut_anew(schema: pa.Schema, tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """*tables* put together and cut anew, each of *num_rows* rows but the last."""
    held = schema.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= num_rows:
            yield held.slice(0, num_rows)
            held = held.slice(num_rows)
    if held.num_rows:
        yield held


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


FORMAT = ExportFormat(interactions=to_parquet, sequences=to_parquet)

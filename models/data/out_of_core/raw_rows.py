"""
Every good row of an input on disk as it was read, and every bad one by name: Parquet, in the order of the input.

Shapes: N = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.reading.identifiers import CodedIds
from models.data.reading.interactions import ReadingProgress, Remarks, bad_lines_of, batches_of
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile
from models.data.reading.raw_tables import BLANK
from models.data.reading.rows import RowBatch
from models.data.reading.times import PER_SECOND, TimeUnit

ROWS, BAD = "rows.parquet", "bad.parquet"
UNITS: tuple[TimeUnit, ...] = tuple(PER_SECOND)
# Rows of a row group, and bad rows that are held until they are written.
_GROUP_ROWS, _BAD_GROUP_ROWS = 1 << 17, 1 << 14
_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item", pa.string()),
        ("domain", pa.int32()),
        ("time", pa.float64()),
        ("unit", pa.int8()),
        ("position", pa.int64()),
        ("file", pa.int32()),
        ("line", pa.int64()),
    ]
)
_BAD_SCHEMA = pa.schema([("place", pa.int64()), ("file", pa.int32()), ("line", pa.int64()), ("reason", pa.string())])


@dataclass
class RawRows:
    """
    What was read.

    Args:
        folder: holds ``rows.parquet`` (user_id, item, domain, time, unit, position, file, line) and ``bad.parquet``.
        files: their names, '' for the only one; rows say their place.
        domains: names, in the order in which they came; rows say their place.
        units: of the times, by their place in ``UNITS``.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    units: set[int] = field(default_factory=set)
    num_good: int = 0
    num_bad: int = 0
    num_blank: int = 0
    num_filtered: int = 0
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def rows(self) -> Path:
        """The file of the good rows."""
        return self.folder / ROWS

    @property
    def bad(self) -> Path:
        """The file of the bad rows."""
        return self.folder / BAD

    @property
    def num_rows(self) -> int:
        """Rows of the input: good, bad and filtered."""
        return self.num_good + self.num_bad + self.num_filtered

    @property
    def time_unit(self) -> TimeUnit:
        """The one unit of all files, or seconds."""
        return UNITS[next(iter(self.units))] if len(self.units) == 1 else "seconds"


def write_raw_rows(files: Sequence[InputFile], layout: Layout, folder: Path, report: ReadingProgress) -> RawRows:
    """
    Read *files* by the one reader, a batch at a time, into *folder*.

    Raises:
        InputFormatError: as ``read_interactions`` does.
    """
    raw = RawRows(folder)
    domain_codes: dict[str, int] = {}
    file_codes: dict[str, int] = {}
    rows = _Buffered(pq.ParquetWriter(raw.rows, _SCHEMA, compression="zstd"), _SCHEMA, _GROUP_ROWS)
    bad = _Buffered(pq.ParquetWriter(raw.bad, _BAD_SCHEMA, compression="zstd"), _BAD_SCHEMA, _BAD_GROUP_ROWS)
    with rows.writer, bad.writer:
        for file, batch in batches_of(files, layout, raw.remarks, report):
            name = file.facts.name if len(files) > 1 else ""
            place = file_codes.setdefault(name, len(file_codes))
            rows.add(_good(batch, place, raw, domain_codes))
            lines = bad_lines_of(batch, name)
            places = range(raw.num_bad, raw.num_bad + len(lines))
            bad.add([list(places), [place] * len(lines), [row.line for row in lines], [row.reason for row in lines]])
            raw.num_good += len(batch.times_N)
            raw.num_bad += len(lines)
            raw.num_blank += sum(row.reason == BLANK for row in lines)
            raw.num_filtered += batch.num_filtered
        rows.flush()
        bad.flush()
    raw.files, raw.domains = list(file_codes), list(domain_codes)
    return raw


@dataclass
class _Buffered:
    """Pieces that are written when they make a row group worth having."""

    writer: pq.ParquetWriter
    schema: pa.Schema
    group_rows: int
    waiting: list[pa.Table] = field(default_factory=list)
    num_waiting: int = 0

    def add(self, columns: list[Any]) -> None:
        table = pa.Table.from_arrays(
            [pa.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)],
            schema=self.schema,
        )
        self.waiting.append(table)
        self.num_waiting += table.num_rows
        if self.num_waiting >= self.group_rows:
            self.flush()

    def flush(self) -> None:
        if self.num_waiting:
            self.writer.write_table(pa.concat_tables(self.waiting), row_group_size=self.group_rows)
        self.waiting, self.num_waiting = [], 0


def _good(batch: RowBatch, place: int, raw: RawRows, domain_codes: dict[str, int]) -> list[Any]:
    num_rows = len(batch.times_N)
    unit = UNITS.index(batch.time_unit)
    if num_rows:
        raw.units.add(unit)
    return [
        batch.users.as_dictionary().dictionary_decode(),
        batch.items.as_dictionary().dictionary_decode(),
        _domains(batch.domains, domain_codes),
        batch.times_N,
        np.full(num_rows, unit, dtype=np.int8),
        np.arange(raw.num_good, raw.num_good + num_rows),
        np.full(num_rows, place, dtype=np.int32),
        batch.lines_N,
    ]


def _domains(ids: CodedIds, codes: dict[str, int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The rows' domains as places in *codes*, which grows."""
    used = np.flatnonzero(np.bincount(ids.codes_N, minlength=len(ids.values)))
    code_of = np.zeros(max(1, len(ids.values)), dtype=np.int32)
    for value in used.tolist():
        code_of[value] = codes.setdefault(ids.values[value].as_py(), len(codes))
    return code_of[ids.codes_N]

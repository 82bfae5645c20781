"""
Interactions in any order -> each user's, by time, in bounded memory: what does not fit is sorted into files and merged.

Users come in the order in which they first appear; a user's rows by time, equal times as they stand. Every user's id is
held in memory, about 100 bytes each.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from models.data.reading.identifiers import Codes
from models.data.reading.rows import RowBatch
from models.data.reading.times import TimeUnit
from models.errors import InputFormatError

ROWS_IN_MEMORY = 1 << 20
# Rows of each file that are held while files are merged.
MERGED_ROWS = 4096
_KEYS = ("user", "seconds", "line")

_Row = tuple[int, float, int, str, str, float, list[str | None]]


@dataclass
class UserRows:
    """
    A user's interactions in order.

    Args:
        first_line: the least of their lines.
        num_rows: how many there are; of too many only the first are held.
        times: as they stand or, where files differ in their units, in seconds; empty where the input has none.
        carried: of each item, the values of the columns that are carried along; empty where there are none.
    """

    user_id: str
    first_line: int
    num_rows: int = 0
    item_ids: list[str] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    carried: list[list[str | None]] = field(default_factory=list)


class UserSort:
    """
    Takes interactions and gives them back user by user.

    Args:
        scratch: an existing folder for what does not fit into memory; its files are the caller's to remove.
        max_rows_of_user: beyond these a user's rows are only counted.
    """

    def __init__(self, scratch: Path | None, *, max_rows_of_user: int) -> None:
        self._scratch, self._max_rows = scratch, max_rows_of_user
        self._number_of: dict[str, int] = {}
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self._runs: list[Path] = []
        self._units: set[TimeUnit] = set()
        self._has_times = True
        self.last_line = 0

    def add(self, batch: RowBatch, lines_before: int) -> None:
        """
        Take the good rows of *batch*, whose lines follow *lines_before* others.

        Raises:
            InputFormatError: there are too many to be held, and no folder for them.
        """
        ends = [*batch.lines_N[-1:].tolist(), *(bad.line for bad in batch.bad[-1:]), *batch.blank_lines[-1:].tolist()]
        self.last_line = max([self.last_line, *(lines_before + end for end in ends)])
        if not len(batch.lines_N):
            return
        self._units.add(batch.time_unit)
        self._has_times = self._has_times and batch.has_times
        frame = pl.DataFrame(
            {
                "user": self._numbers(batch.users.codes_N, batch.users.values),
                "seconds": batch.seconds_N,
                "line": batch.lines_N + lines_before,
                "item": pl.Series(batch.items.values, dtype=pl.String).gather(batch.items.codes_N),
                "domain": pl.Series(batch.domains.values, dtype=pl.String).gather(batch.domains.codes_N),
                "time": batch.times_N,
                "carried": pl.Series(batch.carried, dtype=pl.List(pl.String)),
            }
        )
        self._waiting.append(frame)
        self._num_waiting += len(frame)
        if self._num_waiting >= ROWS_IN_MEMORY:
            self._spill()

    def sorted_users(self) -> Iterator[UserRows]:
        """Every user with the rows that were added; only once."""
        names = list(self._number_of)
        if self._runs:
            self._spill()
            rows: Iterable[_Row] = heapq.merge(*map(_rows_of_run, self._runs), key=itemgetter(0, 1, 2))
        else:
            rows = _rows(self._sorted())
        one_unit = len(self._units) == 1
        for number, of_user in groupby(rows, key=itemgetter(0)):
            user = UserRows(names[number], first_line=0)
            for _, seconds, line, item_id, domain, time, carried in of_user:
                user.first_line = line if user.num_rows == 0 else min(user.first_line, line)
                user.num_rows += 1
                if user.num_rows <= self._max_rows:
                    user.item_ids.append(item_id)
                    user.domains.append(domain)
                    if self._has_times:
                        user.times.append(time if one_unit else seconds)
                    if carried:
                        user.carried.append(carried)
            yield user

    def _numbers(self, codes: Codes, values: pa.StringArray) -> Codes:
        """A number for each row's user, in the order in which users first appear."""
        distinct, first = np.unique(codes, return_index=True)
        number_of = np.zeros(len(values), dtype=np.int32)
        for code in distinct[np.argsort(first)].tolist():
            number_of[code] = self._number_of.setdefault(values[code].as_py(), len(self._number_of))
        return number_of[codes]

    def _sorted(self) -> pl.DataFrame:
        if not self._waiting:
            return pl.DataFrame()
        frame = pl.concat(self._waiting).sort(_KEYS)
        self._waiting, self._num_waiting = [], 0
        return frame

    def _spill(self) -> None:
        if not self._waiting:
            return
        if self._scratch is None:
            raise InputFormatError(f"more than {ROWS_IN_MEMORY:,} interactions, and no folder to sort them in")
        path = self._scratch / f"{len(self._runs)}.arrow"
        table = self._sorted().to_arrow()
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=MERGED_ROWS)
        self._runs.append(path)


def _rows(frame: pl.DataFrame) -> Iterator[_Row]:
    for part in frame.iter_slices(MERGED_ROWS * 16):
        yield from part.iter_rows()


def _rows_of_run(path: Path) -> Iterator[_Row]:
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

"""
Rows of one range of users on disk, and what becomes of each: a preparation out of core goes from chunk to chunk.

Shapes: N = rows of a chunk, sorted by user, time and item; U = its users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from models.data.out_of_core.coding import CodedItems, CodedRows, NumberedUsers
from models.data.reading.identifiers import Codes
from models.data.thresholds import Rows, distinct_rows

# What becomes of a row.
KEPT, SET_ASIDE, CUT = 0, 1, 2
Fates = npt.NDArray[np.uint8]
_RAW = np.dtype([("position", "<i8"), ("time", "<f8"), ("user", "<i4"), ("item", "<i4")])
_KINDS = {"users": "<i4", "items": "<i4", "times": "<f8", "positions": "<u4", "fates": "u1", "sequence": "<u4"}


@dataclass(frozen=True)
class UserChunk:
    """
    The rows of some users.

    Args:
        folder: holds a file for each column.
        users: the range.
    """

    folder: Path
    users: NumberedUsers

    @property
    def num_users(self) -> int:
        """U."""
        return self.users.end - self.users.first

    def read(self, column: str) -> npt.NDArray[Any]:
        """A column: users (places in the range), items, times, positions, fates or sequence."""
        return np.fromfile(self.folder / column, dtype=_KINDS[column])

    def write(self, column: str, values: npt.NDArray[Any]) -> None:
        """Write a column."""
        values.astype(_KINDS[column], copy=False).tofile(self.folder / column)

    def user_ids(self) -> pl.Series:
        """The ids of its users."""
        return pl.Series(pq.read_table(self.users.path, columns=["id"]).column("id").combine_chunks(), dtype=pl.String)

    def rows(self, domains_I: Codes, places: npt.NDArray[Any] | None = None) -> Rows:
        """
        Its rows.

        Args:
            domains_I: the domain of every item.
            places: which rows, in which order; None for all.
        """
        items = _at(self.read("items"), places)
        return Rows(
            _at(self.read("users"), places),
            items,
            domains_I[items],
            _at(self.read("times"), places),
            _at(self.read("positions"), places),
        )

    def sort(self, domains_I: Codes) -> Rows:
        """Make the columns from the rows as they came, in any order: without duplicates, all kept. Returns them all."""
        raw = np.fromfile(self.folder / "raw", dtype=_RAW)
        raw = raw[np.argsort(raw["position"])]
        (self.folder / "raw").unlink()
        items = np.ascontiguousarray(raw["item"])
        domains, users = domains_I[items], np.ascontiguousarray(raw["user"])
        times = np.ascontiguousarray(raw["time"])
        del raw
        rows = distinct_rows(users, items, domains, times)
        columns = (("users", rows.users_N), ("items", rows.items_N), ("times", rows.times_N))
        for column, values in (*columns, ("positions", rows.positions_N)):
            self.write(column, values)
        self.write("fates", np.full(len(rows), KEPT, dtype=np.uint8))
        return Rows(users, items, domains, times, np.zeros(0, dtype=np.uint32))


def _at(values: npt.NDArray[Any], places: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    return values if places is None else values[places]


def divide_into_chunks(rows: Iterator[CodedRows], ranges: Sequence[NumberedUsers], folder: Path) -> list[UserChunk]:
    """Write *rows*, in whatever order they come, each to the chunk of its user."""
    chunks = [UserChunk(folder / f"{index:06d}", users) for index, users in enumerate(ranges)]
    for chunk in chunks:
        chunk.folder.mkdir(parents=True)
        (chunk.folder / "raw").touch()
    ends = np.array([users.end for users in ranges], dtype=np.int64)
    firsts = np.array([users.first for users in ranges], dtype=np.int64)
    for some in rows:
        chunk_N = np.searchsorted(ends, some.users_N, side="right")
        raw = np.empty(len(chunk_N), dtype=_RAW)
        raw["position"], raw["time"], raw["item"] = some.positions_N, some.times_N, some.items_N
        raw["user"] = some.users_N - firsts[chunk_N]
        raw = raw[np.argsort(chunk_N, kind="stable")]
        stops = np.cumsum(np.bincount(chunk_N, minlength=len(chunks)))
        for chunk, start, stop in zip(chunks, [0, *stops[:-1].tolist()], stops.tolist(), strict=True):
            if stop > start:
                with (chunk.folder / "raw").open("ab") as file:
                    raw[start:stop].tofile(file)
    return chunks


@dataclass(frozen=True)
class UserChunks:
    """All chunks, in the order of their users, and the items that their rows name."""

    every: tuple[UserChunk, ...]
    items: CodedItems

    def __iter__(self) -> Iterator[UserChunk]:
        return iter(self.every)

    def __len__(self) -> int:
        return len(self.every)

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.items.domain_names)

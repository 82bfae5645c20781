"""
Users and items get their numbers, the places of their ids in sorted order, without their ids being held in memory.

The ids lie in Parquet; the engine groups, sorts and joins them. Of every item a few numbers are held, of users nothing.

Shapes: N = rows, I = items, D = domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.data.ordering import Hashes, text_hashes
from models.data.out_of_core.memory_share import MemoryShare
from models.data.out_of_core.raw_rows import UNITS, RawRows
from models.data.out_of_core.spilling_engine import SpillingEngine, as_numpy, quoted
from models.data.reading.identifiers import Codes
from models.data.reading.interactions import minority_claim
from models.data.reading.raw_tables import BadLine
from models.data.reading.times import PER_SECOND

ITEMS, USERS = "items.parquet", "users"
TEXTS, ENDS = ".texts", ".ends"
_ID_SCHEMA = pa.schema([("code", pa.int64()), ("id", pa.string())])
_BATCH_ROWS = 1 << 18
# Cells of users and domains that a chunk may have, by its rows: each is counted.
_CELLS_A_ROW = 2


@dataclass(frozen=True)
class CodedItems:
    """
    What is held of every item.

    Args:
        path: a table of code and id; beside it lie the texts in one file, and where each ends in another.
        domains_I: the place of its domain in ``domain_names``.
        hashes_I: of its id.
        domain_names: of the domains that good rows have, sorted.
    """

    path: Path
    domains_I: Codes
    hashes_I: Hashes
    domain_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.domains_I)

    def ids(self, codes: npt.NDArray[Any]) -> pl.Series:
        """The ids of *codes*, from the disk: of what is looked at, the system keeps as much as it has room for."""
        if not len(codes):
            return pl.Series(dtype=pl.String)
        texts, ends = (np.memmap(_beside(self.path, suffix), mode="r", dtype=np.uint8) for suffix in (TEXTS, ENDS))
        column = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(ends), pa.py_buffer(texts))
        return pl.Series(column.take(pa.array(codes)), dtype=pl.String)


@dataclass(frozen=True)
class NumberedUsers:
    """Users of one chunk: ``first`` to before ``end``, and a table of their codes and ids."""

    first: int
    end: int
    path: Path


@dataclass(frozen=True)
class CodedRows:
    """Rows of any order: codes of users and items, times, and places in the input."""

    users_N: npt.NDArray[np.int64]
    items_N: Codes
    times_N: npt.NDArray[np.float64]
    positions_N: npt.NDArray[np.int64]


class Coding:
    """
    Numbers for the ids of *raw*.

    Args:
        engine: does the work.
        raw: the rows as read.
        folder: for the tables of ids.
        share: bounds a chunk.
    """

    def __init__(self, engine: SpillingEngine, raw: RawRows, folder: Path, share: MemoryShare) -> None:
        self._engine, self._raw, self._folder, self._share = engine, raw, folder, share
        self._rows = f"read_parquet({quoted(raw.rows)})"
        self._time = _time_of(raw)
        self.is_contested = False

    def items(self, stage: str) -> CodedItems:
        """Every item with its domain: the one that most of its distinct rows name, of equal ones the first by name."""
        engine = self._engine
        engine.run(
            stage,
            "CREATE TABLE item_rows AS SELECT item, min(domain) AS lowest, max(domain) AS highest "
            f"FROM {self._rows} GROUP BY item",
        )
        num_items = int(engine.value("SELECT count(*) FROM item_rows"))
        self._share.check_items(num_items)
        self.is_contested = bool(engine.value("SELECT count(*) FROM item_rows WHERE lowest <> highest"))
        owner = "lowest"
        joined = "item_rows"
        if self.is_contested:
            self._find_owners(stage)
            owner, joined = "coalesce(owners.domain, lowest)", "item_rows LEFT JOIN owners USING (item)"
        domains = np.zeros(num_items, dtype=np.int32)
        hashes = np.zeros(num_items, dtype=np.uint64)
        done = 0
        path = self._folder / ITEMS
        with (
            pq.ParquetWriter(path, _ID_SCHEMA, compression="zstd") as writer,
            _beside(path, TEXTS).open("wb") as texts,
            _beside(path, ENDS).open("wb") as ends,
        ):
            ends.write(np.zeros(1, dtype=np.int64).tobytes())
            num_bytes = 0
            query = f"SELECT item, {owner} AS domain FROM {joined} ORDER BY item"
            for batch in engine.batches(stage, query, _BATCH_ROWS):
                ids = batch.column("item")
                stop = done + len(ids)
                domains[done:stop] = as_numpy(batch.column("domain"))
                hashes[done:stop] = text_hashes(ids.to_pylist())
                writer.write_table(_id_table(done, ids))
                lengths = np.cumsum(as_numpy(pc.binary_length(ids)), dtype=np.int64)
                ends.write((lengths + num_bytes).tobytes())
                texts.write("".join(ids.to_pylist()).encode())
                num_bytes += int(lengths[-1])
                done = stop
        engine.run(stage, "DROP TABLE item_rows")
        # A domain that only bad rows name, a misspelt one for instance, is none.
        used = np.flatnonzero(np.bincount(domains, minlength=len(self._raw.domains))).tolist()
        by_name = sorted(used, key=lambda code: self._raw.domains[code].encode())
        renumbered = np.zeros(max(1, len(self._raw.domains)), dtype=np.int32)
        renumbered[by_name] = np.arange(len(by_name))
        return CodedItems(path, renumbered[domains], hashes, tuple(self._raw.domains[code] for code in by_name))

    def _find_owners(self, stage: str) -> None:
        names = sorted(range(len(self._raw.domains)), key=lambda code: self._raw.domains[code].encode())
        place = np.zeros(len(names), dtype=np.int32)
        place[names] = np.arange(len(names))
        self._engine.table("domain_places", domain=np.arange(len(names), dtype=np.int32), place=place)
        # Distinct rows only: a repeated line is no further evidence. Adding 0 makes -0 and 0 one time.
        self._engine.run(
            stage,
            "CREATE TABLE owners AS SELECT item, domain FROM ("
            "  SELECT item, domain, row_number() OVER (PARTITION BY item ORDER BY num DESC, place) AS rank FROM ("
            "    SELECT item, domain, count(*) AS num FROM ("
            f"      SELECT DISTINCT user_id, item, domain, {self._time} + 0.0::DOUBLE AS time FROM {self._rows}"
            "       WHERE item IN (SELECT item FROM item_rows WHERE lowest <> highest)"
            "    ) GROUP BY item, domain"
            "  ) JOIN domain_places USING (domain)"
            ") WHERE rank = 1",
        )

    @property
    def _claims(self) -> str:
        """Rows that give their item another domain than it has."""
        return f"FROM {self._rows} AS r JOIN owners AS o ON r.item = o.item WHERE r.domain <> o.domain"

    def num_minority_claims(self) -> int:
        """How many rows give their item another domain than it has."""
        return int(self._engine.value(f"SELECT count(*) {self._claims}")) if self.is_contested else 0

    def bad_rows(self, stage: str) -> Iterator[BadLine]:
        """
        Every bad row: as it was read and, where rows claim items for other domains, with those, by file and line.

        As ``models.data.reading.interactions`` has them: where there is no such claim, in the order of reading.
        """
        query = (
            f"SELECT file, line, reason, NULL AS item, 0 AS domain, place FROM read_parquet({quoted(self._raw.bad)})"
        )
        if self.is_contested:
            claims = f"SELECT r.file, r.line, NULL, r.item, r.domain, r.position {self._claims}"
            query = f"SELECT * FROM ({query} UNION ALL {claims}) ORDER BY file, line, item IS NOT NULL, place"
        else:
            query = f"{query} ORDER BY place"
        for batch in self._engine.batches(stage, query, _BATCH_ROWS):
            for row in batch.to_pylist():
                reason = row["reason"] or minority_claim(row["item"], self._raw.domains[row["domain"]])
                yield BadLine(row["line"], reason, self._raw.files[row["file"]])

    def user_ranges(self, stage: str, num_domains: int) -> list[NumberedUsers]:
        """All users in sorted order, cut into ranges of about as many rows as a chunk may have."""
        folder = self._folder / USERS
        folder.mkdir()
        ranges: list[NumberedUsers] = []
        waiting: list[pa.Array] = []
        most_rows = self._share.chunk_rows
        most_users = max(1, _CELLS_A_ROW * most_rows // max(1, num_domains))
        first = done = 0
        rows_here = 0

        def close() -> None:
            nonlocal first, rows_here, waiting
            path = folder / f"{len(ranges):06d}.parquet"
            pq.write_table(_id_table(first, pa.concat_arrays(waiting)), path, compression="zstd")
            ranges.append(NumberedUsers(first, done, path))
            first, rows_here, waiting = done, 0, []

        query = f"SELECT user_id, count(*) AS num FROM {self._rows} GROUP BY user_id ORDER BY user_id"
        for batch in self._engine.batches(stage, query, _BATCH_ROWS):
            users, counts = batch.column("user_id"), as_numpy(batch.column("num"))
            start = 0
            ends = np.cumsum(counts)
            while start < len(users):
                before = int(ends[start - 1]) if start else 0
                stop = int(np.searchsorted(ends, before + most_rows - rows_here, side="right"))
                stop = min(max(stop, start if done > first else start + 1), start + most_users - (done - first))
                waiting.append(users.slice(start, stop - start))
                done += stop - start
                rows_here += int(ends[stop - 1]) - before if stop > start else 0
                if stop < len(users):
                    close()
                start = stop
        if done > first:
            close()
        return ranges

    def rows(self, stage: str, items: CodedItems) -> Iterator[CodedRows]:
        """Every good row that claims its item for the item's domain, in codes, in no order."""
        if not len(items):
            return  # and there are no users, whose table the engine would miss
        query = (
            f"SELECT u.code AS user_code, i.code::INTEGER AS item, r.domain AS domain, {self._time} AS time, "
            f"r.position AS position FROM {self._rows} AS r "
            f"JOIN read_parquet({quoted(self._folder / USERS)} || '/*.parquet') AS u ON r.user_id = u.id "
            f"JOIN read_parquet({quoted(items.path)}) AS i ON r.item = i.id"
        )
        code_of_name = {name: code for code, name in enumerate(items.domain_names)}
        final = np.array([code_of_name.get(name, -1) for name in self._raw.domains] or [-1], dtype=np.int32)
        for batch in self._engine.batches(stage, query, _BATCH_ROWS, total=self._raw.num_good):
            columns = {name: as_numpy(batch.column(name)) for name in batch.schema.names}
            if self.is_contested:
                good = final[columns["domain"]] == items.domains_I[columns["item"]]
                columns = {name: values[good] for name, values in columns.items()}
            yield CodedRows(columns["user_code"], columns["item"], columns["time"], columns["position"])


def _time_of(raw: RawRows) -> str:
    """The time of a row as SQL, in the unit of all: as it stands unless files differ in their units."""
    if len(raw.units) < 2:
        return "time"
    scales = " ".join(f"WHEN {unit} THEN time / {PER_SECOND[UNITS[unit]]}::DOUBLE" for unit in sorted(raw.units))
    return f"CASE unit {scales} END"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix)


def _id_table(first: int, ids: pa.Array) -> pa.Table:
    return pa.table([np.arange(first, first + len(ids)), ids.cast(pa.string())], schema=_ID_SCHEMA)

"""
Frames of interactions as libraries call their columns: a user, an item, a weight and an instant.

Libraries put a user's rows in order by their time alone, so items of one time get instants a nanosecond apart, in the
order of the sequence. Without times the instant is the place in the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.period import nanoseconds_per_unit
from models.exports.as_parquet import GROUP_ROWS, to_parquet
from models.exports.encoding import ExportFormat, FileParts, HeldOutItem, TrainingData

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Frame:
    """
    How a library calls the columns.

    Args:
        user, item, time: names.
        weight: name of a column of ones; None where the library has none.
        instants: whether times are instants; else they are whole numbers of nanoseconds since 1970.
    """

    user: str
    item: str
    time: str
    weight: str | None
    instants: bool

    @property
    def schema(self) -> pa.Schema:
        """Of every table that it makes."""
        fields = [(self.user, pa.string()), (self.item, pa.string())]
        fields += [(self.weight, pa.float64())] if self.weight else []
        return pa.schema([*fields, (self.time, pa.timestamp("ns") if self.instants else pa.int64())])

    def of(self, table: pa.Table) -> pa.Table:
        """A table of interactions, each user's rows in one piece, in the library's words."""
        nanoseconds = _nanoseconds(pl.DataFrame(table.select(["user", "item", "timestamp"])))
        columns = [pl.col("user").alias(self.user), pl.col("item").alias(self.item)]
        columns += [pl.lit(1.0).alias(self.weight)] if self.weight else []
        time = pl.from_epoch(pl.col("ns"), time_unit="ns") if self.instants else pl.col("ns")
        return nanoseconds.select(*columns, time.alias(self.time)).to_arrow().cast(self.schema)


def frame_format(frame: Frame) -> ExportFormat:
    """The format of *frame*: one file, or a folder of train.parquet, valid.parquet and test.parquet."""

    def encode(_: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
        return to_parquet(frame.schema, (frame.of(table) for table in tables))

    def write(data: TrainingData, folder: Path) -> None:
        with pq.ParquetWriter(folder / "train.parquet", frame.schema, compression="zstd") as writer:
            for table in data.interactions():
                writer.write_table(frame.of(table))
        for name, held_out in (("valid", data.validation), ("test", data.test)):
            with pq.ParquetWriter(folder / f"{name}.parquet", frame.schema, compression="zstd") as writer:
                rows = iter(held_out())
                while portion := list(islice(rows, GROUP_ROWS)):
                    writer.write_table(frame.of(_table(portion)))

    return ExportFormat(interactions=encode, folder=write)


def _table(held_out: Sequence[HeldOutItem]) -> pa.Table:
    columns: dict[str, Callable[[HeldOutItem], object]] = {
        "user": lambda row: row.user,
        "item": lambda row: row.item,
        "timestamp": lambda row: row.time,
    }
    types = {"user": pa.string(), "item": pa.string(), "timestamp": pa.float64()}
    return pa.table({name: pa.array(map(of, held_out), types[name]) for name, of in columns.items()})


def _nanoseconds(table: pl.DataFrame) -> pl.DataFrame:
    """*table* with whole nanoseconds "ns" that rise within each user."""
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    if table["timestamp"].is_null().any():
        return table.with_columns(ns=place.over("user") * NANOSECONDS)
    largest = table["timestamp"].cast(pl.Float64).abs().max()
    per_unit = nanoseconds_per_unit(largest if isinstance(largest, float) else 0.0)
    time = pl.col("timestamp").cast(pl.Float64)
    whole = time.floor().cast(pl.Int64, strict=False) * per_unit  # a product of doubles would lose the last digits
    rest = ((time - time.floor()) * per_unit).round().cast(pl.Int64)
    return table.with_columns(ns=whole + rest + place.over("user", "timestamp"))

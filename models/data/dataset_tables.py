"""
The tables of a dataset folder, written as their rows come: the same bytes however many come at a time.

Every table is Parquet in row groups of ``GROUP_ROWS`` rows, whoever writes it and from whatever pieces: that is why a
preparation in memory and one out of core give the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.dataset import FORMAT_VERSION, LATER, MANIFEST, TIMES, WAITING, Sequences, sha256_of
from models.data.period import now_text
from models.data.preparation_report import PreparationReport
from models.data.reading.raw_tables import BadLine
from models.data.splits import Split

BAD_ROWS = "bad_rows.csv"
VOCABULARY = "vocabulary.parquet"
# Of users or rows. A group is held while it fills: at the longest 64 MB of times.
GROUP_ROWS = 1 << 16
# Of bad rows that become a frame at a time.
BAD_ROWS_AT_A_TIME = 1 << 16

_USER = pa.field("user_id", pa.string())
_TOKENS = pa.schema([_USER, pa.field("token_ids", pa.list_(pa.int32()))])
_TOKEN = pa.schema([_USER, pa.field("token_id", pa.int32())])
_TIMES = pa.schema([_USER, pa.field("times", pa.list_(pa.float64()))])
_LATER = pa.schema([*_TOKENS, pa.field("before_test", pa.int64())])
_WAITING = pa.schema(
    [*(pa.field(name, pa.string()) for name in ("user", "item", "domain")), pa.field("time", pa.float64())]
)
_VOCABULARY = pa.schema(
    [pa.field("token_id", pa.int64()), pa.field("domain", pa.string()), pa.field("item_id", pa.string())]
)


class TableWriter:
    """
    A Parquet file in row groups of one size, whatever the pieces; use as a context manager.

    Args:
        path: of the file.
        schema: of every piece.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._num_pending:
            self._write_groups(self._num_pending)
        self._writer.close()

    def add(self, columns: Mapping[str, Any]) -> None:
        """The next rows: arrays or series of one length, by the names of the schema."""
        arrays = [_as_arrow(columns[field.name], field.type) for field in self._schema]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._pending.append(table)
        self._num_pending += table.num_rows
        if self._num_pending >= GROUP_ROWS:
            self._write_groups(self._num_pending // GROUP_ROWS * GROUP_ROWS)

    def _write_groups(self, num_rows: int) -> None:
        table = pa.concat_tables(self._pending)
        for start in range(0, num_rows, GROUP_ROWS):
            # In one piece: where pages end would depend on the pieces otherwise.
            group = table.slice(start, min(GROUP_ROWS, num_rows - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=GROUP_ROWS)
        rest = table.slice(num_rows)
        # A copy, so that what was written can go.
        self._pending = [pa.Table.from_batches([_copied(batch) for batch in rest.to_batches()], self._schema)]
        self._num_pending = rest.num_rows


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array(np.arange(batch.num_rows)))


def _as_arrow(values: Any, kind: pa.DataType) -> pa.ChunkedArray:
    if isinstance(values, pl.Series):
        values = values.to_arrow()
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    array = array.cast(kind)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array], kind)


class DatasetTables:
    """
    All tables of a dataset but its manifest; use as a context manager.

    Args:
        folder: to write into.
        by_time: whether the split is one by time.
    """

    def __init__(self, folder: Path, *, by_time: bool) -> None:
        self._stack = ExitStack()
        schemas = {
            "train.parquet": _TOKENS,
            "validation.parquet": _TOKEN,
            "test.parquet": _TOKEN,
            TIMES: _TIMES,
            WAITING: _WAITING,
            VOCABULARY: _VOCABULARY,
        }
        if by_time:
            schemas[LATER] = _LATER
        self._tables = {
            name: self._stack.enter_context(TableWriter(folder / name, schema)) for name, schema in schemas.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def add_users(self, split: Split) -> None:
        """The next users' sequences."""
        users = split.user_ids
        self._tables["train.parquet"].add({"user_id": users, "token_ids": _lists(split.train)})
        self._tables["validation.parquet"].add({"user_id": users, "token_id": split.validation_U})
        self._tables["test.parquet"].add({"user_id": users, "token_id": split.test_U})
        times = pa.LargeListArray.from_arrays(split.offsets, split.times_N)
        self._tables[TIMES].add({"user_id": users, "times": times})
        if split.later is not None:
            later = {"user_id": users, "token_ids": _lists(split.later), "before_test": split.before_test_U}
            self._tables[LATER].add(later)

    def add_waiting(self, rows: pl.DataFrame) -> None:
        """The next rows that a threshold set aside: user, item, domain, time."""
        self._tables[WAITING].add({name: rows[name] for name in _WAITING.names})

    def add_items(self, first_token: int, domains: pl.Series, item_ids: pl.Series) -> None:
        """The next items, in the order of their tokens."""
        tokens = np.arange(first_token, first_token + len(item_ids))
        self._tables[VOCABULARY].add({"token_id": tokens, "domain": domains, "item_id": item_ids})


def _lists(sequences: Sequences) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(sequences.offsets, sequences.token_ids)


def write_bad_rows(folder: Path, rows: Iterable[BadLine], *, with_files: bool) -> None:
    """
    ``bad_rows.csv``: line and reason, and the file where there are several.

    Args:
        with_files: whether any of the rows names its file.
    """
    schema: dict[str, type[pl.DataType]] = {"line": pl.Int64, "reason": pl.String}
    if with_files:
        schema["file"] = pl.String
    with (folder / BAD_ROWS).open("wb") as file:
        pl.DataFrame(schema=schema).write_csv(file)
        for some in _batches(rows):
            columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in some] for name in schema}
            pl.DataFrame(columns, schema=schema).write_csv(file, include_header=False)


def _batches(rows: Iterable[BadLine]) -> Iterator[list[BadLine]]:
    some: list[BadLine] = []
    for row in rows:
        some.append(row)
        if len(some) == BAD_ROWS_AT_A_TIME:
            yield some
            some = []
    if some:
        yield some


def write_manifest(
    folder: Path, facts: Mapping[str, object], config: Any, period: Mapping[str, Any], report: PreparationReport
) -> None:
    """``dataset.json``, once every other file stands."""
    counted = asdict(report)
    del counted["bad_rows"], counted["fingerprint"]
    manifest = {
        "format_version": FORMAT_VERSION,
        "created": now_text(),
        "period": period,
        "fingerprint": report.fingerprint,
        **facts,
        "config": asdict(config),
        "statistics": counted,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

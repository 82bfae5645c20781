"""DuckDB over files of a folder, in a bounded part of the memory; what does not fit it spills into that folder."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from models.data.out_of_core.memory_share import MemoryShare
from models.data.reading.interactions import ReadingProgress
from models.errors import ConfigurationError

# While a query runs, so often is its progress told.
_SECONDS_BETWEEN_REPORTS = 1.0


class SpillingEngine:
    """
    A database of its own for one preparation; use as a context manager.

    Args:
        folder: for what spills, and for whatever the caller writes.
        share: its memory and threads.
        report: hears of the progress of every query.
    """

    def __init__(self, folder: Path, share: MemoryShare, report: ReadingProgress) -> None:
        self._report = report
        self._connection = duckdb.connect(
            config={
                "memory_limit": f"{share.engine_bytes // 1000}KB",
                "threads": share.engine_threads,
                "temp_directory": str(folder / "spill"),
                # Every order that counts is asked for.
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def run(self, stage: str, sql: str) -> None:
        """
        Do as *sql* says; *stage* is what it is for.

        Raises:
            OSError: the disk is full.
            ConfigurationError: the memory is too little.
        """
        with self._told(stage):
            self._guarded(lambda: self._connection.execute(sql).fetchall())

    def batches(self, stage: str, sql: str, rows: int, *, total: int | None = None) -> Iterator[pa.RecordBatch]:
        """
        The rows of a query, at most about so many at a time.

        Args:
            total: how many there are, where that is known: to tell how far it is.

        Raises:
            OSError, ConfigurationError: as ``run`` does.
        """
        done = 0
        with self._told(stage) as heartbeat:
            reader = self._guarded(lambda: self._connection.sql(sql).to_arrow_reader(rows))
            while True:
                try:
                    batch = self._guarded(reader.read_next_batch)
                except StopIteration:
                    return
                yield batch
                done += batch.num_rows
                heartbeat.fraction = done / total if total else None

    def value(self, sql: str) -> Any:
        """The one value of a query."""
        [(value,)] = self._guarded(lambda: self._connection.execute(sql).fetchall())
        return value

    def table(self, name: str, **columns: Any) -> None:
        """A small table of the engine's own, from arrays."""
        self._connection.register("given", pa.table({key: pa.array(values) for key, values in columns.items()}))
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given").fetchall()
        self._connection.unregister("given")

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except duckdb.OutOfMemoryException as error:
            text = str(error)
            if "max_temp_directory_size" in text or "No space left" in text:
                raise _disk_full(error) from error
            raise ConfigurationError(f"too little memory, give more --memory: {_first_line(text)}") from error
        except duckdb.IOException as error:
            if "No space left" in str(error) or "Could not write" in str(error):
                raise _disk_full(error) from error
            raise OSError(_first_line(str(error))) from error
        except OSError as error:
            raise OSError(_first_line(str(error))) from error

    def _told(self, stage: str) -> _Heartbeat:
        return _Heartbeat(stage, self._report, self._connection)


class _Heartbeat:
    """
    Reports how far the engine's query is, from a thread of its own, as the query holds the caller's.

    ``fraction`` is what the caller knows of it; None for what the engine says.
    """

    def __init__(self, stage: str, report: ReadingProgress, connection: duckdb.DuckDBPyConnection) -> None:
        self._stage, self._report, self._connection = stage, report, connection
        self.fraction: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._report(self._stage, 0.0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_REPORTS):
            fraction = self.fraction
            if fraction is None:
                fraction = self._connection.query_progress() / 100
            self._report(self._stage, min(1.0, max(0.0, fraction)))


def _disk_full(error: Exception) -> OSError:
    return OSError(errno.ENOSPC, _first_line(str(error)))


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "no reason given"


def quoted(path: Path) -> str:
    """A path as a text of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def as_numpy(column: pa.Array) -> np.ndarray[Any, Any]:
    """A column without nulls."""
    values: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    return values

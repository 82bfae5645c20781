"""
The mapping store at size: merging next to plain multi-row inserts, pages, and streaming in constant memory.

On SQLite and, where it is installed, PostgreSQL. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.http.routes.mappings import encoded_lines
from app.mappings.mapping_store import (
    DictionaryKey,
    Increment,
    MappingFilter,
    MappingKey,
    find_dictionary,
    fold_in,
    merge_staged,
    page,
    stage,
    stream,
)
from app.storage import schema
from app.storage.database import open_engine, reading, writing
from tests.services import PostgresServer, ServiceMissingError, reachable_folder

JOB = DictionaryKey("kitchen", "v1", "paper", "f" * 32)
TARGETS_PER_SOURCE = 50
MULTI_ROW = 1000


def main() -> None:
    """Measure on both databases and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--block", type=int, default=20_000, help="rows of one merge, as a chunk's")
    parser.add_argument("--plain-rows", type=int, default=100_000)
    parser.add_argument("--pages", type=int, default=300)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with reachable_folder() as folder:
        for name, opened in (("sqlite", sqlite(folder)), ("postgresql", postgres(folder))):
            try:
                with opened as engine:
                    found[name] = measure(engine, arguments)
                    print(name, json.dumps(found[name]), flush=True)
            except ServiceMissingError as error:
                print(f"without {name}: {error}")
    print(json.dumps({"benchmark": "mappings", "rows": arguments.rows, **found}))


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Engine]:
    """A migrated SQLite file."""
    engine = open_engine(f"sqlite:///{folder / 'bench.db'}")
    schema.upgrade(engine)
    yield engine
    engine.dispose()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Engine]:
    """A migrated PostgreSQL of our own."""
    server = PostgresServer(folder / "postgres")
    server.start()
    engine = open_engine(server.url())
    schema.upgrade(engine)
    yield engine
    engine.dispose()
    server.stop()


def measure(engine: Engine, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one database."""
    merge_rate = merge_all(engine, arguments.rows, arguments.block)
    plain_rate = plain_inserts(engine, arguments.plain_rows, arguments.block)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
    first, rest = pages(engine, arguments.rows, arguments.pages)
    with writing(engine) as connection:
        started = time.perf_counter()
        fold_in(connection, JOB)
    folded = time.perf_counter() - started
    return {
        "merge_rows_per_second": round(merge_rate),
        "multi_row_insert_rows_per_second": round(plain_rate),
        "page_milliseconds_median": round(statistics.median(rest) * 1000, 2),
        "page_milliseconds_p95": round(statistics.quantiles(rest, n=20)[-1] * 1000, 2),
        "first_page_milliseconds": round(first * 1000, 2),
        "fold_in_rows_per_second": round(arguments.rows / folded),
        "stream": streaming(engine),
    }


def increments(first: int, last: int) -> list[Increment]:
    """Rows *first* to *last* of the dictionary, in key order."""
    return [
        Increment("food", f"B{n // TARGETS_PER_SOURCE:09d}", f"K{n % TARGETS_PER_SOURCE:09d}", 1, 7_100_000)
        for n in range(first, last)
    ]


def merge_all(engine: Engine, rows: int, block: int) -> float:
    """Rows per second of merging blocks in shuffled order, as chunks arrive."""
    starts = list(range(0, rows, block))
    random.Random(1).shuffle(starts)
    seconds = 0.0
    for start in starts:
        batch = increments(start, min(rows, start + block))
        begun = time.perf_counter()
        with writing(engine) as connection:
            stage(connection, batch)
            merge_staged(connection, JOB)
        seconds += time.perf_counter() - begun
    return rows / seconds


def plain_inserts(engine: Engine, rows: int, block: int) -> float:
    """Rows per second of upserts with a thousand rows of values each, one transaction per block; undone at the end."""
    seconds = 0.0
    for start in range(0, rows, block):
        batch = increments(start, start + block)
        begun = time.perf_counter()
        with writing(engine) as connection:
            for offset in range(0, block, MULTI_ROW):
                _multi_row(connection, batch[offset : offset + MULTI_ROW])
        seconds += time.perf_counter() - begun
    with writing(engine) as connection:
        connection.execute(text("DELETE FROM mapping_pairs WHERE dictionary_id = -1"))
        connection.execute(text("DELETE FROM mapping_sources WHERE dictionary_id = -1"))
    return rows / seconds


def _multi_row(connection: Any, batch: list[Increment]) -> None:
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    sources = Counter((i.source_domain, i.source_item) for i in batch)
    connection.exec_driver_sql(
        f"INSERT INTO mapping_pairs VALUES {_values(mark, 5, len(batch))} "
        "ON CONFLICT (dictionary_id, source_domain, source_item, target_item) DO UPDATE SET "
        "count = mapping_pairs.count + excluded.count, "
        "score_micros = mapping_pairs.score_micros + excluded.score_micros",
        tuple(v for i in batch for v in (i.source_domain, i.source_item, i.target_item, i.count, i.score_micros)),
    )
    connection.exec_driver_sql(
        f"INSERT INTO mapping_sources VALUES {_values(mark, 4, len(sources))} ON CONFLICT (dictionary_id, "
        "source_domain, source_item) DO UPDATE SET decisions = mapping_sources.decisions + excluded.decisions",
        tuple(v for (domain, item), count in sources.items() for v in (domain, item, count, 0)),
    )


def _values(mark: str, num_columns: int, num_rows: int) -> str:
    return ", ".join([f"(-1, {', '.join([mark] * num_columns)})"] * num_rows)


def pages(engine: Engine, rows: int, num_pages: int) -> tuple[float, list[float]]:
    """Seconds of the first page, and of pages of 100 behind random keys."""
    source = random.Random(2)
    seconds = []
    for _ in range(num_pages + 1):
        n = source.randrange(rows)
        after = MappingKey("food", f"B{n // TARGETS_PER_SOURCE:09d}", f"K{n % TARGETS_PER_SOURCE:09d}")
        started = time.perf_counter()
        with reading(engine) as connection:
            dictionary = find_dictionary(connection, JOB)
            assert dictionary is not None
            assert page(connection, dictionary, MappingFilter(), after=after, limit=101) or n > rows - 2
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1:]


def streaming(engine: Engine) -> dict[str, float]:
    """Stream the whole dictionary as NDJSON; resident memory after the first tenth and at the end."""
    memory, num_bytes, started = [], 0, time.perf_counter()
    with reading(engine) as connection:
        dictionary = find_dictionary(connection, JOB)
        assert dictionary is not None
        for part in encoded_lines(stream(connection, dictionary, MappingFilter()), "application/x-ndjson"):
            num_bytes += len(part)
            memory.append(_resident_mib())
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        "mib": round(num_bytes / 2**20, 1),
        "resident_mib_at_a_tenth": memory[len(memory) // 10],
        "resident_mib_at_most": max(memory),
        "resident_mib_at_the_end": memory[-1],
    }


def _resident_mib() -> float:
    pages_resident = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages_resident * resource.getpagesize() / 2**20, 1)


if __name__ == "__main__":
    main()

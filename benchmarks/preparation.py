"""
Time and memory of ``prepare`` on a synthetic table of a given number of rows; the last line is JSON.

    python benchmarks/preparation.py 5000000
    python benchmarks/preparation.py 5000000 --reader polars    # only reads and encodes, by whole columns

The table is synthetic: 25 rows a user and 20 an item on average, uniform users, a long tail of items, four domains,
day-level times. Its file is written to a temporary folder and not part of the measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from models.data.preparation import PreparationConfig, prepare
from models.data.reading.interactions import read_interactions

SEED = 2025
DAY = 86_400


def write_synthetic(path: Path, num_rows: int) -> None:
    """A CSV of *num_rows* rows with identifiers as long as Amazon's."""
    generator = np.random.default_rng(SEED)
    num_users, num_items = max(1, num_rows // 25), max(1, num_rows // 20)
    items = (num_items * generator.random(num_rows) ** 3).astype(np.int64)
    columns = pl.DataFrame(
        {
            "user": generator.integers(0, num_users, num_rows),
            "item": items,
            "domain": items % 4,
            "timestamp": 1_300_000_000 + DAY * generator.integers(0, 3_000, num_rows),
        }
    )
    columns.with_columns(
        pl.format("A{}USER", pl.col("user").cast(pl.String).str.zfill(9)).alias("user"),
        pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)).alias("item"),
        pl.format("domain{}", pl.col("domain")).alias("domain"),
    ).write_csv(path)


def measure(source: Path, reader: str | None) -> dict[str, float]:
    """Wall and CPU seconds, and the peak resident memory beyond what the imports took."""
    before = peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    if reader == "polars":
        table = pl.read_csv(source, infer_schema=False)
        codes = table.select(
            pl.col("user", "item", "domain").cast(pl.Categorical), pl.col("timestamp").cast(pl.Float64)
        )
        rows = codes.height
    elif reader == "pyarrow":
        rows = read_interactions(source, max_bad_row_share=0).num_rows
    else:
        rows = prepare(source, source.with_name("dataset"), PreparationConfig(overlap="any")).rows_read
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_bytes() - before
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "rows_per_second": round(rows / seconds),
        "peak_megabytes": round(peak / 1e6),
        "peak_bytes_per_row": round(peak / rows),
    }


def peak_bytes() -> int:
    """Peak resident memory of this program. Not ``ru_maxrss``, which a child inherits from its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Write the table, then measure in a fresh process, so that writing it does not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--reader", choices=["pyarrow", "polars"], help="measure reading and encoding alone")
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.source is not None:
        print(json.dumps(measure(arguments.source, arguments.reader)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "interactions.csv"
        write_synthetic(source, arguments.rows)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--source", str(source)], check=True)


if __name__ == "__main__":
    main()

"""
`prepare` out of core under an enforced limit of memory, beside `prepare` in memory and scripts that a user would write.

    make bench-prepare ARGS='--rows 10000000'

The log is synthetic and written in parts: 25 rows a user and 20 an item on average, uniform users, a tail of items,
four domains, times of whole days. Each way runs in a process of its own. The one out of core is in a cgroup that the
kernel keeps to the limit, as a container is: it counts the pages of files, too, and takes them back first. Where no
cgroup can be made (that takes root) the limit is RLIMIT_DATA, of the addresses that a process asks for: more than it
uses, as allocators keep them. Peaks are resident memory, mapped pages of files included. The last line is JSON.

The scripts keep the rules of `prepare` but two: rows of equal time stay as they are read, and numbers go by order of
appearance. They write train, validation, test and vocabulary, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SEED = 2025
DAY = 86_400
PART_ROWS = 1_000_000
# In memory, more rows than this are left out: about 1.5 GB.
MOST_ROWS_IN_MEMORY = 10_000_000
MIN_INTERACTIONS, MAX_LENGTH = 3, 128


def write_log(folder: Path, num_rows: int) -> int:
    """Parquet parts of a synthetic log, a part in memory at a time; their bytes."""
    folder.mkdir()
    num_users, num_items = max(1, num_rows // 25), max(1, num_rows // 20)
    for number, start in enumerate(range(0, num_rows, PART_ROWS)):
        generator = np.random.default_rng([SEED, number])
        rows = min(PART_ROWS, num_rows - start)
        items = (num_items * generator.random(rows) ** 3).astype(np.int64)
        columns = {
            "user": generator.integers(0, num_users, rows),
            "item": items,
            "domain": items % 4,
            "timestamp": 1_300_000_000 + DAY * generator.integers(0, 3_000, rows),
        }
        pl.DataFrame(columns).with_columns(
            pl.format("A{}USER", pl.col("user").cast(pl.String).str.zfill(9)).alias("user"),
            pl.format("B{}", pl.col("item").cast(pl.String).str.zfill(9)).alias("item"),
            pl.format("synthetic{}", pl.col("domain")).alias("domain"),
        ).write_parquet(folder / f"part-{number:05d}.parquet", row_group_size=1 << 17)
    return sum(path.stat().st_size for path in folder.iterdir())


# -- The ways


def out_of_core(log: Path, out: Path, memory: int) -> dict[str, Any]:
    """Ours, in bounded memory."""
    from models.data.out_of_core.bounded_preparation import prepare_in_bounded_memory
    from models.data.out_of_core.memory_share import MemoryShare
    from models.data.preparation import PreparationConfig

    stages: dict[str, float] = {}
    told = time.monotonic()
    stage_before = ""

    def progress(stage: str, _fraction: float) -> None:
        nonlocal told, stage_before
        now = time.monotonic()
        stages[stage_before] = stages.get(stage_before, 0.0) + now - told
        told, stage_before = now, stage

    share = MemoryShare.of(memory)
    config = PreparationConfig(overlap="any")
    report = prepare_in_bounded_memory([str(log)], out, config, share, progress=progress, name="bench")
    rounded = {stage: round(seconds, 1) for stage, seconds in stages.items() if stage}
    return {"interactions": report.result.interactions, "stages": rounded, "threads": share.engine_threads}


def in_memory(log: Path, out: Path, memory: int) -> dict[str, Any]:  # noqa: ARG001
    """Ours, in memory."""
    from models.data.preparation import PreparationConfig, prepare

    report = prepare([str(log)], out, PreparationConfig(overlap="any"), name="bench")
    return {"interactions": report.result.interactions}


def by_pandas(log: Path, out: Path, memory: int) -> dict[str, Any]:  # noqa: ARG001
    """What a user would write with pandas."""
    import pandas as pd

    out.mkdir()
    rows = pd.read_parquet(log).drop_duplicates()

    def core(rows: pd.DataFrame) -> pd.DataFrame:
        while True:
            before = len(rows)
            rows = rows[rows.groupby("item")["user"].transform("size") >= MIN_INTERACTIONS]
            rows = rows[rows.groupby(["user", "domain"])["item"].transform("size") >= MIN_INTERACTIONS]
            if len(rows) == before:
                return rows

    rows = core(rows).sort_values(["user", "timestamp"], kind="stable")
    rows = core(rows.groupby("user").tail(MAX_LENGTH))
    items = rows[["domain", "item"]].drop_duplicates().sort_values("domain", kind="stable").reset_index(drop=True)
    items["token"] = items.index + 1
    rows = rows.merge(items[["item", "token"]], on="item", how="left")
    from_end = rows.groupby("user").cumcount(ascending=False)
    rows[from_end >= 2].groupby("user")["token"].agg(list).to_frame().to_parquet(out / "train.parquet")
    rows[from_end == 1][["user", "token"]].to_parquet(out / "validation.parquet")
    rows[from_end == 0][["user", "token"]].to_parquet(out / "test.parquet")
    items.to_parquet(out / "vocabulary.parquet")
    return {"interactions": len(rows)}


def by_polars(log: Path, out: Path, memory: int) -> dict[str, Any]:  # noqa: ARG001
    """What a user would write with Polars."""
    out.mkdir()
    rows = pl.read_parquet(log).unique(maintain_order=True)

    def core(rows: pl.DataFrame) -> pl.DataFrame:
        while True:
            before = len(rows)
            rows = rows.filter(pl.len().over("item") >= MIN_INTERACTIONS)
            rows = rows.filter(pl.len().over("user", "domain") >= MIN_INTERACTIONS)
            if len(rows) == before:
                return rows

    rows = core(rows).sort("user", "timestamp", maintain_order=True)
    rows = core(rows.group_by("user", maintain_order=True).tail(MAX_LENGTH))
    items = rows.select("domain", "item").unique(maintain_order=True).sort("domain", maintain_order=True)
    items = items.with_row_index("token", offset=1)
    rows = rows.join(items.select("item", "token"), on="item", maintain_order="left")
    sequences = rows.group_by("user", maintain_order=True).agg("token")
    sequences.select("user", pl.col("token").list.slice(0, pl.col("token").list.len() - 2)).write_parquet(
        out / "train.parquet"
    )
    sequences.select("user", pl.col("token").list.get(-2)).write_parquet(out / "validation.parquet")
    sequences.select("user", pl.col("token").list.get(-1)).write_parquet(out / "test.parquet")
    items.write_parquet(out / "vocabulary.parquet")
    return {"interactions": len(rows)}


WAYS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "out_of_core": out_of_core,
    "in_memory": in_memory,
    "pandas": by_pandas,
    "polars": by_polars,
}


# -- Measuring


@contextlib.contextmanager
def memory_group(memory: int) -> Iterator[Path | None]:
    """A cgroup of so many bytes for whoever writes its number into ``cgroup.procs``; None where none can be made."""
    versions = ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"))
    made = None
    for root, limit in versions:
        group = root / f"taesar-bench-{os.getpid()}"
        try:
            group.mkdir()
            if (group / limit).is_file():
                (group / limit).write_text(str(memory), encoding="ascii")
                made = group
                break
            group.rmdir()
        except OSError:
            continue
    try:
        yield made
    finally:
        if made is not None:
            made.rmdir()


def run_way(name: str, log: Path, out: Path, memory: int, group: Path | None) -> None:
    """In the child: do it, and print what it took as JSON."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    elif name == "out_of_core":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    start, cpu = time.perf_counter(), time.process_time()
    found = WAYS[name](log, out, memory)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    cpu = time.process_time() - cpu
    print(json.dumps({**found, "seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}))


def measured(name: str, log: Path, folder: Path, memory: int, group: Path | None) -> dict[str, Any]:
    """Time, memory and disk of one way, in a process of its own, which *group* bounds."""
    out = folder / name
    ended, most = threading.Event(), [0]

    def watch() -> None:
        before = _bytes_below(folder)
        while not ended.wait(0.5):
            most[0] = max(most[0], _bytes_below(folder) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    arguments = ["--way", name, "--log", str(log), "--out", str(out), "--memory", str(memory)]
    if group is not None:
        arguments += ["--group", str(group)]
    # Arrow's own pool claims 1 GiB of addresses at its start, which RLIMIT_DATA would count.
    pool = {"ARROW_DEFAULT_MEMORY_POOL": "system"} if name == "out_of_core" and group is None else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_prepare", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **pool},
    )
    ended.set()
    watcher.join()
    if done.returncode != 0:
        if done.returncode == -signal.SIGKILL:
            return {"failed": "killed: out of memory"}
        return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result_bytes = _bytes_below(out)
    return {
        **found,
        "seconds": round(found["seconds"], 1),
        "cpu_seconds": round(found["cpu_seconds"], 1),
        "peak_megabytes": round(found.pop("peak_bytes") / 1e6),
        "most_disk_megabytes": round(max(most[0], result_bytes) / 1e6),
        "result_megabytes": round(result_bytes / 1e6),
    }


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # temporary
    return total


def hashes(folder: Path) -> dict[str, str]:
    """Of every file but the manifest, which says when it was made."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "dataset.json"
    }


def main() -> None:
    """Write the log, run every way, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory", type=int, default=1_000_000_000, help="bytes that out_of_core may allocate")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        run_way(arguments.way, arguments.log, arguments.out, arguments.memory, arguments.group)
        return
    from benchmarks.measure import machine

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, memory_group(arguments.memory) as group:
        folder = Path(name)
        input_bytes = write_log(folder / "log", arguments.rows)
        print(f"synthetic log of {arguments.rows:,} rows: {input_bytes / 1e6:.0f} MB", flush=True)
        results: dict[str, Any] = {}
        for way in arguments.ways:
            if way == "in_memory" and arguments.rows > MOST_ROWS_IN_MEMORY:
                continue
            bound = group if way == "out_of_core" else None
            results[way] = measured(way, folder / "log", folder, arguments.memory, bound)
            print(way, results[way], flush=True)
        equal = None
        if all("seconds" in results.get(way, {}) for way in ("out_of_core", "in_memory")):
            equal = hashes(folder / "out_of_core") == hashes(folder / "in_memory")
    found = {
        "benchmark": "prepare",
        "synthetic": True,
        "rows": arguments.rows,
        "input_megabytes": round(input_bytes / 1e6),
        "limit_bytes": arguments.memory,
        "limit": "RLIMIT_DATA" if group is None else "cgroup",
        "same_bytes_as_in_memory": equal,
        "ways": results,
        "machine": machine(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""
`taesar train` at a vocabulary of a million items: what it foretells, and what it then takes.

    make bench-large-training
    make bench-large-training ARGS='--items 100000 --readers 320'

The log is synthetic: --readers users of --length interactions, whose sequences are trained, and users of one
interaction each who give the other items, so that an epoch is short while the tables are whole. Softmax over all items,
then sampled; each is one command in a process of its own, two epochs of the base and one of each expert. The last line
is JSON, with, of each: seconds to the first line, longest silence, forecast of the base's epochs over what they took,
forecast of memory over the peak, and predicted tokens a second (epochs of the base, validation included).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.measure import SEED, TAESAR, machine, rounded
from models.data.dataset import load_dataset

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 2
UNITS = {"MB": 1e6, "GB": 1e9}


def write_log(path: Path, num_items: int, readers: int, length: int) -> None:
    """Items of two domains; every one of them occurs."""
    generator = np.random.default_rng(SEED)
    read = generator.integers(0, num_items, readers * length)
    others = np.setdiff1d(np.arange(num_items), read)
    items = np.concatenate([read, others])
    users = np.concatenate([np.repeat(np.arange(readers), length), readers + np.arange(len(others))])
    columns = {"user": users, "item": items, "domain": items % 2, "timestamp": 1_300_000_000 + np.arange(len(items))}
    pl.DataFrame(columns).with_columns(
        pl.format("synthetic-user-{}", "user").alias("user"),
        pl.format("synthetic-item-{}", "item").alias("item"),
        pl.format("synthetic{}", "domain").alias("domain"),
    ).write_parquet(path)


def clock_seconds(text: str) -> int:
    """Seconds of minutes:seconds or hours:minutes:seconds."""
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def train(dataset: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """One `taesar train`: its lines with the second at which each came, and its peak memory."""
    command = [*TAESAR, "train", str(dataset), "--out", str(out), "--no-trial", "--schedule", "linear"]
    command += ["--epochs", str(EPOCHS), "--expert-epochs", "1", *options]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append((time.monotonic() - started, line.strip()))
        print(f"{lines[-1][0]:7.1f} s  {lines[-1][1]}", flush=True)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training ended with {status}")
    return {"lines": lines, "peak": usage.ru_maxrss * 1024, "seconds": time.monotonic() - started}


def bench(dataset: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """What one way foretells and takes."""
    found = train(dataset, out, options)
    lines: list[tuple[float, str]] = found["lines"]
    at = {match[1]: second for second, line in lines if (match := re.match(r"base, epoch (\d+)/", line))}
    foretold = next((line for _, line in lines if re.match(r"base: [\d,]+ of [\d,]+ steps took", line)), None)
    memory = next(match for _, line in lines if (match := re.search(r"at least ([\d.]+) (MB|GB) of memory", line)))
    prepared = load_dataset(dataset)
    tokens = int((np.maximum(1, prepared.train.lengths) - 1).sum())
    epochs_seconds = at[str(EPOCHS)] - at["0"]
    left = None if foretold is None else re.search(r"([\d:]+) left$", foretold)
    seconds = [0.0, *(second for second, _ in lines)]
    return {
        "seconds_to_first_line": lines[0][0],
        "longest_silence": max(later - earlier for earlier, later in pairwise(seconds)),
        "epochs_seconds": epochs_seconds,
        "forecast_over_taken": None if left is None else clock_seconds(left[1]) / epochs_seconds,
        "memory_forecast_over_peak": float(memory[1]) * UNITS[memory[2]] / found["peak"],
        "peak_megabytes": found["peak"] / 1e6,
        "tokens_per_second": EPOCHS * tokens / epochs_seconds,
        "seconds": found["seconds"],
    }


def main() -> None:
    """Both ways; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--readers", type=int, default=160)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--draws", type=int, default=8192, help="of the sampled softmax")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_log(folder / "log.parquet", arguments.items, arguments.readers, arguments.length)
        prepare = ["prepare", str(folder / "log.parquet"), "--out", str(folder / "data"), "--overlap", "any"]
        thresholds = ["--min-item-interactions", "1", "--min-user-interactions", "1", "--quiet"]
        subprocess.run([*TAESAR, *prepare, *thresholds], cwd=ROOT, check=True)
        ways = {"whole": [], "sampled": ["--sampled-softmax", str(arguments.draws)]}
        rows = {name: bench(folder / "data", folder / name, options) for name, options in ways.items()}
    print(json.dumps({"benchmark": "large-training", "machine": machine(), **vars(arguments), **rounded(rows)}))


if __name__ == "__main__":
    main()

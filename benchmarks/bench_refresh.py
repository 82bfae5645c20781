"""
Days of refreshes next to trainings from nothing: how good the bundle is, and what it takes.

    python -m benchmarks.bench_refresh
    python -m benchmarks.bench_refresh --log amazon4/interactions.csv.gz --days 10 --folder days
    python -m benchmarks.bench_refresh --days 2 --against every --train '--epochs 3 --expert-epochs 1 --width 32'

The log is cut by time: the first --start share of its rows is day 0, on which both train from nothing; the others are
as many days of equally many rows. Every day joins the dataset (`taesar prepare --extend`), and the bundle is refreshed
(`taesar train --init`); on the last day (--against last) or on every one, another is trained from nothing on the same
dataset. Both target experts rank the test items of every domain, after mixed histories and among items that the user
has not had. With --folder the same command goes on where it was stopped. The last line is JSON: NDCG@10 of both, the
relative difference with its 95 % interval over users of all domains, and the seconds of processor time of both
trainings, which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shlex
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from benchmarks.measure import CPU, TAESAR, machine, rounded
from models.bundle import load_bundle
from models.data.dataset import load_dataset
from models.evaluation.arms import build_arm
from models.evaluation.bootstrap import bootstrap_gains
from models.evaluation.ranking import rank_queries
from models.evaluation.served import DecoderScorer
from models.ranking_metrics import ndcg_at_k

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "food-kitchen-sample.csv.gz"
SEED = 2025
Row = dict[str, Any]


def days_of(log: Path, folder: Path, start: float, days: int) -> list[Path]:
    """The log as one file a day, in order of time; the first is the long one."""
    table = pl.read_csv(log)
    time_column = next(name for name in table.columns if name.startswith("time"))
    table = table.sort(time_column, maintain_order=True)
    bounds = np.linspace(start, 1.0, days + 1) * len(table)
    ends = [0, *np.round(bounds).astype(int).tolist()]
    paths = []
    for day, (first, last) in enumerate(pairwise(ends)):
        paths.append(folder / f"day-{day:02d}.csv")
        table[first:last].write_csv(paths[-1])
    return paths


def cpu_seconds_of_children() -> float:
    """Processor time of all commands that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def taesar(command: str, given: Path, out: Path, *options: object) -> float:
    """Run one command that makes *out*, unless that is there already; the CPU seconds that it took."""
    noted = out.with_name(f"{out.name}.cpu-seconds")
    if not noted.is_file():
        before = cpu_seconds_of_children()
        arguments = [command, given, "--out", out, *options, "--quiet"]
        subprocess.run([*TAESAR, *map(str, arguments)], cwd=ROOT, check=True)
        noted.write_text(str(cpu_seconds_of_children() - before), encoding="ascii")
    return float(noted.read_text(encoding="ascii"))


def expert_values(bundle_folder: Path, dataset_folder: Path) -> npt.NDArray[np.float64]:
    """NDCG@10 of every test item that comes after an item of its domain, domain by domain."""
    dataset, bundle = load_dataset(dataset_folder), load_bundle(bundle_folder)
    values = []
    for domain in dataset.vocabulary.domains:
        arm = build_arm(dataset, domain, "mixed", None)
        queries = arm.test.at(np.flatnonzero(arm.test.num_target_items > 0))
        scorer = DecoderScorer(bundle.expert_parts(domain))
        ranks = torch.tensor(rank_queries(scorer, queries, arm, CPU).unseen)
        values.append(ndcg_at_k(ranks, 10).numpy().astype(np.float64))
    return np.concatenate(values)


def bench(log: Path, folder: Path, days: int, start: float, against: str, prepare: str, train: str) -> list[Row]:
    """One row a day on which both are compared."""
    rows = []
    paths = days_of(log, folder, start, days)
    from_nothing = ("--no-trial", *shlex.split(train))
    taesar("prepare", paths[0], folder / "data-00", *shlex.split(prepare))
    first = taesar("train", folder / "data-00", folder / "refreshed-00", *from_nothing)
    print(f"day 0 trained in {first:.0f} s of CPU", flush=True)
    for day, path in enumerate(paths[1:], start=1):
        data, before = folder / f"data-{day:02d}", folder / f"refreshed-{day - 1:02d}"
        refreshed, anew = folder / f"refreshed-{day:02d}", folder / f"anew-{day:02d}"
        taesar("prepare", path, data, "--extend", folder / f"data-{day - 1:02d}")
        seconds = taesar("train", data, refreshed, "--init", before)
        print(f"day {day} refreshed in {seconds:.0f} s of CPU", flush=True)
        if against == "last" and day < days:
            continue
        seconds_anew = taesar("train", data, anew, *from_nothing)
        ours_N, theirs_N = expert_values(refreshed, data), expert_values(anew, data)
        [(_, relative)] = bootstrap_gains((ours_N - theirs_N)[:, None], theirs_N[:, None], seed=SEED)
        row: Row = {
            "day": day,
            "users": len(ours_N),
            "ndcg_at_10": {"refreshed": float(ours_N.mean()), "anew": float(theirs_N.mean())},
            "relative": None if relative is None else dataclasses.asdict(relative),
            "cpu_seconds": {"refreshed": seconds, "anew": seconds_anew},
            "share_of_time": seconds / seconds_anew,
        }
        rows.append(row)
        print(json.dumps(rounded(row)), flush=True)
    return rows


def main() -> None:
    """Print a line a step; the last is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=SAMPLE, help="one CSV with a column that begins with time")
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--start", type=float, default=0.8, help="share of the rows that make day 0")
    parser.add_argument(
        "--against", choices=("last", "every"), default="last", help="days with a training from nothing"
    )
    parser.add_argument("--prepare", default="--overlap any", help="options of day 0's `taesar prepare`")
    parser.add_argument("--train", default="", help="options of a `taesar train` from nothing")
    parser.add_argument("--folder", type=Path, help="where to work, and to go on from; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        asked = (options.days, options.start, options.against, options.prepare, options.train)
        rows = bench(options.log, folder.resolve(), *asked)
    print(json.dumps({"benchmark": "refresh", "machine": machine(), "rows": rounded(rows)}))


if __name__ == "__main__":
    main()

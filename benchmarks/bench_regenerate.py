"""
Bulk regeneration: this process next to actors of Ray on the same cores, memory, and what a kill costs.

    python -m benchmarks.bench_regenerate                         # a million synthetic sequences: hours
    python -m benchmarks.bench_regenerate --sequences 20000 --items 2000

Sequences are synthetic (uniform items, log-normal lengths) and weights random: good for speed and sameness, and for no
claim about quality. Four runs, each of a process of its own: a quarter of the sequences, all of them, all of them by
Ray with --actors of one thread each, and that once more with an actor killed after a fifth of the parts, the driver
after two fifths, and resumed. All must write the same bytes. The last line is JSON.

`overhead_percent` compares the seconds of making parts with those of the local path, which has as many threads as Ray
has actors; negative where the actors are faster. `overhead_percent_of_cpu` compares the processor time of the whole
command, Ray's own processes and the loading of every actor included: the figure for a machine shared with others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.measure import MEAN_LENGTH, SEED, machine, peak_megabytes, random_decoder, random_sequences, rounded
from models.bundle import describe_bundle, load_bundle, save_bundle
from models.composite.engines import Engine, LocalEngine
from models.composite.folder import CompositeProgress, PartSize, write_composite
from models.composite.ray_engine import RayEngine
from models.composite.work_folder import work_folder_of
from models.data.dataset import FORMAT_VERSION, MANIFEST, Sequences, describe_dataset, sha256_of
from models.data.dataset_tables import DatasetTables
from models.data.splits import Split
from models.decoding.rules import DEFAULT_RULE
from models.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("synthetic-0", "synthetic-1", "synthetic-2")
USERS_AT_A_TIME = 1 << 15


def write_dataset(folder: Path, vocabulary: Vocabulary, num_sequences: int, mean_length: int) -> None:
    """A prepared dataset of random sequences, written a portion at a time."""
    folder.mkdir(parents=True)
    with DatasetTables(folder, by_time=False) as tables:
        for first in range(0, num_sequences, USERS_AT_A_TIME):
            users = range(first, min(num_sequences, first + USERS_AT_A_TIME))
            drawn = random_sequences(len(users), vocabulary.num_items, mean_length=mean_length, seed=SEED + first)
            whole = Sequences.from_lists(drawn)
            last = whole.offsets[1:]
            tables.add_users(
                Split(
                    user_ids=pl.Series([f"synthetic-{user:09d}" for user in users]),
                    train=whole.first(whole.lengths - 2),
                    validation_U=whole.token_ids[last - 2],
                    test_U=whole.token_ids[last - 1],
                    later=None,
                    before_test_U=np.zeros(0, dtype=np.int64),
                    times_N=np.arange(len(whole.token_ids), dtype=np.float64),
                    offsets=whole.offsets,
                )
            )
        for domain, items, token_range in zip(
            vocabulary.domains, vocabulary.item_ids, vocabulary.token_ranges, strict=True
        ):
            tables.add_items(token_range.first, pl.Series([domain] * len(items)), pl.Series(items))
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    fingerprint = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    manifest = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "files": files, "synthetic": True}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def child(options: argparse.Namespace) -> None:
    """One run of the work; its last line is JSON."""
    torch.set_num_threads(options.actors)
    engine: Engine = LocalEngine() if options.child == "local" else RayEngine(actors=options.actors, device="cpu")
    bundle = options.folder / "bundle"
    started = time.perf_counter()
    moments: dict[str, float] = {}

    def hear(done: int, total: int) -> None:
        moments.setdefault("first" if done else "begin", time.perf_counter())
        if done == total:
            moments["parts"] = time.perf_counter()

    summary = write_composite(
        describe_dataset(options.dataset),
        load_bundle(bundle) if options.child == "local" else describe_bundle(bundle),
        target=DOMAINS[0],
        rule=options.rule,
        out=options.out,
        interactions="all",
        engine=engine,
        part_size=PartSize(users=options.part_users),
        progress=CompositeProgress(on_users=hear),
    )
    ended = time.perf_counter()
    result = {
        "seconds": ended - started,
        "seconds_until_first_result": moments.get("first", ended) - moments.get("begin", started),
        "seconds_of_parts": moments["parts"] - moments.get("begin", started),
        "seconds_of_files": ended - moments["parts"],
        "cpu_seconds": time.process_time(),
        "peak_megabytes": peak_megabytes(),
        "parts": summary.parts,
        "parts_resumed": summary.parts_resumed,
        "interactions": sum(summary_counts(summary)),
    }
    print(json.dumps(result))


def summary_counts(summary: Any) -> list[int]:
    """Interactions read, by what became of them."""
    return [getattr(summary, name) for name in ("kept", "replaced", "deleted", "unknown", "unknown_kept", "truncated")]


def processes_below(ancestor: int) -> dict[int, str]:
    """Command lines of all processes below one."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue

    def is_below(process: int) -> bool:
        return process == ancestor or (process in parents and is_below(parents[process]))

    return {process: name for process, name in names.items() if process != ancestor and is_below(process)}


def actors_of(driver: int) -> list[int]:
    """Processes of a driver's actors."""
    return [process for process, name in processes_below(driver).items() if name.startswith("ray::_RemoteMaker")]


def cpu_seconds_of(process: int) -> float:
    """Processor time of one process so far; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def resident_megabytes(process: int) -> int:
    """The peak of one process so far; 0 where it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    except (OSError, IndexError):
        return 0


class Run:
    """A run of the work in a process of its own."""

    def __init__(self, options: argparse.Namespace, engine: str, dataset: str, out: str) -> None:
        self.out = options.folder / out
        command = [sys.executable, "-m", "benchmarks.bench_regenerate", "--child", engine]
        command += ["--folder", options.folder, "--dataset", options.folder / dataset, "--out", self.out]
        command += ["--part-users", options.part_users, "--actors", options.actors, "--rule", options.rule]
        self.process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.actor_megabytes = 0
        self.cpu_seconds: dict[int, float] = {}

    def watch(self, until: Callable[[], bool]) -> None:
        """Wait for the end of the process or for something else, and note what actors hold."""
        while self.process.poll() is None and not until():
            for process, name in processes_below(self.process.pid).items():
                self.cpu_seconds[process] = max(self.cpu_seconds.get(process, 0.0), cpu_seconds_of(process))
                if name.startswith("ray::_RemoteMaker"):
                    self.actor_megabytes = max(self.actor_megabytes, resident_megabytes(process))
            time.sleep(0.25)

    def parts_made(self) -> int:
        """Parts in the work folder."""
        return len(list(work_folder_of(self.out).glob("part-*")))

    def result(self) -> dict[str, Any]:
        """What the run says of itself."""
        self.watch(lambda: False)
        out = self.process.stdout.read() if self.process.stdout else ""
        assert self.process.returncode == 0, f"a run failed with {self.process.returncode}"
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        if self.actor_megabytes:
            result["actor_peak_megabytes"] = self.actor_megabytes
        result["cpu_seconds"] += sum(self.cpu_seconds.values())
        return result


def digest_of(folder: Path) -> str:
    """A hash of every file but the summary."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "summary.json":
            digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def killed(options: argparse.Namespace, num_parts: int) -> dict[str, Any]:
    """A run by Ray of which an actor is killed, then the driver; and the run that goes on from there."""
    run = Run(options, "ray", "all", "killed")
    started = time.perf_counter()
    run.watch(lambda: run.parts_made() >= max(1, num_parts // 5))
    os.kill(actors_of(run.process.pid)[0], signal.SIGKILL)
    at_kill = run.parts_made()
    run.watch(lambda: run.parts_made() >= max(at_kill + 2, 2 * num_parts // 5))
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    seconds = time.perf_counter() - started
    resumed = Run(options, "ray", "all", "killed").result()
    return {"actor_killed_at_part": at_kill, "seconds_before_the_driver_was_killed": seconds, "resumed": resumed}


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """All four runs."""
    items = [f"{number}" for number in range(options.items)]
    vocabulary = Vocabulary(DOMAINS, (tuple(items), tuple(items), tuple(items)))
    networks = [random_decoder(vocabulary.num_items, seed) for seed in range(1 + len(DOMAINS))]
    save_bundle(options.folder / "bundle", vocabulary=vocabulary, base=networks[0], experts=networks[1:], provenance={})
    for name, count in (("quarter", options.sequences // 4), ("all", options.sequences)):
        write_dataset(options.folder / name, vocabulary, count, options.mean_length)
    runs: dict[str, Any] = {}
    for name, engine, dataset in (("quarter", "local", "quarter"), ("local", "local", "all"), ("ray", "ray", "all")):
        runs[name] = Run(options, engine, dataset, f"out-{name}").result()
        print(f"{name}: {json.dumps(rounded(runs[name]))}", flush=True)
    runs["killed"] = killed(options, runs["ray"]["parts"])
    digests = [digest_of(options.folder / name) for name in ("out-local", "out-ray", "killed")]
    assert len(set(digests)) == 1, "local, Ray and resumed results differ"
    local, ray = runs["local"], runs["ray"]
    return {
        "equal_bytes": True,
        "sequences_per_second": {name: options.sequences / runs[name]["seconds_of_parts"] for name in ("local", "ray")},
        "overhead_percent": 100 * (ray["seconds_of_parts"] / local["seconds_of_parts"] - 1),
        "overhead_percent_of_cpu": 100 * (ray["cpu_seconds"] / local["cpu_seconds"] - 1),
        "overhead_percent_of_all": 100 * (ray["seconds"] / local["seconds"] - 1),
        "megabytes_written": sum(f.stat().st_size for f in (options.folder / "out-local").rglob("*.*")) / 1e6,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=10_000, help="of each of three domains")
    parser.add_argument("--mean-length", type=int, default=MEAN_LENGTH)
    parser.add_argument("--part-users", type=int, default=PartSize().users)
    parser.add_argument("--actors", type=int, default=2, help="of Ray, and threads of the local path")
    parser.add_argument("--rule", default=DEFAULT_RULE)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    parser.add_argument("--child", choices=("local", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        result = bench(options)
    shape = {name: getattr(options, name) for name in ("sequences", "items", "mean_length", "part_users", "actors")}
    shape |= {"rule": options.rule, "domains": len(DOMAINS)}
    print(json.dumps(rounded({"benchmark": "regenerate", "synthetic": True, **shape, **result, "machine": machine()})))


if __name__ == "__main__":
    main()

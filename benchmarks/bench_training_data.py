"""
What training holds of a dataset: read from a file that the kernel pages in, and in memory.

    make bench-training-data ARGS='--rows 10000000'
    make bench-training-data ARGS='--dataset FOLDER'

Without a dataset, that of bench_prepare's synthetic log. Each way is a process of its own that opens the dataset and
makes every batch of one epoch of the base. Peaks are of memory that is the process's own (RssAnon, looked at every 5
ms), without pages of files, which the kernel takes back when it needs them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_prepare import out_of_core, write_log
from benchmarks.measure import machine
from models.data.dataset import ChosenSequences, describe_dataset, load_dataset
from models.network.losses import next_item_targets
from models.training.objective import PredictionObjective, choose_held_out, trainable_rows
from models.training.training_data import StoredData, TrainableData
from models.vocabulary import TokenRange

BATCH = 32
MAX_LENGTH = 128


def opened(way: str, folder: Path) -> TrainableData:
    """The dataset, *held* or *stored*."""
    return load_dataset(folder) if way == "held" else StoredData.of(describe_dataset(folder), folder.parent)


def own_bytes() -> int:
    """Memory of this process that is no page of a file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def run_way(way: str, folder: Path) -> dict[str, Any]:
    """In the child: open it, make an epoch's batches, and what that took."""
    ended, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, own_bytes())

    before = own_bytes()
    watcher = threading.Thread(target=watch, daemon=True)  # an error ends it, too
    watcher.start()
    started = time.perf_counter()
    data = opened(way, folder)
    seconds = {"open": time.perf_counter() - started}
    after_opening, peak_of_opening = own_bytes(), peak
    all_items = TokenRange(1, data.vocabulary.num_items)
    objective = PredictionObjective(
        name="base",
        fingerprint=data.fingerprint,
        sequences=ChosenSequences(data.train, trainable_rows(data.train)),
        targets_of=next_item_targets,
        candidates=all_items,
        validation=choose_held_out(data.train, data.validation, all_items),
        max_length=MAX_LENGTH,
        batch_size=BATCH,
        seed=0,
    )
    started = time.perf_counter()
    items = sum(int((batch.token_ids_BT != 0).sum()) for batch in objective.batches(1))
    seconds["epoch"] = time.perf_counter() - started
    ended.set()
    watcher.join()
    sizes = {"opened": after_opening, "peak_of_opening": peak_of_opening, "peak": peak}
    return {
        "users": len(data.train),
        "items_read": items,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "own_megabytes": {name: round((size - before) / 1e6) for name, size in sizes.items()},
    }


def main() -> None:
    """Both ways; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--way", choices=("held", "stored"), help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path, help="folder of `taesar prepare`, instead of a synthetic one")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run_way(arguments.way, arguments.dataset)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        dataset = arguments.dataset or Path(temporary) / "dataset"
        if arguments.dataset is None:
            write_log(Path(temporary) / "log", arguments.rows)
            out_of_core(Path(temporary) / "log", dataset, 1_000_000_000)
        rows = {}
        for way in ("held", "stored"):
            command = [sys.executable, "-m", "benchmarks.bench_training_data", "--way", way, "--dataset", str(dataset)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[way] = json.loads(done.stdout.splitlines()[-1])
            print(way, rows[way], flush=True)
    data = {"synthetic": True, "rows": arguments.rows} if arguments.dataset is None else {"dataset": str(dataset)}
    found = {"benchmark": "training-data", **data, "ways": rows}
    print(json.dumps({**found, "machine": machine()}))


if __name__ == "__main__":
    main()

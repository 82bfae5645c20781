"""
A training step by several processes of `torchrun`: what summing the gradients costs, whole tables and rows alone.

    make bench-processes
    make bench-processes ARGS='--items 20000 100000 --steps 3'

Each process takes its part of every batch on one thread, over Gloo on the CPU: one process takes all of it. With the
softmax over all items the gradient of the whole item table goes over the wire, with a sampled one the rows that the
step read. The last line is JSON: the median seconds of a step and of the summing in it, by the slowest process; what a
process sends; and the speed beside one process (2 is perfect with two). All processes are on this machine, so the wire
is its memory, and they share what it can move.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_training import ours
from benchmarks.measure import CPU, machine, random_sequences, rounded
from models.data.dataset import pad_right
from models.training import distributed

ROOT = Path(__file__).resolve().parent.parent
BATCH = 32
DRAWS = 8192


def steps(num_items: int, num_steps: int, *, sampled: bool) -> dict[str, float]:
    """One process's part: median seconds of its steps after the first, which is not counted."""
    with distributed.join_processes(CPU):
        side = ours(num_items, num_draws=DRAWS if sampled else None)
        own = random_sequences(BATCH, num_items)[distributed.rank() :: distributed.num_processes()]
        whole_BL = pad_right(own, max(map(len, own)))
        taken, summing, sent = [], [], 0
        for _ in range(num_steps + 1):
            distributed.wait_for_all()
            started = time.perf_counter()
            loss = side.loss(side.decoder, whole_BL)
            side.optimiser.zero_grad()
            loss.backward()
            if not taken:  # on the step that is not counted
                gradients = [one.grad for one in side.decoder.parameters() if one.grad is not None]
                sent = sum(one.coalesce().values().nbytes if one.is_sparse else one.nbytes for one in gradients)
            before = time.perf_counter()
            distributed.sum_gradients(side.decoder)
            summing.append(time.perf_counter() - before)
            side.optimiser.step(1e-3)
            taken.append(time.perf_counter() - started)
        slowest = [torch.tensor([statistics.median(one[1:])]) for one in (taken, summing)]
        if distributed.num_processes() > 1:
            for value in slowest:
                torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return {"step": float(slowest[0]), "summing": float(slowest[1]), "megabytes": sent / 1e6}


def bench(num_items: int, num_steps: int, num_processes: int, *, sampled: bool) -> dict[str, Any]:
    """The same by so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += ["-m", "benchmarks.bench_processes", "--items", str(num_items), "--steps", str(num_steps), "--part"]
    command += ["sampled" if sampled else "whole"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Every size and softmax by one process and by two; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", choices=("whole", "sampled"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        torch.set_num_threads(1)
        result = steps(arguments.items[0], arguments.steps, sampled=arguments.part == "sampled")
        if os.environ["RANK"] == "0":
            print(json.dumps(result))
        return
    rows = []
    for num_items in arguments.items:
        for sampled in (False, True):
            alone, together = (
                bench(num_items, arguments.steps, number, sampled=sampled) for number in (1, arguments.processes)
            )
            row = {"items": num_items, "softmax": "sampled" if sampled else "whole", "alone": alone}
            rows.append({**row, "together": together, "times_as_fast": alone["step"] / together["step"]})
            print(json.dumps(rounded(rows[-1])), flush=True)
    result = {"benchmark": "processes", "machine": machine(), "processes": arguments.processes, "rows": rounded(rows)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

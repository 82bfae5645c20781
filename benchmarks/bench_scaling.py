"""
What a source position costs as users, domains, lengths and items grow: flat in the first three, linear in the last.

    python -m benchmarks.bench_scaling
    python -m benchmarks.bench_scaling --vocabulary 32000 --rounds 5

The last line is JSON. Every curve varies one quantity around 32 sequences of 43 items on average, four domains and
the given vocabulary; its points are timed in turn in one process, in milliseconds per source position. `decisions` is
the time less that of the same call with 64 items, in which there is next to nothing to decide: what encoder and
assembly cost. `spread` is the largest point over the smallest; for items, of the points divided by the items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.measure import (
    BATCH,
    MEAN_LENGTH,
    Clock,
    interleaved_seconds,
    machine,
    peak_megabytes,
    random_bundle,
    random_sequences,
    rounded,
)
from models.decoding.regenerator import Regenerator

FEW_ITEMS = 64


@dataclass(frozen=True)
class Shape:
    """One point of a curve."""

    num_items: int
    num_sequences: int = BATCH
    num_domains: int = 4
    mean_length: int = MEAN_LENGTH


CURVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "users": ("num_sequences", (16, 64, 256)),
    "domains": ("num_domains", (2, 4, 8)),
    "length": ("mean_length", (16, 43, 100)),
}
# Shares of the vocabulary.
ITEM_FACTORS = (0.25, 0.5, 1.0, 2.0)


def program(shape: Shape) -> tuple[Callable[[], object], int]:
    """A call that regenerates a batch of this shape, and its number of scored source positions."""
    regenerator = Regenerator(random_bundle(shape.num_items, shape.num_domains), "paper")
    sequences = random_sequences(shape.num_sequences, shape.num_items, mean_length=shape.mean_length)
    target = regenerator.bundle.vocabulary.domains[0]
    results = regenerator.regenerate(sequences, target)
    num_scored = sum(int(np.count_nonzero(result.steps.positions > 0)) for result in results)
    return lambda: regenerator.regenerate(sequences, target), num_scored


def curve(shapes: list[Shape], values: list[int], rounds: int, clock: Clock) -> dict[str, Any]:
    """Milliseconds per source position at every value: the whole call, and the decisions alone."""
    whole = [program(shape) for shape in shapes]
    without = [program(replace(shape, num_items=FEW_ITEMS)) for shape in shapes]
    calls = {f"whole_{value}": call for value, (call, _) in zip(values, whole, strict=True)}
    calls |= {f"without_{value}": call for value, (call, _) in zip(values, without, strict=True)}
    seconds = interleaved_seconds(calls, rounds, clock)
    total, decisions = [], []
    for value, (_, num_scored), (_, num_without) in zip(values, whole, without, strict=True):
        total.append(1e3 * seconds[f"whole_{value}"] / num_scored)
        decisions.append(total[-1] - 1e3 * seconds[f"without_{value}"] / num_without)
    return {"values": values, "total": total, "decisions": decisions, "spread": max(decisions) / min(decisions)}


def bench(num_items: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """All curves."""
    around = Shape(num_items)
    curves = {
        name: curve([replace(around, **{field: value}) for value in values], list(values), rounds, clock)
        for name, (field, values) in CURVES.items()
    }
    sizes = [round(num_items * factor) for factor in ITEM_FACTORS]
    items = curve([Shape(size) for size in sizes], sizes, rounds, clock)
    per_item = [value / size for value, size in zip(items["decisions"], sizes, strict=True)]
    curves["items"] = {**items, "spread": max(per_item) / min(per_item)}
    return curves


def main() -> None:
    """Run every curve; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    curves = rounded(bench(arguments.vocabulary, arguments.rounds, arguments.clock))
    for name, points in curves.items():
        print(name, points)
    result = {"benchmark": "scaling", "machine": machine(), "clock": arguments.clock, "curves": curves}
    print(json.dumps({**result, "vocabulary": arguments.vocabulary, "peak_megabytes": peak_megabytes()}))


if __name__ == "__main__":
    main()

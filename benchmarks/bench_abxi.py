"""
Our ABXI next to the figures that its authors publish, on their own Food-Kitchen and by their measure.

    python -m benchmarks.bench_abxi --log amazon-food-kitchen/interactions.csv.gz --folder abxi --seeds 3

The log is the authors' (7,144 users in both domains, at most 50 interactions each); nothing of it is dropped. As with
them, each user's last item is tested and the one before chooses the epoch, the model has their size, and an item is
ranked among 999 of its domain that the user has not had, drawn at random. What is drawn is not the items but how many
of them lie before the tested one, which has the hypergeometric distribution.

Otherwise than with them: a softmax over the whole domain instead of 128 negatives of each; a rate of 1e-3 that falls at
plateaus and batches of 32, with a weight decay to match, instead of 1e-4, 256 and a decay of 5; each domain keeps its
own best epoch, by NDCG@10 among all of its items, instead of one epoch by the sum of both MRRs; one more feed-forward
layer and a norm of the input, as in the code released with the paper of Taesar; and what ``models.recommenders.abxi``
lists. With --folder the same command goes on where it was stopped. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import CPU, SEED, machine, rounded
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.evaluation.arms import Arm, build_arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.configuration import tuned_config, with_epochs
from models.evaluation.ranking import rank_queries
from models.evaluation.trained import Trainings
from models.ranking_metrics import hit_rate_at_k, ndcg_at_k
from models.recommenders.abxi import ABXIConfig
from models.training.loop import EpochReport, Silent

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "food-kitchen-sample.csv.gz"
NUM_OTHERS = 999
METRICS = ("hr_at_5", "hr_at_10", "ndcg_at_10", "mrr")
# Mean and standard deviation over five seeds, from the README of github.com/DiMarzioBian/ABXI, in the order of METRICS.
AUTHORS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "food": {"mean": (0.2519, 0.3243, 0.1971, 0.1655), "std": (0.0029, 0.0015, 0.0019, 0.0026)},
    "kitchen": {"mean": (0.1745, 0.2438, 0.1427, 0.1219), "std": (0.0024, 0.0037, 0.0023, 0.0017)},
}
# Of the authors' command for this log; two heads and one block, as theirs.
SIZE = ABXIConfig(
    width=256,
    inner_width=680,
    num_layers=1,
    num_heads=2,
    max_length=50,
    dropout=0.5,
    attention_dropout=0.0,
    domain_rank=16,
    invariant_rank=64,
)
# Without it, 5 and 12 % less of food's NDCG@10 and HR@10 (docs/experiments/weight-decay.md).
WEIGHT_DECAY = 1.0
Row = dict[str, Any]


class Lines(Silent):
    """A line an epoch."""

    def on_epoch(self, report: EpochReport) -> None:
        """Print it."""
        if report.epoch and report.metric is not None:
            told = f"NDCG@10 {report.metric:.4f}, {report.seconds:.0f} s"
            print(f"{report.stage}, epoch {report.epoch}: {told}", flush=True)


def sampled_ranks(
    ranks_N: npt.NDArray[np.int64], others_N: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """
    Where items stand among ``NUM_OTHERS`` random others instead of all.

    Args:
        ranks_N: from 1, among all items that the user has not had.
        others_N: how many of those there are beside the ranked one.
        rng: draws how many of the items before the ranked one are among the random ones.
    """
    before_N = ranks_N - 1
    return 1 + rng.hypergeometric(before_N, others_N - before_N, np.minimum(NUM_OTHERS, others_N))


def measures(ranks_N: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """HR@5, HR@10, NDCG@10 and MRR, which the authors do not cut."""
    ranks = torch.from_numpy(ranks_N)
    gains = hit_rate_at_k(ranks, 5), hit_rate_at_k(ranks, 10), ndcg_at_k(ranks, 10), 1 / ranks.double()
    return tuple(float(one_N.mean()) for one_N in gains)


def tested(arm: Arm, ranks_N: npt.NDArray[np.int64], seed: int) -> tuple[float, ...]:
    """The authors' measures of an arm's test items, ranked as *ranks_N* say among all that is unseen."""
    others_N = len(arm.candidates) - 1 - arm.test.seen.lengths
    return measures(sampled_ranks(ranks_N, others_N, np.random.default_rng(seed)))


def bench(
    dataset: Dataset, folder: Path, seeds: Sequence[int], *, decay: float, epochs: int | None, size: ABXIConfig
) -> list[Row]:
    """One row a domain."""
    training = dataclasses.replace(tuned_config().training, weight_decay=decay)
    config = EvaluationConfig(training=training, recommenders={"abxi": size})
    config = config if epochs is None else with_epochs(config, epochs)
    rows = []
    for domain in dataset.vocabulary.domains:
        arm = build_arm(dataset, domain, "mixed", None)
        trainings = Trainings(build_arm(dataset, domain, "original", None), config, folder / "cells", CPU)
        found, ended = [], []
        for seed in seeds:
            trained = trainings.train("abxi", arm, seed, Lines())
            ranks_N = np.asarray(rank_queries(trained.module, arm.test, arm, CPU).unseen)
            found.append(tested(arm, ranks_N, seed))
            ended.append({"best": trained.result.best_epoch, "last": trained.result.epochs[-1].epoch})
            print(domain, seed, dict(zip(METRICS, found[-1], strict=True)), ended[-1], flush=True)
        ours = {"mean": np.mean(found, axis=0), "std": np.std(found, axis=0)}
        authors = AUTHORS.get(domain)
        rows.append(
            {
                "domain": domain,
                "users": len(arm.test),
                "ours": {name: _named(values) for name, values in ours.items()},
                "authors": None if authors is None else {name: _named(values) for name, values in authors.items()},
                "ratio": None if authors is None else _named(ours["mean"] / np.asarray(authors["mean"])),
                "epochs": ended,
            }
        )
    return rows


def _named(values: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def prepared(log: Path, folder: Path) -> Dataset:
    """The whole log as a dataset; ties as it has them, as the authors' sequences."""
    out = folder / "data"
    if not out.is_dir():
        whole = PreparationConfig(min_user_interactions=1, min_item_interactions=1, max_length=50, ties="input")
        prepare(log, out, whole)
    return load_dataset(out)


def main() -> None:
    """Print a line an epoch; the last is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=SAMPLE, help="the authors' log, or a part of it")
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings")
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY)
    parser.add_argument("--epochs", type=int, help="at most so many; as many as it takes by default")
    parser.add_argument("--folder", type=Path, help="where to work, and to go on from; a temporary one by default")
    options = parser.parse_args()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(SEED, SEED + options.seeds)
        dataset, decay = prepared(options.log.resolve(), folder), options.weight_decay
        rows = bench(dataset, folder, seeds, decay=decay, epochs=options.epochs, size=SIZE)
    facts = {"weight_decay": decay, "cpu_seconds": time.process_time() - started, "machine": machine()}
    print(json.dumps(rounded({"benchmark": "abxi", "rows": rows, **facts})))


if __name__ == "__main__":
    main()

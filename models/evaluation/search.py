"""
A small search for a recommender's learning rate, batch size and dropout, on validation items of one target.

Around the hyper-parameters at hand, one step after the other, each kept where the best epoch's NDCG@10 is better:
dropout 0.3; twice the rate; half of it, if twice was no better; batches of four times as many rows at twice the rate.
That is five trainings at most, each to its own plateau. They are of the arm ``original``, so that what is chosen suits
the baseline, and every other arm then takes the same; of models of mixed rows, which have no other, of arm ``mixed``.
Test items are not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.evaluation.arms import Arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.configuration import Tables
from models.evaluation.trained import Trainings
from models.training.loop import Progress

LOWER_DROPOUT = 0.3
RATE_STEP = 2.0
BATCH_STEP = 4
# The start, and what the steps may add.
MOST_TRIALS = 5


@dataclass(frozen=True)
class Point:
    """Where the search may stand; ``dropout`` is None for a recommender that has none."""

    learning_rate: float
    batch_size: int
    dropout: float | None


@dataclass(frozen=True)
class SearchTrial:
    """One training: where, its best validation NDCG@10, at which epoch, of how many."""

    point: Point
    ndcg_at_10: float
    best_epoch: int
    epochs: int


@dataclass(frozen=True)
class Search:
    """What was tried for one recommender, in order."""

    recommender: str
    trials: tuple[SearchTrial, ...]

    @property
    def best(self) -> SearchTrial:
        """The first of the best."""
        return max(self.trials, key=lambda trial: trial.ndcg_at_10)

    def as_tables(self) -> Tables:
        """Where the best is, as the tables of a ``--config`` file."""
        best, name = self.best.point, self.recommender
        training = {"learning_rate": best.learning_rate, "batch_size": best.batch_size}
        tables: dict[str, dict[str, Any]] = {"training": {name: training}}
        if best.dropout is not None:
            tables["recommender"] = {name: {"dropout": best.dropout}}
        return tables


def search(
    recommender: str,
    trainings: Trainings,
    *,
    seed: int,
    arm: Arm | None = None,
    progress: Progress | None = None,
    on_trial: Callable[[SearchTrial], None] | None = None,
) -> Search:
    """Search around the configuration of *trainings*, on *arm* or else its arm ``original``, with one seed."""
    rows = arm or trainings.original
    trials: list[SearchTrial] = []

    def measure(point: Point) -> float:
        found = dataclasses.replace(trainings, config=with_point(trainings.config, recommender, point))
        result = found.train(recommender, rows, seed, progress).result
        # Without validation items nothing is better than anything.
        trials.append(SearchTrial(point, result.best_metric or 0.0, result.best_epoch, result.epochs[-1].epoch))
        if on_trial is not None:
            on_trial(trials[-1])
        return trials[-1].ndcg_at_10

    best = _start(trainings.config, recommender)
    height = measure(best)
    for alternatives in _steps(best):
        for change in alternatives:
            point = dataclasses.replace(best, **change(best))
            found = measure(point)
            if found > height:
                best, height = point, found
                break
    return Search(recommender, tuple(trials))


Change = Callable[[Point], Mapping[str, Any]]


def _steps(start: Point) -> Iterator[tuple[Change, ...]]:
    """The steps in their order; of a step's alternatives the first that is better is taken."""
    if start.dropout is not None and start.dropout != LOWER_DROPOUT:
        yield (lambda _: {"dropout": LOWER_DROPOUT},)
    yield (
        lambda best: {"learning_rate": best.learning_rate * RATE_STEP},
        lambda best: {"learning_rate": best.learning_rate / RATE_STEP},
    )
    yield (
        lambda best: {
            "batch_size": best.batch_size * BATCH_STEP,
            "learning_rate": best.learning_rate * RATE_STEP,
        },
    )


def _start(config: EvaluationConfig, recommender: str) -> Point:
    training, own = config.training_of(recommender), config.config_of(recommender)
    return Point(training.learning_rate, training.batch_size, getattr(own, "dropout", None))


def with_point(config: EvaluationConfig, recommender: str, point: Point) -> EvaluationConfig:
    """*config* with *recommender* at *point*."""
    training = dataclasses.replace(
        config.training_of(recommender), learning_rate=point.learning_rate, batch_size=point.batch_size
    )
    own = config.config_of(recommender)
    if point.dropout is not None:
        own = dataclasses.replace(own, dropout=point.dropout)
    return dataclasses.replace(
        config,
        schedules={**config.schedules, recommender: training},
        recommenders={**config.recommenders, recommender: own},
    )

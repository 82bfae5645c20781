"""
What a recommender learns in an evaluation: hyper-parameters, budget and validation, whoever asks for the training.

Equal budgets. An epoch is, for every arm of the target's items, as many optimiser steps as one pass over the
*original* arm's rows takes; each arm draws its batches from its own endless stream of shuffled passes. So arms of more
rows take no more steps per epoch, validate as often per step, and stop by the same rule (``TrainingConfig``). The same
seed means the same initial weights wherever the shapes agree.

In arm ``mixed`` an epoch is one pass over its own rows, which are those of every target. So one training serves all
targets: it goes on while any of them gains, and each takes the weights of its own best epoch (``joint_training``).

Ranking is by ``ranking.rank_queries``; validation takes the ranks among all items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.evaluation.arms import Arm, Queries
from models.evaluation.ranking import rank_queries
from models.ranking_metrics import ndcg_at_k
from models.recommenders.multidomain import MultiDomainRecommender
from models.recommenders.recommender import Recommender, SessionRecommender, SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS, MULTI_DOMAIN, TRAINED
from models.training.batches import epoch_generator
from models.training.loop import TrainingConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """
    What the cells of one grid share.

    Args:
        training: schedule; its seed is replaced by each cell's.
        schedules: by name, the whole schedule of each recommender that does not take ``training``.
        shared: hyper-parameters that every recommender takes as far as it has them.
        recommenders: by name, all hyper-parameters of each recommender that does not take ``shared`` and, for the
            others, its defaults; of the class that the registry names.
    """

    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    schedules: Mapping[str, TrainingConfig] = dataclasses.field(default_factory=dict)
    shared: SharedConfig = dataclasses.field(default_factory=SharedConfig)
    recommenders: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def training_of(self, recommender: str) -> TrainingConfig:
        """The schedule of one recommender."""
        return self.schedules.get(recommender, self.training)

    def config_of(self, recommender: str) -> Any:
        """The hyper-parameters of one trained recommender."""
        return self.recommenders.get(recommender) or with_shared(CONFIGURATIONS[recommender], self.shared)


class RowObjective:
    """
    Next-item training of one recommender on one arm's rows (an ``Objective`` of ``training.fit``).

    Args:
        recommender: the untrained model; its class decides what a batch is.
        arm: rows, candidates and validation rows.
        steps_per_epoch: optimiser steps that make an epoch, whatever the number of rows.
        batch_size: rows per step.
        seed: of the shuffles.
    """

    def __init__(
        self, recommender: Recommender[Any], arm: Arm, *, steps_per_epoch: int, batch_size: int, seed: int
    ) -> None:
        self.name = recommender.name
        self.fingerprint = arm.fingerprint
        self.arm = arm
        self.steps_per_epoch = steps_per_epoch
        self.batches_per_pass = recommender.num_batches(arm.rows, batch_size)
        self.validation = with_history(arm.validation)

        @lru_cache(maxsize=1)  # the pass at hand; neighbouring epochs share one
        def batches_of_pass(number: int) -> list[Any]:
            return list(recommender.batches(arm.rows, batch_size, epoch_generator(seed, f"{self.name} pass", number)))

        self._batches_of_pass = batches_of_pass

    def num_batches(self) -> int:
        """Steps per epoch."""
        return self.steps_per_epoch

    def batches(self, epoch: int) -> Iterator[Any]:
        """Steps ``(epoch - 1) * n`` to ``epoch * n`` of the endless stream; a function of seed and epoch alone."""
        for step in range((epoch - 1) * self.steps_per_epoch, epoch * self.steps_per_epoch):
            number, index = divmod(step, self.batches_per_pass)
            yield self._batches_of_pass(number)[index]

    def loss(self, module: Recommender[Any], batch: Any) -> Tensor:
        """The recommender's own."""
        return module.loss(batch)

    def validate(self, module: Recommender[Any]) -> float | None:
        """NDCG@10 over the validation rows with a history; None if there are none."""
        return validation_ndcg(module, self.validation, self.arm) if len(self.validation) else None


def build_seeded(recommender: str, arm: Arm, config: EvaluationConfig, seed: int) -> Recommender[Any]:
    """An untrained recommender, its weights a function of *seed* and shapes alone; global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recommender in MULTI_DOMAIN:
            multi_domain: type[MultiDomainRecommender] = MULTI_DOMAIN[recommender]
            return multi_domain.build(arm.domains, config.config_of(recommender))
        trained: type[SessionRecommender[Any]] = TRAINED[recommender]
        return trained.build(arm.rows, arm.num_items, config.config_of(recommender))


def validation_ndcg(module: Recommender[Any], queries: Queries, arm: Arm) -> float:
    """Mean NDCG@10 of *queries* among all candidates of *arm*."""
    ranks = rank_queries(module, queries, arm, module.device)
    return float(ndcg_at_k(torch.tensor(ranks.all), 10).mean())


def with_history(queries: Queries) -> Queries:
    """Early stopping follows the users of the main table only: those with a target item in their history."""
    return queries.at(np.flatnonzero(queries.num_target_items > 0))

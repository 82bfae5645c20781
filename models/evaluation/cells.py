"""
Train recommenders on the arms and rank the held-out items; every (recommender, arm, seed) is one cached cell.

Equal budgets. An epoch is, for every arm of the target's items, as many optimiser steps as one pass over the
*original* arm's rows takes; each arm draws its batches from its own endless stream of shuffled passes. So arms of more
rows take no more steps per epoch, validate as often per step, and stop by the same rule: ``TrainingConfig.patience``
epochs without a better validation NDCG@10, ``max_epochs`` at most. In arm ``mixed`` an epoch is one pass over its own
rows. The same seed means the same initial weights wherever the shapes agree.

Ranking is by ``ranking.rank_queries``; validation takes the ranks among all items.

A cell's key is a hash of everything that its ranks depend on: rows, held-out items, recommender, its schedule and
hyper-parameters, seed, kind of device and version of torch. A finished cell is read back. An interrupted one goes on
from its last finished epoch.

Shapes: N = held-out rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Sequences
from models.errors import DatasetFormatError
from models.evaluation.advice import Advice, AdvisedRanks, rank_advised
from models.evaluation.arms import Arm, ArmName, Queries, RowName
from models.evaluation.ranking import Ranks, rank_queries
from models.files import replace_file
from models.ranking_metrics import ndcg_at_k
from models.recommenders.multidomain import MultiDomainRecommender
from models.recommenders.recommender import Recommender, Scorer, SessionRecommender, SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS, COUNTED, MULTI_DOMAIN, TRAINED
from models.training.batches import epoch_generator
from models.training.loop import Progress, TrainingConfig, fit

# Part of every cell's key: raise it when a change moves results, so that stale cells are not read.
CELL_VERSION = 4


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


@dataclass(frozen=True)
class Cell:
    """
    One recommender, trained on one arm with one seed, and where it ranks every test item.

    Args:
        ranks: of the test rows.
        served_ranks: the same after regenerated histories, by the same weights; None where the arm has none.
        advised: the same (of ``served_ranks`` where there are any) together with the target expert; None where it was
            not asked.
        validation_ndcg_at_10: of the weights that ranked them; None for counted recommenders.
        best_epoch: epoch of those weights; 0 is the untrained model.
        epochs: epochs trained.
        steps_per_epoch: optimiser steps of one epoch.
        num_parameters: trained weights.
        seconds: wall time of training, validation and ranking, over all runs that an interrupted cell took.
        device: kind of device.
    """

    key: str
    recommender: str
    arm: RowName
    seed: int
    ranks: Ranks
    served_ranks: Ranks | None
    validation_ndcg_at_10: float | None
    best_epoch: int
    epochs: int
    steps_per_epoch: int
    num_parameters: int
    seconds: float
    device: str
    torch_version: str
    advised: AdvisedRanks | None = None

    @property
    def is_cut_short(self) -> bool:
        """Whether its best epoch is the last one trained: more of them might rank better, so it proves little."""
        return 0 < self.best_epoch == self.epochs


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
        self.validation = _with_history(arm.validation)

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
        if not len(self.validation):
            return None
        ranks = rank_queries(module, self.validation, self.arm, module.device)
        return float(ndcg_at_k(torch.tensor(ranks.all), 10).mean())


@dataclass(frozen=True)
class Grid:
    """
    The cells of one evaluation and where finished ones are kept.

    Args:
        arms: the arms to run, ``original`` first: it sets the number of steps of all but ``mixed``.
        config: schedule and hyper-parameters.
        directory: folder of finished cells; may be shared by evaluations.
        device: where to train.
        advice: by arm, the target expert beside its recommenders; none for an arm that is not there.
    """

    arms: tuple[Arm, ...]
    config: EvaluationConfig
    directory: Path
    device: torch.device
    advice: Mapping[ArmName, Advice] = dataclasses.field(default_factory=dict)

    @cached_property
    def original(self) -> Arm:
        """The arm that sets the budget."""
        assert self.arms[0].name == "original"
        return self.arms[0]

    def key(self, recommender: str, arm: Arm, seed: int) -> str:
        """Content hash of one cell."""
        content: dict[str, Any] = {
            "version": CELL_VERSION,
            "recommender": recommender,
            "arm": arm.fingerprint,
            "budget": "own" if arm.name == "mixed" else self.original.fingerprint,
            # What this recommender takes, wherever it was written; what others take changes nothing.
            "config": {"training": dataclasses.asdict(self.config.training_of(recommender))},
            "seed": seed,
            "device": self.device.type,
            "torch": torch.__version__,
        }
        if recommender in CONFIGURATIONS:
            content["config"]["recommender"] = dataclasses.asdict(self.config.config_of(recommender))
        if recommender in MULTI_DOMAIN:
            content["domains"] = [(domain.first, domain.last) for domain in arm.domains]
        if recommender not in COUNTED and arm.name in self.advice:
            content["advice"] = self.advice[arm.name].fingerprint
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def finished(self, recommender: str, arm: Arm, seed: int) -> Cell | None:
        """
        The cell from disk, or None where it has not been run.

        Raises:
            DatasetFormatError: its file is damaged.
        """
        path = self._cell_file(self.key(recommender, arm, seed))
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            # Two arms of equal content share one cell; each reads it under its own name.
            served = content["served_ranks"]
            content |= {"ranks": _ranks_read(content["ranks"])}
            content |= {"served_ranks": None if served is None else _ranks_read(served)}
            advised = content.get("advised")
            if advised is not None:
                content |= {"advised": AdvisedRanks(_ranks_read(advised["ranks"]), advised["weight"])}
            return Cell(**{**content, "arm": arm.name})
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetFormatError(f"{path}: a damaged cell ({error}); delete it to compute it anew") from error

    def run(self, recommender: str, arm: Arm, seed: int, progress: Progress | None = None) -> Cell:
        """One cell: from disk where it is finished, trained (or trained on) and written otherwise."""
        done = self.finished(recommender, arm, seed)
        if done is not None:
            return done
        key = self.key(recommender, arm, seed)
        resume_file = self.directory / f"{key}.safetensors"
        self.directory.mkdir(parents=True, exist_ok=True)
        train = self._counted if recommender in COUNTED else self._trained
        cell = train(key, recommender, arm, seed, resume_file, progress)
        with replace_file(self._cell_file(key)) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(cell)), encoding="utf-8")
        resume_file.unlink(missing_ok=True)
        return cell

    def _budget_rows(self, arm: Arm) -> Sequences:
        """
        The rows that one pass over makes an epoch.

        Rows of the target's items alone are compared at equal steps, so those of arm ``original`` set the pace. Mixed
        rows are another data set: three or four times the items, of which a model sees all in a pass of their own.
        """
        return arm.rows if arm.name == "mixed" else self.original.rows

    def _cell_file(self, key: str) -> Path:
        return self.directory / f"{key}.json"

    def _counted(
        self, key: str, recommender: str, arm: Arm, seed: int, resume_file: Path, progress: Progress | None
    ) -> Cell:
        del resume_file, progress  # counting takes a moment: nothing to resume or to report
        started = time.perf_counter()
        scorer = COUNTED[recommender].build(arm.rows, arm.num_items)
        return untrained_cell(scorer, arm, self.device, key=key, recommender=recommender, seed=seed, started=started)

    def _trained(
        self, key: str, recommender: str, arm: Arm, seed: int, resume_file: Path, progress: Progress | None
    ) -> Cell:
        config = dataclasses.replace(self.config.training_of(recommender), seed=seed)
        module = build_seeded(recommender, arm, self.config, seed).to(self.device)
        objective = RowObjective(
            module,
            arm,
            steps_per_epoch=module.num_batches(self._budget_rows(arm), config.batch_size),
            batch_size=config.batch_size,
            seed=seed,
        )
        started = time.perf_counter()
        result = fit(module, objective, config, resume_file=resume_file, progress=progress)
        ranks = rank_queries(module, arm.test, arm, self.device)
        served_ranks = _served_ranks(module, arm, self.device)
        advice = self.advice.get(arm.name)
        advised = None if advice is None else rank_advised(module, advice, arm, self.device)
        ranking_seconds = time.perf_counter() - started - sum(report.seconds for report in result.epochs)
        return Cell(
            key=key,
            recommender=recommender,
            arm=arm.name,
            seed=seed,
            ranks=ranks,
            served_ranks=served_ranks,
            validation_ndcg_at_10=result.best_metric,
            best_epoch=result.best_epoch,
            epochs=result.epochs[-1].epoch,
            steps_per_epoch=objective.steps_per_epoch,
            num_parameters=sum(parameter.numel() for parameter in module.parameters()),
            # Epochs found in a resume file count with the seconds they took.
            seconds=round(sum(report.seconds for report in result.epochs) + max(0.0, ranking_seconds), 3),
            device=self.device.type,
            torch_version=torch.__version__,
            advised=advised,
        )


def untrained_cell(
    scorer: Scorer, arm: Arm, device: torch.device, *, key: str, recommender: str, seed: int, started: float
) -> Cell:
    """The cell of a scorer that took no training steps; *started* is what ``time.perf_counter`` said before it."""
    return Cell(
        key=key,
        recommender=recommender,
        arm=arm.name,
        seed=seed,
        ranks=rank_queries(scorer, arm.test, arm, device),
        served_ranks=_served_ranks(scorer, arm, device),
        validation_ndcg_at_10=None,
        best_epoch=0,
        epochs=0,
        steps_per_epoch=0,
        num_parameters=0,
        seconds=round(time.perf_counter() - started, 3),
        device=device.type,
        torch_version=torch.__version__,
    )


def as_served(cell: Cell) -> Cell:
    """The line of the results that tells the ranks after regenerated histories."""
    assert cell.served_ranks is not None
    return dataclasses.replace(cell, arm="served", ranks=cell.served_ranks, served_ranks=None, advised=None)


def as_advised(cell: Cell) -> Cell:
    """The line of the results that tells the ranks of recommender and target expert together."""
    assert cell.advised is not None
    line: RowName = "with expert" if cell.served_ranks is None else "served with expert"
    return dataclasses.replace(cell, arm=line, ranks=cell.advised.ranks, served_ranks=None)


def runs_on(recommender: str, arm: ArmName) -> bool:
    """Whether there is such a cell: multi-domain recommenders need mixed rows, the others take any."""
    return recommender not in MULTI_DOMAIN or arm == "mixed"


def build_seeded(recommender: str, arm: Arm, config: EvaluationConfig, seed: int) -> Recommender[Any]:
    """An untrained recommender, its weights a function of *seed* and shapes alone; global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recommender in MULTI_DOMAIN:
            multi_domain: type[MultiDomainRecommender] = MULTI_DOMAIN[recommender]
            return multi_domain.build(arm.domains, config.config_of(recommender))
        trained: type[SessionRecommender[Any]] = TRAINED[recommender]
        return trained.build(arm.rows, arm.num_items, config.config_of(recommender))


def _served_ranks(scorer: Scorer, arm: Arm, device: torch.device) -> Ranks | None:
    return None if arm.served is None else rank_queries(scorer, arm.served, arm, device)


def _ranks_read(content: Mapping[str, Any]) -> Ranks:
    return Ranks(tuple(content["all"]), tuple(content["unseen"]))


def _with_history(queries: Queries) -> Queries:
    """Early stopping follows the users of the main table only: those with a target item in their history."""
    return queries.at(np.flatnonzero(queries.num_target_items > 0))

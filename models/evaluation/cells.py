"""
Train recommenders on the arms and rank the held-out items; every (recommender, arm, seed) is one cached cell.

What each learns, and by which budget, is in ``budgets``; the weights are kept apart, by ``trained``. A cell's key is
a hash of everything that its ranks depend on: rows, held-out items, recommender, its schedule and hyper-parameters,
seed, kind of device and version of torch. A finished cell is read back. An interrupted one goes on from its last
finished epoch, and so does one that was best at its last epoch when it is given more of them.

Shapes: N = held-out rows.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from models.errors import DatasetFormatError
from models.evaluation.advice import Advice, AdvisedRanks, rank_advised
from models.evaluation.arms import Arm, ArmName, RowName
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.ranking import Ranks, rank_queries
from models.evaluation.trained import Trainings, hash_of
from models.files import replace_file
from models.recommenders.recommender import Scorer
from models.recommenders.registry import CONFIGURATIONS, COUNTED, MULTI_DOMAIN
from models.training.loop import Progress, settings_of

# Part of every cell's key: raise it when a change moves results, so that stale cells are not read.
CELL_VERSION = 5


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
    def trainings(self) -> Trainings:
        """What trains its cells."""
        return Trainings(self.original, self.config, self.directory, self.device)

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
            "config": {"training": settings_of(self.config.training_of(recommender))},
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
        return hash_of(content)

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
        self.directory.mkdir(parents=True, exist_ok=True)
        train = self._counted if recommender in COUNTED else self._trained
        cell = train(key, recommender, arm, seed, progress)
        with replace_file(self._cell_file(key)) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(cell)), encoding="utf-8")
        return cell

    def _cell_file(self, key: str) -> Path:
        return self.directory / f"{key}.json"

    def _counted(self, key: str, recommender: str, arm: Arm, seed: int, progress: Progress | None) -> Cell:
        del progress  # counting takes a moment
        started = time.perf_counter()
        scorer = COUNTED[recommender].build(arm.rows, arm.num_items)
        return untrained_cell(scorer, arm, self.device, key=key, recommender=recommender, seed=seed, started=started)

    def _trained(self, key: str, recommender: str, arm: Arm, seed: int, progress: Progress | None) -> Cell:
        trained = self.trainings.train(recommender, arm, seed, progress)
        module, result = trained.module, trained.result
        ranking_started = time.perf_counter()
        ranks = rank_queries(module, arm.test, arm, self.device)
        served_ranks = _served_ranks(module, arm, self.device)
        advice = self.advice.get(arm.name)
        advised = None if advice is None else rank_advised(module, advice, arm, self.device)
        ranking_seconds = time.perf_counter() - ranking_started
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
            steps_per_epoch=trained.steps_per_epoch,
            num_parameters=sum(parameter.numel() for parameter in module.parameters()),
            # Epochs found on disk count with the seconds they took.
            seconds=round(sum(report.seconds for report in result.epochs) + ranking_seconds, 3),
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


def _served_ranks(scorer: Scorer, arm: Arm, device: torch.device) -> Ranks | None:
    return None if arm.served is None else rank_queries(scorer, arm.served, arm, device)


def _ranks_read(content: Mapping[str, Any]) -> Ranks:
    return Ranks(tuple(content["all"]), tuple(content["unseen"]))

"""
One training of mixed rows for all targets, each with the weights of its own best epoch.

Mixed rows are the same whichever domain is asked for, so a recommender of theirs is trained once and not once a target,
as their authors do; but none of them has to take an epoch that was best for another.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.errors import DatasetFormatError
from models.evaluation.arms import Arm
from models.evaluation.budgets import RowObjective, validation_ndcg, with_history
from models.files import replace_file
from models.recommenders.recommender import Recommender
from models.training.loop import under
from models.vocabulary import TokenRange


@dataclass
class BestEpochs:
    """
    Each domain's best epoch of one training, and its weights; on disk, so that a run which resumes still has them.

    Args:
        path: safetensors file, replaced whenever a domain gains.
        metrics: NDCG@10 of each domain at its best epoch; none before the first validation.
        epochs: those epochs.
        weights: of those epochs.
    """

    path: Path
    metrics: list[float] = dataclasses.field(default_factory=list)
    epochs: list[int] = dataclasses.field(default_factory=list)
    weights: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    @classmethod
    def at(cls, path: Path) -> BestEpochs:
        """
        What lies at *path*, or nothing yet.

        Raises:
            DatasetFormatError: the file is damaged.
        """
        found = cls(path)
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    content = json.loads(file.metadata()["best"])
                    tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                found.metrics, found.epochs = list(content["metrics"]), list(content["epochs"])
                found.weights = [under(f"{index}.", tensors) for index in range(len(found.epochs))]
            except Exception as error:
                raise DatasetFormatError(f"{path}: damaged weights ({error}); delete them to train anew") from error
        return found

    def offer(self, epoch: int, metrics: Sequence[float], weights: Mapping[str, Tensor]) -> float:
        """Keep *weights* for every domain whose metric they better; the mean of the best metrics."""
        if not self.metrics:
            self.metrics, self.epochs = [-math.inf] * len(metrics), [epoch] * len(metrics)
            self.weights = [{} for _ in metrics]
        better = [index for index, metric in enumerate(metrics) if metric > self.metrics[index]]
        copied = {key: value.detach().cpu().clone() for key, value in weights.items()} if better else {}
        for index in better:
            self.metrics[index], self.epochs[index], self.weights[index] = metrics[index], epoch, copied
        if better:
            self._write()
        return sum(self.metrics) / len(self.metrics)

    def _write(self) -> None:
        # A tensor may lie in a file once; domains that share an epoch have copies of their own there.
        tensors = {
            f"{index}.{key}": value.clone().contiguous()
            for index, weights in enumerate(self.weights)
            for key, value in weights.items()
        }
        best = json.dumps({"metrics": self.metrics, "epochs": self.epochs})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path) as partial:
            save_file(tensors, partial, metadata={"best": best})


class JointObjective(RowObjective):
    """
    One training of mixed rows for all targets.

    Its metric is the mean over domains of the best NDCG@10 that each has had so far: it rises as long as any domain
    gains, and so training ends, and its rate falls, when none does. The mean of the metrics as they are would end it
    for a domain that still learns.

    Args:
        recommender, steps_per_epoch, batch_size, seed: as in ``RowObjective``.
        arm: with validation rows of every domain.
        best: where each domain's best weights are kept.
    """

    def __init__(
        self,
        recommender: Recommender[Any],
        arm: Arm,
        *,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        best: BestEpochs,
    ) -> None:
        super().__init__(recommender, arm, steps_per_epoch=steps_per_epoch, batch_size=batch_size, seed=seed)
        self.fingerprint = arm.training_fingerprint
        self.best = best
        found = [dataclasses.replace(one, queries=with_history(one.queries)) for one in arm.selection]
        self.ranked = [one for one in found if len(one.queries)]
        self._epoch = 0

    def batches(self, epoch: int) -> Iterator[Any]:
        """As of any training; the epoch is noted for its validation."""
        self._epoch = epoch
        return super().batches(epoch)

    def validate(self, module: Recommender[Any]) -> float | None:
        """The mean of the best so far, over the domains that have validation rows; None where none has."""
        if not self.ranked:
            return None
        metrics = [
            validation_ndcg(module, one.queries, dataclasses.replace(self.arm, candidates=one.candidates))
            for one in self.ranked
        ]
        return self.best.offer(self._epoch, metrics, module.state_dict())

    def best_for(self, candidates: TokenRange) -> tuple[int, float, dict[str, Tensor]] | None:
        """Epoch, metric and weights of the best epoch for one domain; None where it has no validation rows."""
        for index, one in enumerate(self.ranked):
            if one.candidates == candidates:
                return self.best.epochs[index], self.best.metrics[index], self.best.weights[index]
        return None

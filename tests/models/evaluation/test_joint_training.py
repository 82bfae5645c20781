"""One training of mixed rows for all targets, each with its own best epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.dataset import Dataset
from models.errors import DatasetFormatError
from models.evaluation.arms import Arm, Validation, build_arm
from models.evaluation.budgets import EvaluationConfig, RowObjective, build_seeded, validation_ndcg, with_history
from models.evaluation.joint_training import BestEpochs, JointObjective
from models.evaluation.trained import Trainings
from models.recommenders.recommender import SharedConfig
from models.recommenders.registry import MULTI_DOMAIN
from models.training.loop import Silent, TrainingConfig

CPU = torch.device("cpu")
SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=5e-3, batch_size=16, max_epochs=6, patience=10),
    shared=SharedConfig(width=16, inner_width=16),
)
JOINT = ("sasrec", *MULTI_DOMAIN)


class Steps(Silent):
    """Counts steps; ends the run after *most* of them, as a kill would."""

    def __init__(self, most: int | None = None) -> None:
        self.steps, self.most = 0, most

    def on_step(self, report) -> None:
        del report
        if self.steps == self.most:
            raise KeyboardInterrupt
        self.steps += 1


@pytest.fixture(scope="module")
def mixed(dataset: Dataset) -> dict[str, Arm]:
    return {target: build_arm(dataset, target, "mixed", None) for target in dataset.vocabulary.domains}


def trainings_in(folder: Path, dataset: Dataset) -> Trainings:
    return Trainings(build_arm(dataset, "food", "original", None), SMALL, folder, CPU)


def metric_of(module, arm: Arm) -> float:
    return validation_ndcg(module, with_history(arm.validation), arm)


@pytest.mark.parametrize("name", JOINT)
def test_one_training_serves_every_target(name: str, mixed: dict[str, Arm], dataset: Dataset, tmp_path: Path) -> None:
    trainings = trainings_in(tmp_path, dataset)
    counted = [Steps() for _ in mixed]
    trained = [trainings.train(name, arm, 3, steps) for arm, steps in zip(mixed.values(), counted, strict=True)]

    assert counted[0].steps > 0
    assert [steps.steps for steps in counted[1:]] == [0] * (len(mixed) - 1)
    for one, arm in zip(trained, mixed.values(), strict=True):
        assert metric_of(one.module, arm) == pytest.approx(one.result.best_metric)
    assert len(list(tmp_path.glob("*.weights.safetensors"))) == len(mixed)


def test_each_target_has_the_weights_of_its_own_best_epoch(
    mixed: dict[str, Arm], dataset: Dataset, tmp_path: Path
) -> None:
    """Recomputed epoch by epoch: the first epoch with the highest metric of that target."""
    trainings = trainings_in(tmp_path, dataset)
    by_epoch: dict[str, list[float]] = {target: [] for target in mixed}

    class Epochs(JointObjective):
        def validate(self, module):
            for target, arm in mixed.items():
                by_epoch[target].append(metric_of(module, arm))
            return super().validate(module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.evaluation.trained.JointObjective", Epochs)
        results = {target: trainings.train("sasrec", arm, 3).result for target, arm in mixed.items()}

    assert {target: found.best_epoch for target, found in results.items()} == {
        target: int(np.argmax(metrics)) for target, metrics in by_epoch.items()
    }
    assert len({found.best_epoch for found in results.values()}) > 1


def test_its_metric_rises_as_long_as_any_domain_gains(tmp_path: Path) -> None:
    best = BestEpochs(tmp_path / "best.safetensors")
    offered = [best.offer(epoch, metrics, {"w": torch.tensor([float(epoch)])}) for epoch, metrics in
               enumerate([[0.1, 0.3], [0.2, 0.2], [0.15, 0.1], [0.1, 0.4]])]  # fmt: skip

    assert offered == pytest.approx([0.2, 0.25, 0.25, 0.3])
    assert best.epochs == [1, 3]
    again = BestEpochs.at(best.path)
    assert (again.metrics, again.epochs) == (best.metrics, best.epochs)
    assert [weights["w"].item() for weights in again.weights] == [1.0, 3.0]


@pytest.mark.parametrize("lost", [None, "best", "resume"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    lost: str | None, mixed: dict[str, Arm], dataset: Dataset, tmp_path: Path
) -> None:
    """Killed within the fifth epoch; where one of its two files is gone, it starts anew."""
    arms = list(mixed.values())
    whole = [trainings_in(tmp_path / "whole", dataset).train("sasrec", arm, 3) for arm in arms]
    stopped = trainings_in(tmp_path / "stopped", dataset)
    killed_at = 4 * whole[0].steps_per_epoch + 1
    with pytest.raises(KeyboardInterrupt):
        stopped.train("sasrec", arms[0], 3, Steps(killed_at))
    best, resume = sorted((tmp_path / "stopped").iterdir(), key=lambda path: "best" not in path.name)
    if lost is not None:
        {"best": best, "resume": resume}[lost].unlink()
    steps = Steps()
    resumed = [stopped.train("sasrec", arm, 3, steps) for arm in arms]

    epochs_left = 2 if lost is None else 6
    assert steps.steps == epochs_left * whole[0].steps_per_epoch
    for one, other in zip(resumed, whole, strict=True):
        assert (one.result.best_epoch, one.result.best_metric) == (other.result.best_epoch, other.result.best_metric)
        assert all(torch.equal(value, other.module.state_dict()[key]) for key, value in one.module.state_dict().items())


def test_a_domain_without_validation_items_takes_the_last_weights_that_helped_any(
    mixed: dict[str, Arm], tmp_path: Path
) -> None:
    arm = mixed["food"]
    nobody = arm.validation.at(np.zeros(0, dtype=np.int64))
    alone = dataclasses.replace(
        arm,
        validations=tuple(
            Validation(one.candidates, nobody if one.candidates == arm.candidates else one.queries)
            for one in arm.validations
        ),
    )
    module = build_seeded("sasrec", alone, SMALL, 3)
    objective = JointObjective(
        module, alone, steps_per_epoch=2, batch_size=16, seed=3, best=BestEpochs(tmp_path / "best.safetensors")
    )

    assert objective.validate(module) is not None
    assert objective.best_for(arm.candidates) is None
    assert all(
        objective.best_for(one.candidates) is not None for one in arm.validations if one.candidates != arm.candidates
    )


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cell.best.safetensors"
    path.write_bytes(b"no weights")

    with pytest.raises(DatasetFormatError, match=r"cell\.best\.safetensors: damaged weights .* delete them"):
        BestEpochs.at(path)


def test_arms_of_one_target_are_chosen_by_it_alone(dataset: Dataset) -> None:
    arm = build_arm(dataset, "food", "original", None)
    module = build_seeded("sasrec", arm, SMALL, 3).eval()
    objective = RowObjective(module, arm, steps_per_epoch=2, batch_size=16, seed=3)

    assert arm.validations == ()
    assert objective.validate(module) == metric_of(module, arm)

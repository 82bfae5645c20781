"""
Recommenders trained on an arm, kept by content: whoever asks for the same training again reads it back.

Evaluations of several bundles share the recommenders of the original rows, and the trial that guards a target
(``evaluation.regeneration_trial``) those of its first seed. A training's key is a hash of all that its weights depend
on: training rows, validation rows, steps of an epoch, recommender, schedule and hyper-parameters, seed, kind of device
and version of torch. What is ranked with the weights, and beside whom, is no part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.data.dataset import Sequences
from models.errors import DatasetFormatError
from models.evaluation.arms import Arm
from models.evaluation.budgets import EvaluationConfig, RowObjective, build_seeded
from models.evaluation.joint_training import BestEpochs, JointObjective
from models.files import replace_file
from models.recommenders.recommender import Recommender
from models.recommenders.registry import CONFIGURATIONS, MULTI_DOMAIN
from models.training.loop import RESUME_SUFFIX, EpochReport, Progress, TrainingConfig, TrainingResult, fit, settings_of
from models.vocabulary import TokenRange

# Part of every key: raise it when a change moves weights.
TRAINING_VERSION = 2
WEIGHTS_SUFFIX = ".weights.safetensors"
# Beside the resume file of a training for all targets: the best weights so far of each.
BEST_SUFFIX = ".best.safetensors"


@dataclass(frozen=True)
class TrainedRecommender:
    """A recommender with its best epoch's weights, in evaluation mode, and how it came to them."""

    module: Recommender[Any]
    result: TrainingResult
    steps_per_epoch: int


@dataclass(frozen=True)
class Trainings:
    """
    Trains recommenders, each once.

    Args:
        original: the arm whose rows make the steps of an epoch of all arms but ``mixed``.
        config: schedules and hyper-parameters.
        directory: folder of what was trained; may be shared.
        device: where to train.
    """

    original: Arm
    config: EvaluationConfig
    directory: Path
    device: torch.device

    def train(self, recommender: str, arm: Arm, seed: int, progress: Progress | None = None) -> TrainedRecommender:
        """
        From disk where it is there; else trained, going on from an interrupted run, or one that was cut short.

        Raises:
            DatasetFormatError: the file of a finished training is damaged.
        """
        config = dataclasses.replace(self.config.training_of(recommender), seed=seed)
        module = build_seeded(recommender, arm, self.config, seed).to(self.device)
        steps = module.num_batches(self._budget_rows(arm), config.batch_size)
        content = self._content(recommender, arm, seed, steps)
        kept = self._kept(content, arm, arm.candidates)
        if kept.is_file():
            return TrainedRecommender(module, _load(module, kept), steps)
        files = {one.candidates: self._kept(content, arm, one.candidates) for one in arm.selection}
        if config.may_go_on:
            del content["training"]["max_epochs"]
        resume_file = self.directory / f"{hash_of(content)}{RESUME_SUFFIX}"
        self.directory.mkdir(parents=True, exist_ok=True)
        if arm.validations:
            result = _train_jointly(module, arm, config, steps, resume_file, files, progress)
        else:
            objective = RowObjective(module, arm, steps_per_epoch=steps, batch_size=config.batch_size, seed=seed)
            result = fit(module, objective, config, resume_file=resume_file, progress=progress)
            _save(module.state_dict(), result, kept)
        if not (result.is_cut_short and config.may_go_on):
            resume_file.unlink(missing_ok=True)
            _best_file(resume_file).unlink(missing_ok=True)
        return TrainedRecommender(module, _load(module, kept), steps)

    def _kept(self, content: dict[str, Any], arm: Arm, candidates: TokenRange) -> Path:
        """Where the weights of a training are kept; of one for all targets, those of the domain with *candidates*."""
        own = {**content, "target": [candidates.first, candidates.last]} if arm.validations else content
        return self.directory / f"{hash_of(own)}{WEIGHTS_SUFFIX}"

    def _budget_rows(self, arm: Arm) -> Sequences:
        """
        The rows that one pass over makes an epoch.

        Rows of the target's items alone are compared at equal steps, so those of arm ``original`` set the pace. Mixed
        rows are another data set: three or four times the items, of which a model sees all in a pass of their own.
        """
        return arm.rows if arm.name == "mixed" else self.original.rows

    def _content(self, recommender: str, arm: Arm, seed: int, steps: int) -> dict[str, Any]:
        return {
            "version": TRAINING_VERSION,
            "recommender": recommender,
            "rows": arm.training_fingerprint,
            "steps": steps,
            "training": settings_of(self.config.training_of(recommender)),
            "configuration": dataclasses.asdict(self.config.config_of(recommender))
            if recommender in CONFIGURATIONS
            else None,
            "domains": [(d.first, d.last) for d in arm.domains] if recommender in MULTI_DOMAIN else None,
            "seed": seed,
            "device": self.device.type,
            "torch": torch.__version__,
        }


def _train_jointly(
    module: Recommender[Any],
    arm: Arm,
    config: TrainingConfig,
    steps: int,
    resume_file: Path,
    files: Mapping[TokenRange, Path],
    progress: Progress | None,
) -> TrainingResult:
    """Train *module* for all targets and write each one's best weights to its file of *files*."""
    best_file = _best_file(resume_file)
    # One without the other is of no use: a run that goes on needs both.
    if not (resume_file.is_file() and best_file.is_file()):
        resume_file.unlink(missing_ok=True)
        best_file.unlink(missing_ok=True)
    objective = JointObjective(
        module,
        arm,
        steps_per_epoch=steps,
        batch_size=config.batch_size,
        seed=config.seed,
        best=BestEpochs.at(best_file),
    )
    result = fit(module, objective, config, resume_file=resume_file, progress=progress)
    for candidates, path in files.items():
        best = objective.best_for(candidates)
        if best is None:
            _save(module.state_dict(), result, path)
        else:
            epoch, metric, weights = best
            _save(weights, dataclasses.replace(result, best_epoch=epoch, best_metric=metric, course=()), path)
    return result


def _best_file(resume_file: Path) -> Path:
    return resume_file.with_name(resume_file.name.removesuffix(RESUME_SUFFIX) + BEST_SUFFIX)


def hash_of(content: Mapping[str, Any]) -> str:
    """Name of a file of that content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _save(weights: Mapping[str, Tensor], result: TrainingResult, path: Path) -> None:
    tensors = {key: value.cpu().contiguous() for key, value in weights.items()}
    with replace_file(path) as partial:
        save_file(tensors, partial, metadata={"result": json.dumps(dataclasses.asdict(result))})


def _load(module: Recommender[Any], path: Path) -> TrainingResult:
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["result"])
            module.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - not a mapping
        module.eval()
        epochs = tuple(EpochReport(**report) for report in content["epochs"])
        return TrainingResult(**{**content, "epochs": epochs, "course": tuple(content["course"])})
    except Exception as error:
        raise DatasetFormatError(f"{path}: damaged weights ({error}); delete them to train anew") from error

"""
How a check spends its minutes: a few steps are timed, then epochs and seeds are dealt out.

Schedules that find their own length (``plateau``) where there is time for as many epochs as they usually take; fewer
epochs with a rate that falls to 0 at their end (``linear``) where there is not, which loses least.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data.dataset import Dataset
from models.evaluation.arms import Arm
from models.evaluation.budgets import EvaluationConfig, RowObjective, build_seeded
from models.evaluation.configuration import tuned_config
from models.files import replace_file
from models.recommenders.registry import TRAINED
from models.training.base import train_base
from models.training.experts import train_expert
from models.training.loop import Schedule, TrainingConfig, fit
from models.training.pipeline import BASE_TRAINING, EXPERT_TRAINING, NetworkConfig, PipelineConfig
from models.training.training_data import NothingHeldOut

# What the three arms' trainings, the base's and the expert's may take of the time; the rest goes to all else.
RECOMMENDER_SHARE, BASE_SHARE, EXPERT_SHARE = 0.4, 0.3, 0.15
# Epochs that schedule ``plateau`` usually takes until it has ended (docs/experiments/two-readings.md).
USUAL_BASE, USUAL_EXPERT, USUAL_RECOMMENDER = 25, 12, 25
ARMS = 3
MOST_SEEDS = 3
# Below this share of the usual epochs, little is learned: with a tenth of them a check of amazon5 saw regeneration
# halve NDCG@10, which says nothing of regeneration.
LITTLE = 0.4
TIMED_STEPS = 8
PLAN = "plan.json"


@dataclass(frozen=True)
class StepTimes:
    """Seconds that one step of each training takes, and how many make an epoch."""

    base: float
    expert: float
    recommender: float
    steps: int
    recommender_steps: int


@dataclass(frozen=True)
class Plan:
    """
    What a check trains.

    Args:
        base_epochs, expert_epochs, recommender_epochs: at most so many.
        schedule: of all of them.
        seeds: of the recommender.
        usual_minutes: what it takes if all end when they usually do.
        most_minutes: what it takes if all take every epoch.
        is_brief: whether the time is too short for much to be learned, so that a verdict would be one on networks that
            know little.
        needed_minutes: what the usual epochs of one seed would take.
    """

    base_epochs: int
    expert_epochs: int
    recommender_epochs: int
    schedule: Schedule
    seeds: int
    usual_minutes: float
    most_minutes: float
    is_brief: bool
    needed_minutes: float

    def pipeline(self, target: str) -> PipelineConfig:
        """How to train base and target expert; the other experts are not asked for anything, and stay the base."""
        return PipelineConfig(
            base=_scheduled(BASE_TRAINING, self.base_epochs, self.schedule),
            expert=_scheduled(EXPERT_TRAINING, self.expert_epochs, self.schedule),
            adapted_domains=(target,),
            joint=None,  # a check answers in the minutes it has
        )

    def evaluation(self, recommender: str) -> EvaluationConfig:
        """How to train *recommender*."""
        tuned = tuned_config()
        training = _scheduled(tuned.training_of(recommender), self.recommender_epochs, self.schedule)
        return dataclasses.replace(tuned, schedules={recommender: training})


def _scheduled(training: TrainingConfig, epochs: int, schedule: Schedule) -> TrainingConfig:
    # A rate that falls to 0 at the end is best there, whatever the epochs before it look like
    patience = training.patience if schedule == "plateau" else max(1, epochs)
    return dataclasses.replace(training, max_epochs=epochs, schedule=schedule, patience=patience)


def make_plan(times: StepTimes, minutes: float, *, seeds: int | None = None) -> Plan:
    """
    Deal *minutes* out.

    Args:
        seeds: of the recommender; without, as many as there is time for, ``MOST_SEEDS`` at most.
    """
    seconds = 60 * minutes
    base, expert = times.steps * times.base, times.steps * times.expert
    recommender = ARMS * times.recommender_steps * times.recommender
    bundle = USUAL_BASE * base + USUAL_EXPERT * expert
    room = seconds * (RECOMMENDER_SHARE + BASE_SHARE + EXPERT_SHARE)
    affordable = int((room - bundle) // max(1e-9, USUAL_RECOMMENDER * recommender))
    chosen = seeds or min(MOST_SEEDS, max(1, affordable))
    usual = bundle + chosen * USUAL_RECOMMENDER * recommender
    scale = room / max(1e-9, usual)
    if scale >= 1:
        # What is left beyond the usual goes to whoever takes longer
        epochs = [min(100, math.floor(scale * each)) for each in (USUAL_BASE, USUAL_EXPERT, USUAL_RECOMMENDER)]
    else:
        epochs = [max(1, math.floor(scale * each)) for each in (USUAL_BASE, USUAL_EXPERT, USUAL_RECOMMENDER)]
    most = epochs[0] * base + epochs[1] * expert + chosen * epochs[2] * recommender
    other = seconds * (1 - RECOMMENDER_SHARE - BASE_SHARE - EXPERT_SHARE)
    return Plan(
        base_epochs=epochs[0],
        expert_epochs=epochs[1],
        recommender_epochs=epochs[2],
        schedule="plateau" if scale >= 1 else "linear",
        seeds=chosen,
        usual_minutes=round((min(usual, most) + other) / 60, 1),
        most_minutes=round((most + other) / 60, 1),
        is_brief=scale < LITTLE,
        needed_minutes=round((bundle + USUAL_RECOMMENDER * recommender) / room * minutes, 1),
    )


def keep_plan(folder: Path, plan: Plan, asked: Mapping[str, Any]) -> None:
    """Write *plan* and what was *asked* for, so that a check which goes on does the same as before."""
    with replace_file(folder / PLAN) as partial:
        partial.write_text(json.dumps({"asked": asked, "plan": dataclasses.asdict(plan)}, indent=1), encoding="utf-8")


def kept_plan(folder: Path, asked: Mapping[str, Any]) -> Plan | None:
    """The plan that *folder* keeps for the same *asked*; None where there is none."""
    try:
        content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return Plan(**content["plan"]) if content["asked"] == dict(asked) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def time_steps(
    dataset: Dataset, target: str, original: Arm, recommender: str, *, device: torch.device, seed: int
) -> StepTimes:
    """Time a few steps of every training on random rows of the data; takes seconds."""
    few = FewSequences.of(dataset, TIMED_STEPS * BASE_TRAINING.batch_size, seed)
    once = dataclasses.replace(BASE_TRAINING, max_epochs=1, schedule="constant")
    base, trained = train_base(few, NetworkConfig().decoder_for(dataset), once, device=device)
    few_steps = max(1, -(-len(few.train) // once.batch_size))
    base_seconds = trained.epochs[-1].seconds / few_steps
    _, adapted = train_expert(few, base, target, once, experts="adapted")
    expert_seconds = adapted.epochs[-1].seconds / few_steps
    seconds, steps = 0.0, 0
    if recommender in TRAINED:
        tuned = tuned_config()
        batch_size = tuned.training_of(recommender).batch_size
        module = build_seeded(recommender, original, tuned, seed).to(device)
        steps = module.num_batches(original.rows, batch_size)
        nobody = dataclasses.replace(original, validation=original.validation.at(np.zeros(0, np.int64)))
        objective = RowObjective(
            module, nobody, steps_per_epoch=min(steps, TIMED_STEPS), batch_size=batch_size, seed=seed
        )
        started = time.perf_counter()
        fit(module, objective, dataclasses.replace(once, batch_size=batch_size))
        seconds = (time.perf_counter() - started) / max(1, min(steps, TIMED_STEPS))
    steps_of_dataset = max(1, -(-len(dataset.train) // once.batch_size))
    return StepTimes(base_seconds, expert_seconds, seconds, steps_of_dataset, steps)


class FewSequences(NothingHeldOut):
    """Some sequences of a dataset, nothing held out: to time steps on."""

    @classmethod
    def of(cls, dataset: Dataset, count: int, seed: int) -> FewSequences:
        """*count* random sequences with something to predict in them, as far as there are."""
        rows = np.flatnonzero(dataset.train.lengths >= 2)
        if len(rows) > count:
            rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
        values = {one.name: getattr(dataset, one.name) for one in dataclasses.fields(Dataset)}
        users = tuple(dataset.user_ids[int(row)] for row in rows)
        return cls(**values | {"train": dataset.train.at(rows), "user_ids": users})

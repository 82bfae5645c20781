"""
A second training for production: the same schedule on every interaction, once validation has said for how many epochs.

What is held out for validation and test is each user's latest, and so the most telling, interactions. The first
training needs them to know when to stop; the second stops there and learns from them, too. Nothing is left to measure
it by, so a refit bundle serves and makes production data, and evaluations refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from models.data.dataset import TOKENS, Dataset, TokenArray
from models.training.loop import EpochReport, Progress, StepReport


class UndividedDataset(Dataset):
    """A dataset of which everything is to train on and nothing is held out."""

    @classmethod
    def of(cls, dataset: Dataset) -> UndividedDataset:
        """All of *dataset*."""
        values = {field.name: getattr(dataset, field.name) for field in fields(Dataset)}
        return cls(**values | {"train": dataset.complete, "fingerprint": f"{dataset.fingerprint} undivided"})

    @cached_property
    def validation(self) -> TokenArray:
        """Nobody has a validation item."""
        return np.zeros(len(self.user_ids), dtype=TOKENS)

    @cached_property
    def test(self) -> TokenArray:
        """Nobody has a test item."""
        return np.zeros(len(self.user_ids), dtype=TOKENS)


@dataclass(frozen=True)
class RefitProgress:
    """Reports of a refit, under names that tell them from the first training's."""

    progress: Progress

    def on_step(self, report: StepReport) -> None:
        """Pass it on."""
        self.progress.on_step(replace(report, stage=f"refit of {report.stage}"))

    def on_epoch(self, report: EpochReport) -> None:
        """Pass it on."""
        self.progress.on_epoch(replace(report, stage=f"refit of {report.stage}"))

"""
A second training for production: the same schedule on every interaction, once validation has said for how many epochs.

What is held out for validation and test is each user's latest, and so the most telling, interactions. The first
training needs them to know when to stop; the second stops there and learns from them, too. Nothing is left to measure
it by, so a refit bundle serves and makes production data, and evaluations refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.training.loop import EpochReport, Progress, StepReport

REFIT_STAGE = "refit of "


@dataclass(frozen=True)
class RefitProgress:
    """Reports of a refit, under names that tell them from the first training's."""

    progress: Progress

    def on_step(self, report: StepReport) -> None:
        """Pass it on."""
        self.progress.on_step(replace(report, stage=f"{REFIT_STAGE}{report.stage}"))

    def on_epoch(self, report: EpochReport) -> None:
        """Pass it on."""
        self.progress.on_epoch(replace(report, stage=f"{REFIT_STAGE}{report.stage}"))

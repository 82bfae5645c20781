"""What progress shows, with a clock that stands still."""

from __future__ import annotations

import io
import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from app.cli.progress import StageProgress, TrainingProgress, describe_time_left
from models.training.loop import EpochReport, StepReport


def epoch(number: int, *, metric: float | None = 0.5, best_epoch: int = 0, max_epochs: int = 10) -> EpochReport:
    loss = math.nan if number == 0 else 2.5
    return EpochReport("base", number, max_epochs, loss, metric, metric, best_epoch, 30.0)


@pytest.mark.parametrize(
    ("report", "patience", "expected"),
    [
        (epoch(2, best_epoch=2), 3, "1:30 to 4:00 left"),  # 3 x 30 s without a better epoch, 8 x 30 s at most
        (epoch(8, best_epoch=8), 3, "1:00 left"),  # the last epoch comes before patience ends
        (epoch(10, best_epoch=9), 3, "done"),
        (epoch(5, best_epoch=2), 3, "done"),
    ],
)
def test_time_left_runs_from_early_stopping_to_the_last_epoch(report, patience, expected) -> None:
    assert describe_time_left(report, patience) == expected


def test_a_log_gets_one_line_per_epoch() -> None:
    output = io.StringIO()
    with TrainingProgress(Console(file=output, width=200), patience_of=lambda _stage: 3) as progress:
        progress.on_epoch(epoch(0))
        progress.on_step(StepReport("base", 1, 1, 1, torch.tensor(2.5)))
        progress.on_epoch(epoch(1, best_epoch=1))

    assert output.getvalue().splitlines() == [
        "base, epoch 0/10: NDCG@10 0.5000 (best 0.5000, epoch 0)",
        "base, epoch 1/10: loss 2.5000 NDCG@10 0.5000 (best 0.5000, epoch 1), 1:30 to 4:30 left",
    ]


def test_a_dataset_without_validation_rows_is_said_to_have_none() -> None:
    output = io.StringIO()
    with TrainingProgress(Console(file=output, width=200), patience_of=lambda _stage: 3) as progress:
        progress.on_epoch(epoch(1, metric=None, best_epoch=1))

    assert "no validation rows" in output.getvalue()


def test_a_terminal_sees_loss_metric_and_time_left() -> None:
    output = io.StringIO()
    console = Console(file=output, width=200, force_terminal=True, color_system=None)
    with TrainingProgress(console, patience_of=lambda _stage: 3, clock=lambda: 0.0) as progress:
        progress.on_epoch(epoch(1, best_epoch=1))
        progress.on_step(StepReport("base", 2, 4, 4, torch.tensor(2.25)))

    assert all(
        part in output.getvalue()
        for part in ("base, epoch 2", "4/4", "loss 2.2500", "NDCG@10 0.5000", "1:30 to 4:30 left")
    )


class CountedLoss:
    """A device scalar that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 1.0


def test_the_loss_is_read_for_the_eye_only() -> None:
    """Reading synchronises with the device: a thousand steps in no time read it at both ends only."""
    loss = CountedLoss()
    with TrainingProgress(Console(file=io.StringIO()), patience_of=lambda _stage: 3, clock=lambda: 100.0) as progress:
        for step in range(1, 1001):
            progress.on_step(StepReport("base", 1, step, 1000, loss))  # type: ignore[arg-type]

    assert loss.reads == 2


def test_a_stage_is_foretold_from_its_first_steps_and_its_first_validation() -> None:
    """A step a second, 100 an epoch, 20 s to validate: 120 s an epoch, from 3 epochs without a gain to 10."""
    output, now = io.StringIO(), [0.0]
    with TrainingProgress(Console(file=output), patience_of=lambda _stage: 3, clock=lambda: now[0]) as progress:
        progress.on_epoch(replace(epoch(0), seconds=20.0))
        for step in range(1, 9):
            progress.on_step(StepReport("base", 1, step, 100, torch.tensor(2.5)))
            now[0] += 1

    assert output.getvalue().splitlines()[1:] == [
        "base: 4 of 100 steps took 0:04, so an epoch about 2:00; 6:00 to 20:00 left"
    ]


@pytest.mark.parametrize("last", [1, 6])
def test_a_stage_whose_epochs_are_short_or_that_goes_on_is_not_foretold(last: int) -> None:
    """Its next epoch says as much: 3 steps in 3 s; or epoch 6 is there already."""
    output, now = io.StringIO(), [0.0]
    with TrainingProgress(Console(file=output), patience_of=lambda _stage: 3, clock=lambda: now[0]) as progress:
        progress.on_epoch(epoch(last - 1))
        for step in range(1, 4 * last):
            progress.on_step(StepReport("base", last, step, 4 * last - 1, torch.tensor(2.5)))
            now[0] += 1

    assert len(output.getvalue().splitlines()) == 1


def test_a_log_that_was_silent_for_nine_seconds_hears_where_training_is() -> None:
    output, now = io.StringIO(), [0.0]
    with TrainingProgress(Console(file=output), patience_of=lambda _stage: 3, clock=lambda: now[0]) as progress:
        for steps, waited in ((0, 8.0), (0, 1.0), (40, 15.0), (3_000, 10.0), (3_000, 4.0)):
            if steps:
                progress.on_step(StepReport("base", 2, steps, 3_000, torch.tensor(2.5)))
            now[0] += waited
            progress.tell_where()
        progress.on_epoch(epoch(2, best_epoch=2))
        now[0] += 11
        progress.tell_where()

    assert output.getvalue().splitlines() == [
        "at work, 0:09 since the last line",
        "base, epoch 2: 40 of 3,000 steps, loss 2.5000, 0:15 since the last line",
        "base, epoch 2: validating, 0:10 since the last line",
        "base, epoch 2/10: loss 2.5000 NDCG@10 0.5000 (best 0.5000, epoch 2), 1:30 to 4:00 left",
        "at work after epoch 2 of base, 0:11 since the last line",
    ]


def test_the_log_hears_it_though_training_calls_nothing() -> None:
    """The clock runs a minute a look; nothing is reported; a line comes by itself."""
    output, now = io.StringIO(), itertools.count(0.0, 60.0)
    with TrainingProgress(Console(file=output), patience_of=lambda _stage: 3, clock=lambda: next(now)):
        deadline = time.monotonic() + 30
        while not output.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)

    assert output.getvalue().startswith("at work, ")


def test_a_log_gets_each_stage_once() -> None:
    output = io.StringIO()
    with StageProgress(Console(file=output)) as progress:
        for stage, fraction in (("reading", 0.0), ("reading", 0.5), ("writing", 0.0), ("writing", 1.0)):
            progress(stage, fraction)

    assert output.getvalue().splitlines() == ["reading", "writing"]


def test_a_log_hears_of_a_long_stage_every_nine_seconds() -> None:
    output, now = io.StringIO(), [0.0]
    with StageProgress(Console(file=output), clock=lambda: now[0]) as progress:
        for second in range(25):
            now[0] = float(second)
            progress("reading", second / 100)

    assert output.getvalue().splitlines() == ["reading", "reading: 9% after 0:09", "reading: 18% after 0:18"]

"""
Progress of training on a terminal; in a log a line per epoch, and at least every ten seconds. Free of torch.

The time left is a range: the soonest that early stopping could end the stage, and the bound that its epochs set. It is
told as soon as a few steps of a stage were timed, long before its first epoch has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from models.training.loop import EpochReport, StepReport

# Reading the loss waits for the device, so it is read for the eye only: at most this often.
SECONDS_BETWEEN_READS = 0.25
# Of a stage in a log: looked at every second, so there is never more than ten between two.
SECONDS_BETWEEN_LINES = 9.0
# A forecast waits until so much was timed; the first steps of a work are its slowest.
SECONDS_TO_TIME = 4.0


class TrainingProgress:
    """
    Receives the reports of ``training.fit``; use as a context manager.

    Args:
        console: where to write.
        patience_of: epochs without improvement that end a stage, by stage name.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console, *, patience_of: Callable[[str], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.patience_of = patience_of
        self.clock = clock
        self.left = ""
        self.metric = ""
        self.stage = ""
        self.task: TaskID | None = None
        self.read_at = -float("inf")
        self.told_at = clock()
        self.last_epoch: EpochReport | None = None
        self.first_step: tuple[StepReport, float] | None = None
        self.last_step: StepReport | None = None
        self.foretold = ""
        self.stopped = threading.Event()
        self.heart = threading.Thread(target=self._beat, name="progress", daemon=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[metric]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> TrainingProgress:
        self.bars.start()
        if not self.console.is_terminal:
            self.told_at = self.clock()
            self.heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopped.set()
        if self.heart.is_alive():
            self.heart.join()
        self.bars.stop()

    def on_step(self, report: StepReport) -> None:
        """Move the bar of the epoch; show the epoch's mean loss so far, and foretell the stage once it is timed."""
        now = self.clock()
        self.first_step = self.first_step or (report, now)
        self.last_step = report
        self._foretell(report, now)
        last = report.step == report.num_steps
        if not last and now - self.read_at < SECONDS_BETWEEN_READS:
            return
        self.read_at = now
        self.bars.update(
            self._task_of(report.stage),
            description=f"{report.stage}, epoch {report.epoch}",
            completed=report.step,
            total=report.num_steps,
            loss=f"{float(report.loss):.4f}",
            metric=self.metric,
            left=self.left,
        )

    def on_epoch(self, report: EpochReport) -> None:
        """Show the epoch's loss and metric and the time left; a line for those who read a log."""
        self.last_epoch, self.first_step, self.last_step = report, None, None
        self.metric = describe_metric(report)
        # Epoch 0 is a validation alone, which says nothing of the epochs to come
        timed = report.epoch > 0 or report.max_epochs == 0
        self.left = describe_time_left(report, self.patience_of(report.stage)) if timed else ""
        self.bars.update(self._task_of(report.stage), metric=self.metric, left=self.left)
        if not self.console.is_terminal:
            loss = "" if report.epoch == 0 else f" loss {report.loss:.4f}"
            left = f", {self.left}" if timed else ""
            self._say(f"{report.stage}, epoch {report.epoch}/{report.max_epochs}:{loss} {self.metric}{left}")

    def tell_where(self) -> None:
        """In a log: a line on what goes on, where there was none for a while."""
        silent = self.clock() - self.told_at
        if silent >= SECONDS_BETWEEN_LINES:
            self._say(f"{self._where()}, {clock_time(silent)} since the last line")

    def _where(self) -> str:
        step = self.last_step
        if step is None:
            last = self.last_epoch
            return "at work" if last is None else f"at work after epoch {last.epoch} of {last.stage}"
        at = f"{step.stage}, epoch {step.epoch}"
        if step.step == step.num_steps:
            return f"{at}: validating"
        return f"{at}: {step.step:,} of {step.num_steps:,} steps, loss {float(step.loss):.4f}"

    def _foretell(self, report: StepReport, now: float) -> None:
        """How long the stage will take, from the pace of its first steps and the time of its first validation."""
        last = self.last_epoch
        if self.foretold == report.stage or last is None or last.stage != report.stage or last.epoch > 0:
            return
        assert self.first_step is not None
        first, started = self.first_step
        steps, taken = report.step - first.step, now - started
        if steps == 0 or taken < SECONDS_TO_TIME or report.step == report.num_steps:
            return
        self.foretold = report.stage
        seconds = taken / steps * report.num_steps + last.seconds
        self.left = describe_time_left(replace(last, seconds=seconds), self.patience_of(report.stage))
        if not self.console.is_terminal:
            timed = f"{steps:,} of {report.num_steps:,} steps took {clock_time(taken)}"
            self._say(f"{report.stage}: {timed}, so an epoch about {clock_time(seconds)}; {self.left}")

    def _beat(self) -> None:
        while not self.stopped.wait(1.0):
            self.tell_where()

    def _say(self, line: str) -> None:
        self.told_at = self.clock()
        self.console.print(line, soft_wrap=True)  # one line, however long

    def _task_of(self, stage: str) -> TaskID:
        if self.task is None or stage != self.stage:
            self.stage = stage
            self.task = self.bars.add_task(stage, loss="-", metric="", left="", total=None)
        return self.task


def describe_metric(report: EpochReport) -> str:
    """The validation metric of an epoch and of the best one."""
    if report.metric is None or report.best_metric is None:
        return "no validation rows"
    return f"NDCG@10 {report.metric:.4f} (best {report.best_metric:.4f}, epoch {report.best_epoch})"


def describe_time_left(report: EpochReport, patience: int) -> str:
    """From the soonest end by early stopping to the last epoch, at this epoch's pace."""
    most = report.max_epochs - report.epoch
    soonest = min(most, max(0, report.best_epoch + patience - report.epoch))
    if soonest == 0:
        return "done"
    if soonest == most:
        return f"{clock_time(most * report.seconds)} left"
    return f"{clock_time(soonest * report.seconds)} to {clock_time(most * report.seconds)} left"


def clock_time(seconds: float) -> str:
    """
    Minutes and seconds, hours before them when there are any.

    >>> clock_time(75.4), clock_time(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StageProgress:
    """
    A bar per stage of a piece of work; use as a context manager and call it. In a log, a line at each stage's start and
    at most every ten seconds.

    Args:
        console: where to write.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.started = self.told_at = clock()
        self.stage = ""
        self.task: TaskID | None = None
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> StageProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.task is not None and error is None:
            self.bars.update(self.task, completed=1.0)
        self.bars.stop()

    def __call__(self, stage: str, fraction: float) -> None:
        """Fraction, 0 to 1, of *stage*; a new stage completes the one before it."""
        if self.task is None or stage != self.stage:
            if self.task is not None:
                self.bars.update(self.task, completed=1.0)
            self.stage = stage
            self.task = self.bars.add_task(stage, total=1.0)
            if not self.console.is_terminal:
                self.console.print(stage)
            self.started = self.told_at = self.clock()
        elif not self.console.is_terminal and self.clock() >= self.told_at + SECONDS_BETWEEN_LINES:
            self.told_at = self.clock()
            self.console.print(f"{stage}: {fraction:.0%} after {clock_time(self.told_at - self.started)}")
        self.bars.update(self.task, completed=fraction)

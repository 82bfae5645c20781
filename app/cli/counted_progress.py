"""
Progress of work that is counted: how much is done, how fast, and when it will be over; on a terminal and in a log.

The first seconds of the work are timed, and what all of it will take is said before it has. Free of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from app.cli.progress import SECONDS_TO_TIME, clock_time

# Of less, nobody needs to be told.
LONG_SECONDS = 15.0
SECONDS_BETWEEN_LINES = 8.0


class CountedProgress:
    """
    A bar, or lines where the output is no terminal; use as a context manager and call it.

    Args:
        console: where to write.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.stage = ""
        self.task: TaskID | None = None
        self.started = self.said = 0.0
        self.first = 0
        self.foretold = False
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> CountedProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many of *total* are done; a new *stage*, a sentence without its full stop, begins to be timed."""
        now = self.clock()
        if self.task is None or stage != self.stage:
            self._begin(stage, done, total, now)
        assert self.task is not None
        taken = now - self.started
        left = taken / (done - self.first) * (total - done) if done > self.first else None
        self.bars.update(self.task, completed=done, left="" if left is None else f"{clock_time(left)} left")
        if left is None or done == total:
            return
        if not self.foretold and taken >= SECONDS_TO_TIME:
            self.foretold = True
            if taken + left >= LONG_SECONDS:
                first = f"the first {done - self.first:,} took {clock_time(taken)}"
                self._say(f"{stage}: {first}, so about {clock_time(left)} more", now)
        elif not self.console.is_terminal and now - self.said >= SECONDS_BETWEEN_LINES:
            pace = (done - self.first) / taken
            self._say(f"{stage}: {done:,} of {total:,}, {pace:,.0f} a second, {clock_time(left)} left", now)

    def _begin(self, stage: str, done: int, total: int, now: float) -> None:
        if self.task is not None:
            self.bars.update(self.task, completed=self.bars.tasks[self.task].total, left="")
        self.stage, self.first, self.started, self.foretold = stage, done, now, False
        self.task = self.bars.add_task(stage, total=total, completed=done, left="")
        if not self.console.is_terminal:
            self._say(f"{stage}: {total:,}", now)

    def _say(self, line: str, now: float) -> None:
        self.said = now
        self.console.print(line, soft_wrap=True)

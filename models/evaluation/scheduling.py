"""
Run the cells of a grid, one after the other or several at once.

Cells know nothing of each other: each has its own seed, its own random numbers and its own file, so a grid gives the
same cells in any order and with any number of processes. Several processes pay where one training does not fill the
machine: on many cores, and on a GPU that a small recommender leaves idle. Each has its share of the cores.

``concurrent.futures`` does the work; joblib and Ray were weighed, and offer nothing more for a few long tasks of one
machine that keep their own results.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any

import torch

from models.evaluation.arms import RowName
from models.evaluation.cells import Cell, Grid
from models.training.loop import EpochReport, Progress, StepReport


@dataclass(frozen=True)
class CellTask:
    """One cell to run: the number of its arm in ``Grid.arms``, what is trained, and its seed."""

    recommender: str
    arm: int
    seed: int


@dataclass(frozen=True)
class CellReport:
    """One cell is about to run (``cell`` is None) or is there; ``reused``: it was read back."""

    number: int
    total: int
    recommender: str
    arm: RowName
    seed: int
    cell: Cell | None
    reused: bool


def run_cells(
    grid: Grid,
    tasks: Sequence[CellTask],
    *,
    processes: int = 1,
    progress: Progress | None = None,
    on_cell: Callable[[CellReport], None] | None = None,
) -> tuple[list[Cell], int]:
    """
    The cells of *tasks*, in that order, and how many of them were read back.

    Args:
        processes: how many cells train at once; 1 trains them in this process.
        progress: receiver of training reports; with several processes of their epochs, whose stages then carry the
            number of the cell.
        on_cell: called when a cell is about to run and when it is there.

    Raises:
        DatasetFormatError: a finished cell's file is damaged.
        TrainingError: a cell cannot be trained. Cells that run beside it end first, and are kept.
    """

    def report(number: int, cell: Cell | None, *, reused: bool = False) -> None:
        task = tasks[number]
        if on_cell is not None:
            name = grid.arms[task.arm].name
            on_cell(CellReport(number + 1, len(tasks), task.recommender, name, task.seed, cell, reused))

    cells: dict[int, Cell] = {}
    for number, task in enumerate(tasks):
        done = grid.finished(task.recommender, grid.arms[task.arm], task.seed)
        if done is not None:
            cells[number] = done
            report(number, done, reused=True)
    reused = len(cells)
    todo = [number for number in range(len(tasks)) if number not in cells]
    run = _in_turn if processes == 1 or len(todo) < 2 else _at_once
    for number, cell in run(grid, tasks, todo, processes, progress, lambda number: report(number, None)):
        cells[number] = cell
        report(number, cell)
    return [cells[number] for number in range(len(tasks))], reused


def _in_turn(
    grid: Grid,
    tasks: Sequence[CellTask],
    todo: Sequence[int],
    processes: int,
    progress: Progress | None,
    on_start: Callable[[int], None],
) -> Iterator[tuple[int, Cell]]:
    del processes
    for number in todo:
        on_start(number)
        task = tasks[number]
        yield number, grid.run(task.recommender, grid.arms[task.arm], task.seed, progress)


def _at_once(
    grid: Grid,
    tasks: Sequence[CellTask],
    todo: Sequence[int],
    processes: int,
    progress: Progress | None,
    on_start: Callable[[int], None],
) -> Iterator[tuple[int, Cell]]:
    # Threads of torch do not survive a fork, nor does CUDA.
    context = multiprocessing.get_context("spawn")
    reports: Any = context.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(reports, progress, on_start), daemon=True)
    pool = ProcessPoolExecutor(min(processes, len(todo)), context, _start, (grid, processes, reports))
    listener.start()
    try:
        futures: dict[Future[Cell], int] = {pool.submit(_run, number, tasks[number]): number for number in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        reports.put(None)
        listener.join()


def _listen(reports: Any, progress: Progress | None, on_start: Callable[[int], None]) -> None:
    """Pass on what the processes report, until None."""
    while (report := reports.get()) is not None:
        if isinstance(report, int):
            on_start(report)
        elif progress is not None:
            progress.on_epoch(report)


# What a process of the pool works on; set once, as it starts.
_grid: Grid
_reports: Any  # a multiprocessing queue of numbers of cells that begin, EpochReport and None at the end


def _start(grid: Grid, processes: int, reports: Any) -> None:
    global _grid, _reports
    _grid, _reports = grid, reports
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its pool; cells go on from their last epoch when they are run again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(number: int, task: CellTask) -> Cell:
    _reports.put(number)
    return _grid.run(task.recommender, _grid.arms[task.arm], task.seed, _Forwarded(number + 1))


@dataclass(frozen=True)
class _Forwarded:
    """Sends the epochs of one cell to the main process."""

    number: int

    def on_step(self, report: StepReport) -> None:
        """Steps are for the eye; several cells at once would be a flicker."""

    def on_epoch(self, report: EpochReport) -> None:
        """Under a name that tells cells of one recommender apart."""
        _reports.put(replace(report, stage=f"{report.stage}, cell {self.number}"))

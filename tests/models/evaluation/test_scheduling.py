"""Several cells at once: the same cells, each reported as it begins and ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from models.errors import DatasetFormatError
from models.evaluation.arms import build_arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.cells import Cell, Grid
from models.evaluation.scheduling import CellReport, CellTask, run_cells
from models.recommenders.recommender import SharedConfig
from models.training.loop import TrainingConfig

SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=3e-3, batch_size=16, max_epochs=2),
    shared=SharedConfig(width=16, inner_width=16),
)
TASKS = (CellTask("sasrec", 0, 1), CellTask("markov", 0, 1), CellTask("sasrec", 0, 2))


class Epochs:
    """Remembers which stages reported which epochs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_step(self, report):
        pass

    def on_epoch(self, report):
        self.seen.append((report.stage, report.epoch))


def grid_of(dataset, folder: Path) -> Grid:
    return Grid((build_arm(dataset, "food", "original", None),), SMALL, folder, torch.device("cpu"))


def timeless(cells: list[Cell]) -> list[Cell]:
    return [dataclasses.replace(cell, seconds=0.0) for cell in cells]


def test_two_processes_give_the_cells_of_one_in_the_order_asked_for(dataset, tmp_path):
    """And report every cell twice, every epoch under the number of its cell."""
    alone, _ = run_cells(grid_of(dataset, tmp_path / "alone"), TASKS)
    reports: list[CellReport] = []
    epochs = Epochs()
    grid = grid_of(dataset, tmp_path / "both")
    both, reused = run_cells(grid, TASKS, processes=2, progress=epochs, on_cell=reports.append)

    assert timeless(both) == timeless(alone)
    assert reused == 0
    assert sorted((r.number, r.cell is None) for r in reports) == [(n, b) for n in (1, 2, 3) for b in (False, True)]
    assert sorted(epochs.seen) == [(f"sasrec, cell {number}", epoch) for number in (1, 3) for epoch in (0, 1, 2)]


def test_finished_cells_are_read_back_and_only_the_others_run(dataset, tmp_path):
    """Whatever trained them."""
    grid = grid_of(dataset, tmp_path)
    first, _ = run_cells(grid, TASKS[:2])
    reports: list[CellReport] = []
    every, reused = run_cells(grid, TASKS, processes=2, on_cell=reports.append)

    assert every[:2] == first
    assert reused == 2
    assert [(r.number, r.reused) for r in reports] == [(1, True), (2, True), (3, False), (3, False)]


def test_a_cell_that_fails_ends_the_run_with_its_own_error_and_the_others_are_kept(dataset, tmp_path):
    """A damaged file of a finished cell, met by a process of the pool as by this one."""
    grid = grid_of(dataset, tmp_path)
    (done,), _ = run_cells(grid, TASKS[:1])
    (tmp_path / f"{done.key}.json").write_text(json.dumps({"ranks": []}))

    with pytest.raises(DatasetFormatError, match="a damaged cell"):
        run_cells(grid, TASKS, processes=2)

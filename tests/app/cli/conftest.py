"""`taesar` run in this process, and a bundle that it trained."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli.taesar import main
from models.data.dataset import Dataset
from tests.command_line import NO_TRAINING


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``taesar`` in this process: (exit code, standard output, standard error)."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taesar", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), err

    for name in [name for name in os.environ if name.startswith("TAESAR_")]:
        monkeypatch.delenv(name)
    return run_command


@pytest.fixture
def trained(run, tmp_path, dataset: Dataset) -> Path:
    """A bundle of random weights of the small dataset."""
    code, _, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *NO_TRAINING)
    assert (code, err) == (0, "")
    return tmp_path / "bundle"

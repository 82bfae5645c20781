"""A file over which the reading library ends its process is one line of the command, in a process as users start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYOUTS = Path(__file__).resolve().parents[2] / "layouts"
# Arrow's C++ aborts over its rows.
ABORTING = LAYOUTS / "aborting_rows.parquet"
START = [sys.executable, "-c", "from app.cli.taesar import start; start()"]


def taesar(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAESAR_")}
    return subprocess.run(
        [*START, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize("command", [("prepare",), ("check", "--target", "kitchen")])
def test_a_file_that_ends_the_process_that_reads_it_is_named_in_one_line(tmp_path, command):
    done = taesar(*command, LAYOUTS / "truth.csv.gz", ABORTING, "--out", tmp_path / "out", "--json")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("taesar:")]
    answer = json.loads(done.stdout.splitlines()[-1])

    assert done.returncode == 2
    assert str(ABORTING) in line
    assert "truth.csv.gz" not in line
    assert answer["ok"] is False
    assert str(ABORTING) in answer["error"]
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("arguments", "code"), [(("prepare", "--help"), 0), (("prepare", "nowhere.csv", "--out", "x"), 2)]
)
def test_any_other_end_of_the_command_is_as_it_was(arguments, code):
    assert taesar(*arguments).returncode == code

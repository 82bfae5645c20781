"""A green run under CI has run everything that it could."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="{reason}, by a mark")
def test_marked(): pass

def test_inside(): pytest.skip("{reason}, inside")

@pytest.fixture
def part(): pytest.skip("{reason}, by a fixture")

def test_fixture(part): pass

def test_that_runs(): pass
"""
MODULE = "import pytest\npytest.importorskip('nothing_of_this_name', reason='{reason}, by a module')\n"
WAYS = {"by a mark", "inside", "by a fixture", "by a module"}


def run(folder: Path, *, reason: str, ci: str | None) -> subprocess.CompletedProcess[str]:
    for name, text in (("test_skips.py", SKIPS), ("test_module.py", MODULE)):
        (folder / name).write_text(text.format(reason=reason))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.silent_skips", "-p", "no:cacheprovider", str(folder)]
    ci_or_not = {} if ci is None else {"CI": ci}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment | ci_or_not)


def test_what_is_missing_under_ci_fails_the_run_and_is_named(tmp_path):
    done = run(tmp_path, reason="no C++ compiler", ci="true")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert {way for way in WAYS if f"no C++ compiler, {way}" in done.stdout} == WAYS
    assert "1 passed, 4 skipped" in done.stdout


@pytest.mark.parametrize(("reason", "ci"), [("no C++ compiler", None), ("no GPU: interpreted", "true")])
def test_elsewhere_it_is_skipped_and_so_is_what_a_machine_cannot_have_under_ci(tmp_path, reason, ci):
    assert run(tmp_path, reason=reason, ci=ci).returncode == pytest.ExitCode.OK

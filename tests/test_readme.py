"""The README's quick start, executed as it stands: real sample, real training, a real server, one HTTP request."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest

from tests.services import free_port

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 120


def quick_start() -> list[tuple[str, str]]:
    """(language, code) of every fenced block of the section, in order."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quick start\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


@contextlib.contextmanager
def shell(code: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """
    Run *code* in bash; what it leaves in the background lives as long as the block, then gets a reader's Ctrl-C.

    The shell waits for its background jobs, so its output ends when they do.
    """
    running = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"{code}\necho quick-start-done\nwait"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        try:
            running.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()


def wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail("the server of the quick start did not become ready")


def test_the_quick_start_runs_as_written(tmp_path) -> None:
    """Commands, files and answer; only the port is another one, so that tests can run side by side."""
    (first_language, commands), (second_language, request) = quick_start()
    port = free_port()
    assert (first_language, second_language) == ("bash", "python")
    assert "8000" in commands
    assert "8000" in request
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAESAR_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}

    with shell(commands.replace("8000", str(port)), tmp_path, environment) as running:
        assert running.stdout is not None
        transcript = []
        for line in running.stdout:
            transcript.append(line)
            if line == "quick-start-done\n":
                break
        assert transcript[-1] == "quick-start-done\n", "".join(transcript)
        wait_until_ready(port)
        done = subprocess.run(
            [sys.executable, "-c", request.replace("8000", str(port))],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    printed = re.fullmatch(r"\[(.*)\] (\d+) (\d+) (\d+) (\d+)\n", done.stdout)
    assert printed, done.stdout
    assert sum(map(int, printed.groups()[1:])) == 3
    assert int(printed.group(5)) == 0, "the README's items must be in the sample's vocabulary"
    composite = pl.read_parquet(tmp_path / "quickstart" / "kitchen" / "composite.parquet")
    assert {"original"} <= set(composite["origin"])
    assert (tmp_path / "quickstart" / "kitchen" / "kitchen.inter").is_file()

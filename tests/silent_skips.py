"""
Under ``CI=true`` nothing that a test needs is silently missing: a run with any other skipped test than those below
fails, however green it is. ``conftest`` puts these hooks in place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# How the reasons begin that may be: hardware or a kernel that a machine has or has not, data that cannot be passed on,
# and what a command of its own runs.
ALLOWED = ("no GPU:", "no Landlock:", "no real tables", "no image:", "no Ray cluster:")

_refused = pytest.StashKey[list[str]]()


def is_ci() -> bool:
    """Whether this run decides about a change."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_refused] = []
    config.pluginmanager.register(_Watch(config), "silent-skips")


class _Watch:
    """Gathers the reasons of skipped tests and files; with xdist in the process that the workers report to."""

    def __init__(self, config: pytest.Config) -> None:
        self._refused = config.stash[_refused]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if is_ci() and not reason.removeprefix("Skipped: ").startswith(ALLOWED):
            self._refused.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self._refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refused:
            terminalreporter.section("skipped, but under CI nothing may be missing", red=True)
            for line in sorted(set(self._refused)):
                terminalreporter.line(line)

"""
A pytest plugin that notes which lines of a few files each test runs, and how long the test takes.

Own code, because pytest-cov and coverage with a context per test would be a dependency for these forty lines, and
because what a shared fixture ran must count for every test, not for the first that asked for it.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import pytest

# The place of lines that no single test runs: at import, in fixtures of a wider scope, in threads between tests.
SHARED = ""


class Observer:
    """Lines by file and test, seconds by test; every thread of this process is watched, other processes are not."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.lines: dict[str, dict[str, set[int]]] = {path: defaultdict(set) for path in paths}
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self._place = SHARED

    def start(self) -> None:
        """From now on."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self.lines:
            return None
        return self._line(frame, event, argument)

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.lines[frame.f_code.co_filename][self._place].add(frame.f_lineno)
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._place = item.nodeid
        try:
            return (yield)
        finally:
            self._place = SHARED

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before = self._place
        if fixturedef.scope != "function":
            self._place = SHARED
        try:
            return (yield)
        finally:
            self._place = before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed:
            self.seconds[report.nodeid] += report.duration
        elif report.failed:
            self.failed.append(report.nodeid)

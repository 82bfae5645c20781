"""A copy of the repository in which one module at a time is made faulty, and tests run in forked processes."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.modules import Module
from tests.mutation.observed import SHARED, Observer

# Ours, imported anew in each process: a fault may lie in any of it.
_OURS = ("app", "models", "tests")
_COPIED = ("app", "models", "migrations", "tests", "benchmarks", "examples", "pyproject.toml")
# Plain assertions fail as well as rewritten ones, and the collections of garbage are for warnings that no fault causes.
_OPTIONS = (
    *("-x", "-q", "--assert=plain", "--hypothesis-seed=0"),
    *("-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:xdist"),
)


@dataclass(frozen=True)
class CleanRun:
    """
    What the module's tests do while the module is right.

    Args:
        seconds: of each test, in the order of the run.
        lines: of the module, that each test runs; under ``SHARED`` those that all may depend on.
    """

    seconds: dict[str, float]
    lines: dict[str, list[int]]

    def tests_of(self, first: int, last: int) -> list[str]:
        """The tests that run one of the lines, the fastest first; all where the lines are shared."""
        wanted = set(range(first, last + 1))
        shared = wanted & set(self.lines.get(SHARED, ()))
        tests = [test for test in self.seconds if shared or wanted & set(self.lines.get(test, ()))]
        return sorted(tests, key=self.seconds.__getitem__)


class Workbench:
    """
    A copy of the repository in *folder*: what is edited meanwhile changes nothing.

    Faults are written to disk, so that processes which a test starts meet them, too. The module's bytecode goes before
    and after: Python takes it for fresh when size and second agree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def import_what_is_not_ours(self) -> None:
        """Import once, before any fork, the libraries that our modules and pytest need: seconds of each run."""

        def list_modules(report: Path) -> int:
            for found in pkgutil.walk_packages([str(self.folder)]):
                if found.name.split(".")[0] in ("app", "models"):
                    importlib.import_module(found.name)
            report.write_text(json.dumps([name for name in sys.modules if name.split(".")[0] not in _OURS]))
            return 0

        code, names = self._fork(list_modules, limit_seconds=600)
        if code != 0:
            raise RuntimeError(f"the imports fail:\n{self._output()}")
        for plugin in entry_points(group="pytest11"):
            plugin.load()
        for name in names:
            if not name.startswith("triton"):  # the tests say first how it is to run (tests/conftest.py)
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def _output(self) -> str:
        return (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")[-4000:]

    @contextlib.contextmanager
    def holding(self, module: Module, source: bytes) -> Iterator[None]:
        """The module says *source* inside the block."""
        place = self.folder / module.path
        original = place.read_bytes()
        self._write(place, source)
        try:
            yield
        finally:
            self._write(place, original)

    @staticmethod
    def _write(place: Path, source: bytes) -> None:
        place.write_bytes(source)
        for bytecode in (place.parent / "__pycache__").glob(f"{place.stem}.*.pyc"):
            bytecode.unlink()

    def run_clean(self, modules: Sequence[Module]) -> list[CleanRun]:
        """
        Run the tests of *modules* as they are, watched, each once; what each module's did.

        Raises:
            RuntimeError: one of them fails.
        """
        places = [str(self.folder / module.path) for module in modules]
        observer = Observer(places)
        tests = list(dict.fromkeys(test for module in modules for test in module.tests))

        def watched(report: Path) -> int:
            observer.start()
            code = pytest.main([*_OPTIONS, *tests], plugins=[observer])
            lines = [{test: sorted(found) for test, found in observer.lines[place].items()} for place in places]
            report.write_text(json.dumps({"seconds": observer.seconds, "lines": lines, "failed": observer.failed}))
            return int(code)

        code, report = self._fork(watched, limit_seconds=1800)
        if code != 0 or report is None:
            raise RuntimeError(f"{tests} fail as they are:\n{self._output()}")
        return [CleanRun(report["seconds"], lines) for lines in report["lines"]]

    def first_failure(self, tests: list[str], *, limit_seconds: float) -> str | None:
        """
        The first of *tests* that fails, "time" when they end too late, None when all pass.

        Time that its threads were ready to run while others had the processors does not count.
        """
        observer = Observer()

        def quiet(report: Path) -> int:
            code = pytest.main([*_OPTIONS, *tests], plugins=[observer])
            report.write_text(json.dumps({"failed": observer.failed}))
            return int(code)

        code, report = self._fork(quiet, limit_seconds=limit_seconds)
        if code is None:
            return "time"
        if code == 0:
            return None
        return report["failed"][0] if report and report["failed"] else "import"

    def _fork(self, work: Callable[[Path], int], *, limit_seconds: float) -> tuple[int | None, Any]:
        """Exit code of *work* in a process of its own, None when it ran out of time; and what it reported."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._work_and_leave(work, report)
        code = None
        try:
            code = self._wait(child, limit_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):  # with the servers that its tests left running
                os.killpg(child, signal.SIGKILL)
            if code is None:
                os.waitpid(child, 0)
        return code, json.loads(report.read_text()) if report.exists() else None

    def _work_and_leave(self, work: Callable[[Path], int], report: Path) -> None:
        code = 70
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            silence = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            for name in [name for name in sys.modules if name.split(".")[0] in _OURS]:
                del sys.modules[name]
            code = work(report)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def _wait(child: int, limit_seconds: float) -> int | None:
        started = time.monotonic()
        while time.monotonic() - started < limit_seconds + _seconds_in_line(child):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None


@contextlib.contextmanager
def workbench(root: Path) -> Iterator[Workbench]:
    """A workbench whose folder goes at the end; this process works in it meanwhile."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="taesar-mutation-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in _COPIED:
            copy = shutil.copytree if (root / part).is_dir() else shutil.copy
            copy(root / part, folder / part)
        for cache in folder.rglob("__pycache__"):
            shutil.rmtree(cache)
        os.environ |= {"PYTHONPATH": name, "OMP_NUM_THREADS": "1"}
        sys.path[:] = [name, *(path for path in sys.path if Path(path or ".").resolve() != root)]
        os.chdir(folder)
        bench = Workbench(folder)
        try:
            bench.import_what_is_not_ours()
            yield bench
        finally:
            os.chdir(before)


def _seconds_in_line(process: int) -> float:
    """How long a thread of the process, the unluckiest, was ready and did not run."""
    longest = 0
    for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            longest = max(longest, int(thread.read_text().split()[1]))
    return longest / 1e9


def as_json(clean: CleanRun) -> dict[str, Any]:
    """For the file of records."""
    return asdict(clean)

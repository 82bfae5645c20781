"""
A command that reads strangers' files, in a process that may die.

Arrow's C++ ends its process over a few damaged Parquet files. The command then ends as it does for any other bad file:
with one line that names it, its object where ``--json`` asks for one, and exit code 2.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType

from app.cli.console import USAGE_ERROR, print_error

COMMANDS = ("check", "prepare")
"""Commands whose inputs come from elsewhere."""

_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def contain_crashes(arguments: Sequence[str]) -> None:
    """
    Go on in a child process; this one waits, ends as the child does, and says so in one line where that is a crash.

    Args:
        arguments: of the command line, its name left out.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return
    child = os.fork()
    if child == 0:
        return
    _forward_signals(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        os._exit(code)
    if -code not in _CRASHES and -code != signal.SIGKILL:
        os._exit(128 - code)
    line = _said_of(signal.Signals(-code), arguments[1:])
    print_error(f"taesar: {line}")
    if "--json" in arguments:
        sys.stdout.write(f"{json.dumps({'command': arguments[0], 'ok': False, 'error': line})}\n")
    sys.stdout.flush()
    os._exit(USAGE_ERROR)


def _forward_signals(child: int) -> None:
    def send(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, send)


def _said_of(ending: signal.Signals, arguments: Sequence[str]) -> str:
    if ending is signal.SIGKILL:
        return "the process was killed (SIGKILL): is there too little memory? --memory bounds what it takes"
    named = ", ".join(_files_that_crash(arguments)) or "an input"
    return f"{named}: the file ended the process that read it ({ending.name}); is it damaged?"


def _files_that_crash(arguments: Sequence[str]) -> list[str]:
    """Those of the files among *arguments* that end a process which reads nothing else."""
    from models.data.reading.interactions import read_interactions
    from models.data.reading.places import files_of
    from models.errors import ModelError

    found = []
    for argument in arguments:
        try:
            paths = [file.path for file in files_of([argument]) if file.path is not None]
        except (ModelError, OSError):
            continue
        found += [str(path) for path in paths if _ends_process(partial(read_interactions, path, max_bad_row_share=1.0))]
    return found


def _ends_process(read: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        os.close(2)  # the library says so once more
        try:
            read()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0

"""
Reading foreign files in a process that may die.

A native library may end the process that it is in (Arrow does over some damaged Parquet footers), and a file may cost
more memory or time than it is worth. So inputs are read in a process of their own, which has limits: when it ends
without a word, the input is refused, and nothing else has happened.

The process opens nothing itself: it asks for a file by its number, and gets an open descriptor (``reading_task``). This
side thus opens and checks every file in one place (``sources``), and holds the credentials of object stores. Nothing
that comes back is ever executed. Processes are forked by a program that was started for it (``reading_server``), with
none of this one's environment and descriptors.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from app.errors import FilesUnavailableError, RequestTooLargeError, UnsupportedFormatError
from app.jobs import reading_server
from app.jobs.formats import BadRow, SequenceRow, SourceLimits
from app.jobs.reading_task import CHECK_CPU_SECONDS, ROW_FIELDS
from models.data.reading.layouts import Layout, layout_fields
from models.data.reading.places import InputFile
from models.errors import InputFormatError

# Far beyond its time of computing: only a process that is stuck takes so long, or a machine that is
CHECK_SECONDS = 120.0
END_SECONDS = 5.0
COPY_BYTES = 1 << 20
MESSAGE_BYTES = 1 << 18
# Interactions come only when all of a file has been read and sorted, minutes later: who asked may have left by then
LOOK_SECONDS = 2.0
# All that the program is told of this process's environment: where libraries lie. What else it needs is set here.
KEPT_VARIABLES = frozenset({"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
SET_VARIABLES = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
_ERRORS: dict[str, type[Exception]] = {"format": InputFormatError, "unsupported": UnsupportedFormatError}


class ReadingUnwantedError(Exception):
    """Nobody waits for the rows any more; the process that read them was ended."""


def check_in_process(file: InputFile, layout: Layout, limits: SourceLimits) -> str:
    """
    ``formats.check_format`` of one file; returns its format.

    Raises:
        InputFormatError: the file is not of its format, or ended the process, or takes too long.
        RequestTooLargeError, UnsupportedFormatError: see there.
        FilesUnavailableError: the program that reads was killed.
    """
    with _Reading([file], layout, limits, only_check=True) as reading:
        for message in reading.messages():
            if "format" in message:
                return str(message["format"])
    raise InputFormatError(f"{file.facts.name}: nothing was read of it")


def read_in_process(
    files: Sequence[InputFile],
    layout: Layout,
    limits: SourceLimits,
    *,
    warn: Callable[[str], None] = lambda _warning: None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Generator[SequenceRow | BadRow]:
    """
    ``formats.read_rows`` of *files*; *warn* is told what is odd about them before the last row has come.

    Args:
        is_wanted: asked every few seconds while nothing comes.

    Raises:
        ReadingUnwantedError: it said no.
        InputFormatError: a file is not of its format, or ended the process.
        RequestTooLargeError, UnsupportedFormatError: see there; and what opening a file raises.
        FilesUnavailableError: the program that reads was killed.
    """
    with _Reading(files, layout, limits, only_check=False) as reading:
        for message in reading.messages(is_wanted):
            for warning in message.get("warnings", ()):
                warn(warning)
            for row in message.get("rows", ()):
                yield _row(row) if len(row) == len(ROW_FIELDS) else BadRow(*row)


class _Server:
    """The program that reading processes are forked from: started at the first of them, and again when it has died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def begin(self) -> tuple[socket.socket, socket.socket]:
        """A new process: its channel, and the socket that tells its exit status; closing the latter ends it."""
        (channel, their_channel), (report, their_report) = socket.socketpair(), socket.socketpair()
        with their_channel, their_report, self._lock:
            descriptors = [their_channel.fileno(), their_report.fileno()]
            if self._requests is not None:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._requests, [b"\n"], descriptors)
                    return channel, report
            socket.send_fds(self._started(), [b"\n"], descriptors)
        return channel, report

    def close(self) -> None:
        """End the program and every process of it."""
        if self._process is not None and self._requests is not None:
            self._requests.close()
            self._requests = None
            self._process.wait()

    def _started(self) -> socket.socket:
        self.close()
        requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", reading_server.__name__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=bare_environment(os.environ),
            )
        self._requests = requests
        return requests


def bare_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a process that reads foreign files may know of the environment *ours*, which holds keys and addresses."""
    kept = {name: ours[name] for name in sorted(KEPT_VARIABLES & ours.keys())}
    places = [os.path.abspath(place) for place in sys.path if place]  # noqa: PTH100
    return {**kept, **SET_VARIABLES, "PYTHONPATH": os.pathsep.join(places)}


_SERVER = _Server()
atexit.register(_SERVER.close)


class _Reading:
    """The parent's side of a process that reads."""

    def __init__(self, files: Sequence[InputFile], layout: Layout, limits: SourceLimits, *, only_check: bool) -> None:
        self._files, self._only_check = files, only_check
        self._task = {
            "facts": [dataclasses.asdict(file.facts) for file in files],
            "layout": layout_fields(layout),
            "limits": dataclasses.asdict(limits),
            "only_check": only_check,
        }

    def __enter__(self) -> _Reading:
        self._scratch = tempfile.mkdtemp(prefix="taesar-reading-")
        try:
            self._socket, self._report = _SERVER.begin()
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._report.shutdown(socket.SHUT_WR)  # it has ended, or is not needed any more
        self._exit_code()
        self._report.close()
        self._socket.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def messages(self, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[dict[str, Any]]:
        """What the process says until its end; raises the error that it met, or that it died."""
        current = ", ".join(file.facts.name for file in self._files[:1])
        try:
            self._socket.sendall(json.dumps({**self._task, "scratch": self._scratch}).encode() + b"\n")
            for line in self._lines(is_wanted):
                message = json.loads(line)
                if "open" in message:
                    file = self._files[message["open"]]
                    current = file.facts.name
                    self._send(file)
                elif "error" in message:
                    raise _error(message)
                elif "end" in message:
                    return
                else:
                    yield message
        except TimeoutError as error:
            raise InputFormatError(
                f"{current}: looking at its beginning takes longer than {CHECK_SECONDS:g} s"
            ) from error
        except (BrokenPipeError, ConnectionResetError, ValueError):
            pass  # it died in the middle of a message
        ending = self._ending()
        if ending is None:
            raise FilesUnavailableError("the program that reads inputs was ended; it is started again for the next")
        raise InputFormatError(f"{current}: the file ended the process that read it ({ending}); is it damaged?")

    def _lines(self, is_wanted: Callable[[], bool]) -> Iterator[bytes]:
        """What the process says, line by line, until it ends; TimeoutError where a check takes too long."""
        begun: list[bytes] = []
        while True:
            self._socket.settimeout(CHECK_SECONDS if self._only_check else LOOK_SECONDS)
            try:
                part = self._socket.recv(MESSAGE_BYTES)
            except TimeoutError:
                if self._only_check:
                    raise
                if not is_wanted():
                    raise ReadingUnwantedError from None
                continue
            finally:
                self._socket.settimeout(None)
            if not part:
                return
            *ends, rest = part.split(b"\n")
            for end in ends:
                yield b"".join([*begun, end])
                begun = []
            begun.append(rest)

    def _send(self, file: InputFile) -> None:
        """An open file for the process: the descriptor, or that of a copy where there is none."""
        with contextlib.ExitStack() as stack:
            content = stack.enter_context(file.open())
            descriptor = _descriptor(content)
            if descriptor is None:
                copy = stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))
                shutil.copyfileobj(content, copy, COPY_BYTES)
                copy.flush()
                descriptor = copy.fileno()
            os.lseek(descriptor, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [b"\n"], [descriptor])

    def _ending(self) -> str | None:
        """How the process ended; None where the program that it came from did, which reads no file."""
        code = self._exit_code()
        if code is None:
            return None
        if code == -signal.SIGXCPU:
            return f"it took more than {CHECK_CPU_SECONDS} s"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def _exit_code(self) -> int | None:
        """Waits for the end of the process."""
        self._report.settimeout(END_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            return int(self._report.recv(100))
        return None


def _row(values: Sequence[Any]) -> SequenceRow:
    line, user_id, item_ids, domains, num_rows, times, carried = values
    return SequenceRow(line, user_id, item_ids, domains, num_rows, times or (), carried or ())


def _descriptor(file: BinaryIO) -> int | None:
    try:
        return file.fileno()
    except (OSError, AttributeError):
        return None


def _error(message: dict[str, Any]) -> Exception:
    if message["error"] == "large":
        return RequestTooLargeError(message["what"], message["limit"], "TAESAR_MAX_EXPANDED_BYTES")
    if message["error"] == "outage":
        return OSError(message["errno"], message["what"])
    return _ERRORS[message["error"]](message["what"])

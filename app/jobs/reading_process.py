"""
Reading foreign files in a process that may die.

A native library may end the process that it is in (Arrow does over some damaged Parquet footers), and a file may cost
more memory or time than it is worth. So inputs are read in a process of their own, which has limits: when it ends
without a word, the input is refused, and nothing else has happened.

The process opens nothing itself: it asks for a file by its number, and gets it as an open descriptor over the socket
that carries everything else, as lines of JSON. The parent thus opens and checks every file in one place (``sources``),
and holds the credentials of object stores. Nothing that comes back is ever executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import RequestTooLargeError, ServiceError, UnsupportedFormatError
from app.jobs.formats import BadRow, SequenceRow, SourceLimits, check_format, read_rows
from models.data.reading.layouts import Layout, layout_fields, layout_of
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts
from models.errors import InputFormatError, ModelError

# Private memory of the process: far above what bounded reading takes, so that only a hostile file meets it.
MAX_MEMORY_BYTES = 6 << 30
# A check looks at the beginning of a file, or at a footer; a client waits for it.
CHECK_CPU_SECONDS, CHECK_SECONDS = 10, 30.0
ROWS_A_MESSAGE = 256
MESSAGE_BYTES = 1 << 16
COPY_BYTES = 1 << 20
_ROW_FIELDS = tuple(field.name for field in dataclasses.fields(SequenceRow))
_ERRORS: dict[str, type[Exception]] = {"format": InputFormatError, "unsupported": UnsupportedFormatError}


def check_in_process(file: InputFile, layout: Layout, limits: SourceLimits) -> str:
    """
    ``formats.check_format`` of one file; returns its format.

    Raises:
        InputFormatError: the file is not of its format, or ended the process, or takes too long.
        RequestTooLargeError, UnsupportedFormatError: see there.
    """
    with _Reading([file], layout, limits, only_check=True) as reading:
        for message in reading.messages():
            if "format" in message:
                return str(message["format"])
    raise InputFormatError(f"{file.facts.name}: nothing was read of it")


def read_in_process(
    files: Sequence[InputFile], layout: Layout, limits: SourceLimits
) -> Generator[SequenceRow | BadRow]:
    """
    ``formats.read_rows`` of *files*.

    Raises:
        InputFormatError: a file is not of its format, or ended the process.
        RequestTooLargeError, UnsupportedFormatError: see there; and what opening a file raises.
    """
    with _Reading(files, layout, limits, only_check=False) as reading:
        for message in reading.messages():
            for row in message.get("rows", ()):
                yield _row(row) if len(row) == len(_ROW_FIELDS) else BadRow(*row)


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
        ours, theirs = socket.socketpair()
        self._socket = ours
        if self._only_check:
            ours.settimeout(CHECK_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), self._scratch],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._lines = ours.makefile("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has ended, or is not needed any more
        self._process.wait()
        self._lines.close()
        self._socket.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the process says until its end; raises the error that it met, or that it died."""
        current = ", ".join(file.facts.name for file in self._files[:1])
        try:
            self._socket.sendall(json.dumps(self._task).encode() + b"\n")
            for line in self._lines:
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
        raise InputFormatError(f"{current}: the file ended the process that read it ({self._ending()}); is it damaged?")

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

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
            if code == -signal.SIGXCPU:
                return f"it took more than {CHECK_CPU_SECONDS} s"
            return signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return "no answer"


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


class _Asked:
    """The child's side: what it is asked, and how it asks for files."""

    def __init__(self, channel: socket.socket, scratch: Path) -> None:
        self._channel, self._scratch = channel, scratch
        self._lines = channel.makefile("wb")

    def run(self) -> None:
        task = json.loads(self._task())
        layout = layout_of(task["layout"])
        limits = SourceLimits(**task["limits"])
        files = [
            InputFile(_facts(facts), lambda index=index: self._open(index), num_bytes=0)  # type: ignore[misc]
            for index, facts in enumerate(task["facts"])
        ]
        if task["only_check"]:
            resource.setrlimit(resource.RLIMIT_CPU, (CHECK_CPU_SECONDS, CHECK_CPU_SECONDS + 1))
        try:
            if task["only_check"]:
                with files[0].open() as file:
                    self._say({"format": check_format(file, files[0].facts, layout, limits)})
            else:
                self._read(files, layout, limits)
            self._say({"end": True})
        except RequestTooLargeError as error:
            self._say({"error": "large", "what": error.what, "limit": error.limit})
        except UnsupportedFormatError as error:
            self._say({"error": "unsupported", "what": str(error)})
        except (ModelError, ServiceError) as error:
            self._say({"error": "format", "what": str(error)})
        except OSError as error:  # of the scratch folder: the machine's fault, not the file's
            self._say({"error": "outage", "what": f"{error.strerror or error}", "errno": error.errno})
        except MemoryError:
            self._say({"error": "format", "what": "reading it takes more memory than it may"})

    def _read(self, files: list[InputFile], layout: Layout, limits: SourceLimits) -> None:
        rows: list[tuple[object, ...]] = []
        num_items = 0
        for row in read_rows(files, layout, limits, scratch=self._scratch):
            if isinstance(row, SequenceRow):
                rows.append(tuple(getattr(row, name) for name in _ROW_FIELDS))
                num_items += len(row.item_ids)
            else:
                rows.append((row.line, row.reason, row.num_rows))
            if len(rows) + num_items // 64 >= ROWS_A_MESSAGE:
                self._say({"rows": rows})
                rows, num_items = [], 0
        self._say({"rows": rows})

    def _task(self) -> bytes:
        content = bytearray()
        while not content.endswith(b"\n"):
            part = self._channel.recv(MESSAGE_BYTES)
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def _open(self, index: int) -> BinaryIO:
        self._say({"open": index})
        content, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        if not content or not descriptors:
            raise EOFError  # the parent could not open it, and ends this process
        return os.fdopen(descriptors[0], "rb")

    def _say(self, message: dict[str, object]) -> None:
        self._lines.write(json.dumps(message).encode() + b"\n")
        self._lines.flush()


def _facts(fields: dict[str, Any]) -> FileFacts:
    partitions = tuple((name, value) for name, value in fields.pop("partitions"))
    return FileFacts(partitions=partitions, **fields)


def main() -> None:
    """Read what is asked over the socket whose descriptor is the first argument; the second is a folder for files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends this process, or its own end closes the socket
    with socket.socket(fileno=int(sys.argv[1])) as channel, contextlib.suppress(BrokenPipeError, EOFError):
        _Asked(channel, Path(sys.argv[2])).run()


if __name__ == "__main__":
    main()

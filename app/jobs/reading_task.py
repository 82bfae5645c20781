"""
Reading foreign files: what the process does that may die over it (``reading_process`` is its other side).

It opens nothing itself: it asks for a file by its number, and gets it as an open descriptor over the socket that
carries everything else, as lines of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import RequestTooLargeError, ServiceError, UnsupportedFormatError
from app.jobs.confinement import confine, limit_resources
from app.jobs.formats import SequenceRow, SourceLimits, check_format, read_rows
from app.jobs.input_warnings import InputWarnings
from models.data.reading.layouts import Layout, layout_of
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts
from models.errors import ModelError

# A check looks at the beginning of a file, or at a footer; a client waits for it.
CHECK_CPU_SECONDS = 10
# The whole of an input is read for a job: where cores are few, what somebody waits for comes first
NICENESS = 5
ROWS_A_MESSAGE = 256
# More says nothing that these do not.
MAX_WARNINGS = 20
MESSAGE_BYTES = 1 << 16
ROW_FIELDS = tuple(field.name for field in dataclasses.fields(SequenceRow))
# Where Python and the libraries lie, which are imported and loaded when they are first needed
SYSTEM_FOLDERS = (
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
)


class ReadingTask:
    """
    One task, asked over *channel*.

    Args:
        channel: the socket.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("wb")

    def run(self) -> None:
        """Do what is asked; everything that comes of it is said over the channel."""
        task = json.loads(self._task())
        scratch = Path(task["scratch"])
        limit_resources(cpu_seconds=CHECK_CPU_SECONDS if task["only_check"] else None)
        if not task["only_check"]:
            os.nice(NICENESS)
        confine(readable=program_folders(), writable=[scratch])
        layout = layout_of(task["layout"])
        limits = SourceLimits(**task["limits"])
        files = [
            InputFile(_facts(facts), lambda index=index: self._open(index), num_bytes=0)  # type: ignore[misc]
            for index, facts in enumerate(task["facts"])
        ]
        try:
            if task["only_check"]:
                with files[0].open() as file:
                    self._say({"format": check_format(file, files[0].facts, layout, limits)})
            else:
                self._read(files, layout, limits, scratch)
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

    def _read(self, files: list[InputFile], layout: Layout, limits: SourceLimits, scratch: Path) -> None:
        rows: list[tuple[object, ...]] = []
        num_items = 0
        warnings = InputWarnings()
        for row in read_rows(files, layout, limits, scratch=scratch, warnings=warnings):
            if isinstance(row, SequenceRow):
                rows.append(tuple(getattr(row, name) for name in ROW_FIELDS))
                num_items += len(row.item_ids)
            else:
                rows.append((row.line, row.reason, row.num_rows))
            if len(rows) + num_items // 64 >= ROWS_A_MESSAGE:
                self._say({"rows": rows})
                rows, num_items = [], 0
        self._say({"warnings": warnings.found()[:MAX_WARNINGS]})
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


def program_folders() -> list[Path]:
    """Where Python, its packages and the system's libraries lie: what a process needs to import more."""
    code = Path(__file__).resolve().parents[2]
    packages = [Path(place) for place in sys.path if place and Path(place).resolve() != code]
    return [*map(Path, SYSTEM_FOLDERS), *packages, code / "app", code / "models"]


def _facts(fields: dict[str, Any]) -> FileFacts:
    partitions = tuple((name, value) for name, value in fields.pop("partitions"))
    return FileFacts(partitions=partitions, **fields)

"""
Answers that are written to a private file first, and read from there by their clients.

What an answer is made from, a connection to the database above all, is given back as soon as the answer is written,
however slowly it is read. Clients that ask for the same thing share one file. It has no name, so that nobody else opens
it, and the system takes it back when the last of them has left, or the process ends.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Hashable
from typing import BinaryIO

import anyio
import anyio.to_thread

READ_BYTES = 256 * 1024
# So many are written at a time: each holds a connection and a thread
WRITTEN_AT_ONCE = 4


class Spool:
    """
    One answer in a file, and how many clients read it.

    Args:
        write: writes all of it and returns its label.
        limiter: of those that are written at a time.
    """

    def __init__(self, write: Callable[[BinaryIO], str], limiter: anyio.CapacityLimiter) -> None:
        self.num_readers = 0
        self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed by its last reader
        self.label = asyncio.ensure_future(self._write(write, limiter))

    async def _write(self, write: Callable[[BinaryIO], str], limiter: anyio.CapacityLimiter) -> str:
        label = await anyio.to_thread.run_sync(write, self.file, limiter=limiter)
        self.file.flush()
        return label


class Spools:
    """The answers that are being written or read."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None
        self._changing = threading.Lock()
        self._spools: dict[Hashable, Spool] = {}

    async def read(self, key: Hashable, write: Callable[[BinaryIO], str]) -> tuple[str, Generator[bytes, None, None]]:
        """
        The label of the answer *key* and its parts, once all of it is written; close the parts to let go of them.

        Args:
            key: what is asked for; who asks for the same while it is there shares it.
            write: writes the answer into a file, in a thread, and returns its label.

        Raises:
            Exception: whatever *write* raises, or the file system.
        """
        if self._limiter is None:  # it belongs to an event loop
            self._limiter = anyio.CapacityLimiter(WRITTEN_AT_ONCE)
        with self._changing:
            spool = self._spools.get(key)
            if spool is None:
                spool = self._spools[key] = Spool(write, self._limiter)
            spool.num_readers += 1
        try:
            label = await asyncio.shield(spool.label)
        except BaseException:
            self._leave(key, spool)
            raise
        parts = self._parts(key, spool)
        next(parts)  # from here on closing it lets go of the file, though nothing of it was read
        return label, parts

    def _leave(self, key: Hashable, spool: Spool) -> None:
        with self._changing:
            spool.num_readers -= 1
            has_failed = spool.label.done() and (spool.label.cancelled() or spool.label.exception() is not None)
            if (spool.num_readers == 0 or has_failed) and self._spools.get(key) is spool:
                del self._spools[key]  # the next to ask begins anew
            if spool.num_readers == 0:
                if spool.label.done():
                    spool.file.close()
                else:  # all have left while it is still being written
                    spool.label.add_done_callback(lambda _: spool.file.close())

    def _parts(self, key: Hashable, spool: Spool) -> Generator[bytes, None, None]:
        try:
            yield b""
            place = 0
            while part := os.pread(spool.file.fileno(), READ_BYTES, place):  # each reader has a place of its own
                yield part
                place += len(part)
        finally:
            self._leave(key, spool)

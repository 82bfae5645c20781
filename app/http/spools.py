"""
Answers that are written to a private file, and read from there by their clients while it grows.

What an answer is made from, a connection to the database above all, is given back as soon as the answer is written,
however slowly it is read. Clients that ask for the same thing share one file, which stays for some seconds for those
who ask again. It has no name, so that nobody else opens it, and the system takes it back when it is closed, or the
process ends.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping
from typing import BinaryIO

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

READ_BYTES = 64 * 1024
# So many are written at a time: each holds a connection and a thread
WRITTEN_AT_ONCE = 4
# A whole answer stays so long once its readers have left, and at most so many do
KEPT_SECONDS, MOST_KEPT = 10.0, 8


class AbandonedError(Exception):
    """All who asked for the answer have left before it was written."""


class Spool:
    """
    One answer in a file, and how many clients read it.

    All but ``begin`` and ``write`` is used on the event loop; these by the one thread that writes. The file is opened
    and closed in threads, too: where others write much to the same disk, either may take a second.

    Args:
        turn: held while a part is handed on, so that between two looks at other requests the event loop hands on one
            part of all spools. The system takes megabytes of a connection without a pause, whether its client reads or
            not, and five new readers at once would hold everybody up for a tenth of a second.
    """

    def __init__(self, turn: asyncio.Lock) -> None:
        self._turn = turn
        self.num_readers = 0
        self.label: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_abandoned = False
        self._loop = asyncio.get_running_loop()
        self._file: BinaryIO | None = None
        self._grown = asyncio.Event()
        self._is_written = False
        self._error: Exception | None = None

    def begin(self, label: str) -> None:
        """Say what the answer is the state of; its clients get their headers."""
        self._loop.call_soon_threadsafe(self._set_label, label)

    def write(self, part: bytes) -> None:
        """Write more of it; raises AbandonedError when nobody waits for it, OSError when the disk is full."""
        if self.is_abandoned:
            raise AbandonedError
        assert self._file is not None
        self._file.write(part)
        self._loop.call_soon_threadsafe(self._tell)

    async def fill(self, write: Callable[[Spool], None], limiter: anyio.CapacityLimiter) -> None:
        """Write all of it, in a thread, and close the file if nobody reads it."""

        def open_and_write() -> None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by its last reader
            write(self)

        try:
            await anyio.to_thread.run_sync(open_and_write, limiter=limiter)
        except Exception as error:
            self._error = error
            if not self.label.done():
                self.label.set_exception(error)
                self.label.exception()  # seen: all who asked may have left
        finally:
            self._is_written = True
            self._tell()
            self.close_unread()

    def close_unread(self) -> None:
        """Close the file when it is neither read nor written."""
        if self.num_readers == 0 and self._is_written and self._file is not None:
            self._loop.run_in_executor(None, self._file.close)

    @property
    def is_whole(self) -> bool:
        """Whether it was written to its end."""
        return self._is_written and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether it could not be written to its end."""
        return self._error is not None

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The answer from its beginning, and on as it grows; raises what ended the writing."""
        assert self._file is not None  # its label, which whoever reads has waited for, comes later
        place = 0
        while True:
            is_written, grown = self._is_written, self._grown
            # Straight from the system's memory, mostly: written a moment ago
            if part := os.pread(self._file.fileno(), READ_BYTES, place):
                async with self._turn:
                    await asyncio.sleep(0)
                yield part
                place += len(part)
            elif not is_written:
                await grown.wait()
            elif self._error is not None:
                raise self._error
            else:
                return

    def _set_label(self, label: str) -> None:
        if not self.label.done():
            self.label.set_result(label)

    def _tell(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class Spools:
    """The answers that are being written or read. Used on the event loop only."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None
        self._turn = asyncio.Lock()
        self._kept: dict[asyncio.TimerHandle, Callable[[], None]] = {}
        self._spools: dict[Hashable, Spool] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def answer(
        self,
        key: Hashable,
        write: Callable[[Spool], None],
        *,
        media_type: str,
        headers: Callable[[str], Mapping[str, str]],
    ) -> SpooledAnswer:
        """
        The answer *key*, once its writing has begun.

        Args:
            key: what is asked for; who asks for the same while it is there shares it.
            write: begins the spool with a label, then writes the answer into it; called in a thread.
            media_type: of the answer.
            headers: label -> further headers.

        Raises:
            Exception: whatever *write* raises before it has begun.
        """
        if self._limiter is None:  # it belongs to an event loop
            self._limiter = anyio.CapacityLimiter(WRITTEN_AT_ONCE)
        spool = self._spools.get(key)
        if spool is None:
            spool = self._spools[key] = Spool(self._turn)
            task = asyncio.ensure_future(spool.fill(write, self._limiter))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        spool.num_readers += 1

        def leave() -> None:
            spool.num_readers -= 1
            if (spool.num_readers == 0 or spool.has_failed) and self._spools.get(key) is spool:
                del self._spools[key]  # the next to ask begins anew
            spool.is_abandoned = spool.num_readers == 0
            spool.close_unread()

        def leave_in_a_while() -> None:
            if spool.num_readers == 1 and spool.is_whole and len(self._kept) < MOST_KEPT:
                self._keep(leave)
            else:
                leave()

        try:
            label = await asyncio.shield(spool.label)
        except BaseException:
            leave()
            raise
        return SpooledAnswer(spool, leave_in_a_while, media_type=media_type, headers=headers(label))

    def close(self) -> None:
        """Let go of the answers that nobody reads."""
        for timer, leave in self._kept.items():
            timer.cancel()
            leave()
        self._kept.clear()

    def _keep(self, leave: Callable[[], None]) -> None:
        def end() -> None:
            del self._kept[timer]
            leave()

        timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, end)
        self._kept[timer] = leave


class SpooledAnswer(StreamingResponse):
    """An answer that is read from its file, and lets go of it however it ends."""

    def __init__(self, spool: Spool, leave: Callable[[], None], *, media_type: str, headers: Mapping[str, str]) -> None:
        self._parts = spool.parts()
        self._leave = leave
        super().__init__(self._parts, media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then let go of its file."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
            with anyio.CancelScope(shield=True):
                await self._parts.aclose()

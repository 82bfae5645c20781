"""Answers that are streamed from a generator, and end with it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class ClosingStream(StreamingResponse):
    """
    A stream whose generator is closed with it, however it ends: read, broken off by an error, left by its client.

    Starlette leaves the generator of a cancelled answer suspended, and the cancellation refers to the frames that refer
    to it: what it holds, such as a connection of the pool, would come back only when Python next looks for cycles.
    """

    def __init__(
        self, content: Generator[bytes, None, None], *, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self._source = _ClosableGenerator(content)
        super().__init__(self._source, media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then close its generator."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Shielded: what ended the answer would end this too. With a thread that is nobody else's: those of the pool
            # may all be waiting for the very connection that this gives back.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._source.close, limiter=anyio.CapacityLimiter(1))


class _ClosableGenerator:
    """A generator that may be closed while a thread is in it, as after a task's own cancellation: closing waits."""

    def __init__(self, content: Generator[bytes, None, None]) -> None:
        self._content = content
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            return next(self._content)

    def close(self) -> None:
        """Let the generator go through its last lines; does nothing when it has ended or never began."""
        with self._lock:
            self._content.close()

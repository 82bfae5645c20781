"""The end of the process: known to what would go on for ever, and how much of its time is left."""

from __future__ import annotations

import asyncio
import contextlib
import time


class Shutdown:
    """
    Whether the server has begun to stop. Used on the event loop only.

    Args:
        seconds: granted to everything that was begun, all together.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = asyncio.Event()
        self._deadline: float | None = None

    def begin(self) -> None:
        """Let what follows along end; from now on the time counts."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
        self._begun.set()

    async def begins_within(self, seconds: float) -> bool:
        """Sleep for so long, or until the server begins to stop; whether it has."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), seconds)
        return self._begun.is_set()

    def seconds_left(self) -> float:
        """What is left of the time that was granted; all of it before the server begins to stop."""
        return self._seconds if self._deadline is None else max(0.0, self._deadline - time.monotonic())

"""Tells long-running parts that the process is stopping, and how much of its time is left."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time

from app.runtime.logs import logger


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


log = logger(__name__)

# Beyond the time to finish what was begun: for closing what is open, and still inside an orchestrator's patience.
SPARE_SECONDS = 5.0


FORCED_EXIT = 1


def end_within(seconds: float) -> None:
    """End this process in *seconds* unless it has ended by then; no model's process is left behind."""
    threading.Thread(target=_end_after, args=(seconds,), name="taesar-last-net", daemon=True).start()


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    log.error("ended_by_force", reason=f"threads were stuck {seconds:g} s after the signal to end")
    try:
        for child in multiprocessing.active_children():
            child.kill()
    finally:
        os._exit(FORCED_EXIT)

"""
A process that was told to end ends in time, whatever its threads are stuck in.

A thread that waits for a database which neither answers nor refuses cannot be ended from outside, and the interpreter
waits for some of them at its exit. What such a process had in hand is found again, as after a kill.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

from app.telemetry import logger

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

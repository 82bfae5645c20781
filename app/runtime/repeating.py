"""A function that is called again and again, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from app.errors import StoreUnavailableError
from app.runtime.logs import logger

log = logger(__name__)

# A database that is down for an hour is no news twice a second
REMIND_SECONDS = 60.0


class Repeating:
    """
    Calls a function every so many seconds; a database that is down only delays it.

    Args:
        name: of the thread, and of its log lines.
        call: what is called; whatever it raises, it is called again.
        seconds: between the end of a call and the next one.
    """

    def __init__(self, name: str, call: Callable[[], object], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes after the first wait."""
        self._thread.start()

    def stop(self) -> None:
        """Call no more."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        """Wait for a call that was begun, but not for ever: it may be stuck in the database."""
        self._thread.join(seconds)

    def _run(self) -> None:
        told, told_at = "", 0.0
        while not self._stopped.wait(self._seconds):
            try:
                self._call()
                told = ""
            except StoreUnavailableError as error:
                reason, now = str(error), time.monotonic()
                if reason != told or now - told_at >= REMIND_SECONDS:
                    log.warning("repetition_delayed", thread=self._thread.name, reason=reason)
                    told, told_at = reason, now
            except Exception:  # much hangs on this thread; nothing may end it
                log.exception("repetition_failed", thread=self._thread.name)

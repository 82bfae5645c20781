"""Bodies that are being received: how much of them memory holds, all together, and who gives way when it is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from app.errors import ReceivingFullError

# So young a sender cannot be told from a fast one
GRACE_SECONDS = 2.0


class Reception:
    """
    One body. Its sender may be sent away while ``patience`` is waited in.

    Args:
        begun_at: when, in seconds.
    """

    def __init__(self, begun_at: float) -> None:
        self.begun_at = begun_at
        self.received = 0
        self.held = 0
        self.is_complete = False
        self.patience: asyncio.Timeout | None = None

    def bytes_per_second(self, now: float) -> float:
        """How fast it came so far."""
        return self.received / max(now - self.begun_at, 0.001)


class Receptions:
    """
    The bodies of all requests under way. Used on the event loop only.

    Args:
        limit: bytes that memory may hold of them.
        retry_after_seconds: what a refused sender is told.
        clock: seconds, monotonic.
    """

    def __init__(self, limit: int, *, retry_after_seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._retry_after_seconds = retry_after_seconds
        self._clock = clock
        self._under_way: set[Reception] = set()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that memory holds of bodies just now."""
        return self._held

    def begin(self) -> Reception:
        """A body begins to come."""
        reception = Reception(self._clock())
        self._under_way.add(reception)
        return reception

    def hold(self, reception: Reception, num_bytes: int) -> None:
        """
        Keep so many bytes more of it in memory; with no room left the slowest sender is sent away first.

        Raises:
            ReceivingFullError: nobody else is slow: this one is sent away.
        """
        while self._held + num_bytes > self._limit:
            slowest = self._slowest_but(reception)
            if slowest is None:
                raise self.refusal()
            assert slowest.patience is not None
            slowest.patience.reschedule(0.0)
            self.end(slowest)
        reception.held += num_bytes
        self._held += num_bytes

    def end(self, reception: Reception) -> None:
        """Its request has been answered, or its sender sent away; again does nothing."""
        if reception in self._under_way:
            self._under_way.remove(reception)
            self._held -= reception.held

    def refusal(self) -> ReceivingFullError:
        """What a sender who is sent away is told."""
        return ReceivingFullError(limit=self._limit, retry_after_seconds=self._retry_after_seconds)

    def _slowest_but(self, newcomer: Reception) -> Reception | None:
        now = self._clock()
        slow = (
            one
            for one in self._under_way
            if one is not newcomer
            and one.held
            and one.patience is not None
            and not one.is_complete
            and now - one.begun_at > GRACE_SECONDS
        )
        return min(slow, key=lambda one: one.bytes_per_second(now), default=None)

"""Keeps a registry at what was activated last, here or in another replica."""

from __future__ import annotations

import asyncio

from app.runtime.repeating import Repeating
from app.serving.activations import FOLLOW_SECONDS
from app.serving.model_registry import ModelRegistry

# A bundle that cannot be loaded is tried again, but not every second: reading it costs.
ROUNDS_BETWEEN_TRIES = 5
STOP_SECONDS = 2.0


class RegistryFollower:
    """
    Asks the database again and again, in a thread of its own, which a silent database may keep.

    Args:
        registry: follows.
        loop: the event loop that the registry is used on.
    """

    def __init__(self, registry: ModelRegistry, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._loop = loop
        self._repeating = Repeating("activations", self._look, FOLLOW_SECONDS)
        self._rounds_left = 0

    def start(self) -> None:
        """Begin to look."""
        self._repeating.start()

    def stop(self) -> None:
        """Look no more."""
        self._repeating.stop()

    def _look(self) -> None:
        if self._rounds_left:
            self._rounds_left -= 1
            return
        holds = self._registry.serving
        latest = self._registry.latest()
        if latest is None or latest == holds:
            return
        asyncio.run_coroutine_threadsafe(self._registry.follow(latest, instead_of=holds), self._loop).result()
        if self._registry.serving == holds:
            self._rounds_left = ROUNDS_BETWEEN_TRIES

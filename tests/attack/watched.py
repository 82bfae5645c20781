"""Memory and descriptors of every process of a service over time, and whether they stay flat."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.served import children, megabytes, num_descriptors
from tests.chaos.cluster import Cluster

SAMPLE_SECONDS = 5.0
# What a process takes while it starts and meets each kind of work for the first time is no growth: one cycle and more
WARM_SECONDS = 120.0
# Over the whole run a process may seem to grow by so much: its own ups and downs
FLAT_SHARE, FLAT_MEGABYTES, FLAT_DESCRIPTORS = 0.1, 10.0, 10.0


@dataclass
class Life:
    """One process: (seconds since the beginning of the run, megabytes of its own, descriptors), sample by sample."""

    samples: list[tuple[float, float, int]] = field(default_factory=list)

    @property
    def warm(self) -> list[tuple[float, float, int]]:
        """Without its beginning."""
        return [sample for sample in self.samples if sample[0] >= self.samples[0][0] + WARM_SECONDS]


class Watch:
    """
    Looks at the processes of *cluster* every few seconds, in a thread, while it is told ``at_rest``.

    What is taken while clients hold hundreds of connections depends on how far they are, and is no growth; what is
    left of it at rest, again and again, is.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lives: dict[str, dict[int, Life]] = defaultdict(lambda: defaultdict(Life))
        self._began = time.monotonic()
        self._over = threading.Event()
        self._is_at_rest = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Look during this block."""
        self._is_at_rest.set()
        try:
            yield
        finally:
            self._is_at_rest.clear()

    def report(self) -> dict[str, dict[str, Any]]:
        """By role: what its processes took at first and at last, how fast they grew, and whether that is flat."""
        hours = (time.monotonic() - self._began) / 3600
        return {role: growth(list(lives.values()), hours) for role, lives in sorted(self._lives.items())}

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            if not self._is_at_rest.is_set():
                continue
            cluster = self._cluster
            roots = {"api": cluster.apis.get(0), "worker": cluster.workers[0] if cluster.workers else None}
            roots |= {"redis": cluster.redis.process}
            for role, root in roots.items():
                if root is not None:
                    self._look(role, root.pid)
                    for child in _children(root.pid):
                        self._look(f"{role}: {_kind(child)}", child)
            if cluster.postgres.process is not None:
                self._look("postgres", cluster.postgres.process.pid)

    def _look(self, role: str, process: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is ending
            sample = (time.monotonic() - self._began, megabytes(process, "RssAnon"), num_descriptors(process))
            self._lives[role][process].samples.append(sample)


def growth(lives: list[Life], hours: float) -> dict[str, Any]:
    """
    How fast processes of one kind grew while they lived, all lives together, and whether *hours* of it is flat.

    The slope is that of least squares, with a level of its own for every life.
    """
    every = [sample for life in lives for sample in life.samples]
    found: dict[str, Any] = {"processes": len(lives), "samples": len(every)}
    warm = [np.array(life.warm) for life in lives if len(life.warm) > 1]
    for column, name in ((1, "megabytes"), (2, "descriptors")):
        by_time = [sample[column] for sample in sorted(every)]
        tenth = max(1, len(by_time) // 10)
        found[name] = [round(float(np.median(part)), 1) for part in (by_time[:tenth], by_time[-tenth:])]
        moved = [life - life.mean(axis=0) for life in warm]
        spread = sum(float(life[:, 0] @ life[:, 0]) for life in moved)
        slope = sum(float(life[:, 0] @ life[:, column]) for life in moved) / spread if spread else 0.0
        found[f"{name}_an_hour"] = round(slope * 3600, 1)
    most = max(FLAT_MEGABYTES, FLAT_SHARE * found["megabytes"][0])
    found["is_flat"] = bool(
        found["megabytes_an_hour"] * hours <= most and found["descriptors_an_hour"] * hours <= FLAT_DESCRIPTORS
    )
    return found


def _children(process: int) -> list[int]:
    """All that *process* started, and these, but not what reads one file and ends."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in children(process):
            found.append(child)
            if _kind(child) != "reading":
                found += _children(child)
    return found


def _kind(process: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return "reading" if b"reading_server" in command else "model"
    return "model"

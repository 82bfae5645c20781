"""One round: a job while things are killed at seeded random moments; and the same job undisturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.cluster import Cluster, Outcome


@dataclass(frozen=True)
class Round:
    """What was done to the job, when (share of its chunks done), and what came out."""

    seed: int
    disturbances: tuple[tuple[float, str], ...]
    seconds: float
    outcome: Outcome


def undisturbed(cluster: Cluster, path: Path, target: str, *, seconds: float) -> Outcome:
    """The outcome when nothing is killed."""
    job_id = cluster.submit(path, target)
    cluster.wait(job_id, seconds)
    return cluster.outcome(job_id)


def disturbed(cluster: Cluster, path: Path, target: str, *, seed: int, seconds: float) -> Round:
    """
    Kill each worker, Redis, PostgreSQL and the API once, in random order, at random shares of the job's progress.

    In embedded mode there is only the API to kill; it is killed three times.
    """
    source = random.Random(seed)
    actions: list[tuple[str, Callable[[], None]]] = [("api", cluster.restart_api)]
    if cluster.num_workers:
        actions += [("redis", cluster.restart_redis), ("postgres", cluster.restart_postgres)]
        actions += [(f"worker {i}", lambda i=i: cluster.restart_worker(i)) for i in range(cluster.num_workers)]
    else:
        actions *= 3
    source.shuffle(actions)
    moments = sorted(source.uniform(0, 0.9) for _ in actions)
    started = time.monotonic()
    job_id = cluster.submit(path, target)
    for moment, (_, action) in zip(moments, actions, strict=True):
        _until_share(cluster, job_id, moment, seconds)
        action()
    cluster.wait(job_id, seconds)
    done = tuple((round(moment, 3), name) for moment, (name, _) in zip(moments, actions, strict=True))
    return Round(seed, done, time.monotonic() - started, cluster.outcome(job_id))


def redelivery_seconds(cluster: Cluster, path: Path, target: str, *, seconds: float) -> float:
    """
    How long the work of a killed worker takes to be begun again.

    One worker takes chunks and is killed; another is started at once. The last of the chunks that the first one held
    is done this long after the kill, computing it included.
    """
    job_id = cluster.submit(path, target)
    _until_share(cluster, job_id, 0.2, seconds)
    killed = time.monotonic()
    cluster.restart_worker(0)
    cluster.wait(job_id, seconds)
    return time.monotonic() - killed


def _until_share(cluster: Cluster, job_id: str, share: float, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        job = cluster.job(job_id)
        if job["state"] not in ("queued", "running") or (job["progress"]["share"] or 0.0) >= share:
            return
        assert time.monotonic() < deadline, f"no progress: {job}"
        time.sleep(0.02)

"""Prometheus metrics of jobs and of what they stand on; an API replica has them as well as a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ChunkOutcome = Literal["done", "dropped", "retried", "waiting", "failed"]
Dependency = Literal["sql", "queue", "files"]


class JobMetrics:
    """
    What one process counts of its own work, and what SQL says of all jobs.

    Args:
        registry: where they are registered; one per process, so that tests never share counts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._chunk_seconds = Histogram(
            "taesar_chunk_seconds",
            "From the moment that a chunk is begun to the one that it counts.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=registry,
        )
        self._chunks = Counter(
            "taesar_chunks_total",
            "Attempts at chunks by their outcome: done; dropped, as its job had ended; retried; waiting for what does "
            "not answer; failed, and its job with it.",
            ["outcome"],
            registry=registry,
        )
        self._bad_rows = Counter("taesar_bad_rows_total", "Rows of inputs that were left out.", registry=registry)
        self._lost_tasks = Counter(
            "taesar_lost_tasks_total",
            "Tasks that no queue held any more and that were queued again.",
            registry=registry,
        )
        self._outages = Counter(
            "taesar_outages_total",
            "Calls that failed because sql, the queue or the files of jobs did not answer.",
            ["dependency"],
            registry=registry,
        )
        self._jobs = Gauge(
            "taesar_jobs", "Jobs by state, in SQL: the same from every API replica.", ["state"], registry=registry
        )
        self._oldest_waiting = Gauge(
            "taesar_oldest_waiting_job_seconds",
            "How long the oldest job has been unfinished without anything of it being worked on; 0 when none waits.",
            registry=registry,
        )
        self._unfinished_chunks = Gauge(
            "taesar_unfinished_chunks",
            "Chunks to be done, a job that is not cut yet counting as one: what workers are scaled by.",
            registry=registry,
        )
        self._workers = Gauge("taesar_workers", "Workers that said so in the last 30 s.", registry=registry)
        for outcome in ("done", "dropped", "retried", "waiting", "failed"):
            self._chunks.labels(outcome)
        for dependency in ("sql", "queue", "files"):
            self._outages.labels(dependency)

    def observe_chunk(self, outcome: ChunkOutcome, seconds: float) -> None:
        """Record an attempt at a chunk; its time counts where it was done."""
        self._chunks.labels(outcome).inc()
        if outcome == "done":
            self._chunk_seconds.observe(seconds)

    def count_bad_rows(self, num_rows: int) -> None:
        """Record rows that were left out."""
        self._bad_rows.inc(num_rows)

    def count_lost_tasks(self, num_tasks: int) -> None:
        """Record tasks that were queued again."""
        self._lost_tasks.inc(num_tasks)

    def count_outage(self, dependency: Dependency) -> None:
        """Record a call that was not answered."""
        self._outages.labels(dependency).inc()

    def set_jobs(self, states: Mapping[str, int], *, oldest_waiting_seconds: float, unfinished_chunks: int) -> None:
        """Record what SQL says of all jobs."""
        for state, count in states.items():
            self._jobs.labels(state).set(count)
        self._oldest_waiting.set(oldest_waiting_seconds)
        self._unfinished_chunks.set(unfinished_chunks)

    def set_workers(self, num_workers: int) -> None:
        """Record how many workers there are."""
        self._workers.set(num_workers)

"""Composes what jobs need from the settings: database, queue and storage; the same in API and workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import dramatiq
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine

from app.jobs.chunks import ChunkStore
from app.jobs.destinations import DestinationRoots
from app.jobs.formats import SourceLimits
from app.jobs.job_store import JobStore
from app.jobs.queue import TaskQueue, embedded_broker, redis_broker
from app.jobs.records import JobLimits
from app.jobs.retries import RetryStore
from app.jobs.sources import SourceRoots
from app.jobs.turns import Turns
from app.runtime.job_metrics import JobMetrics
from app.runtime.logs import logger
from app.settings import Settings
from app.storage import schema
from app.storage.database import now_ms, open_engine
from app.storage.job_files import Storage
from app.storage.private import make_private_folder

log = logger(__name__)

UPLOAD = "input/upload"
"""Name of an uploaded input inside its job's folder."""


class SchemaOutdatedError(Exception):
    """The database's schema is not the one that this code was written for."""


@dataclass(frozen=True)
class JobParts:
    """Everything that jobs need, in API and workers alike; nothing is connected before it is used."""

    engine: Engine
    jobs: JobStore
    chunks: ChunkStore
    retries: RetryStore
    turns: Turns
    queue: TaskQueue
    storage: Storage
    roots: SourceRoots
    destinations: DestinationRoots
    limits: SourceLimits
    embedded: bool
    requeue_ms: int
    metrics: JobMetrics

    def queue_next_chunks(self, job_id: str) -> None:
        """Queue the chunks of the job whose turn has come."""
        for task in self.turns.take(job_id):
            self.queue.put(task)

    def queue_lost_tasks(self, *, all_unbegun: bool = False) -> int:
        """
        Queue what unfinished jobs need and no queue holds; how many tasks were lost. See ``RetryStore.lost_tasks``.

        *all_unbegun* says that no other process works on jobs and this one has not begun: everything is lost.
        """
        older_than_ms = now_ms() + 1 if all_unbegun else max(0, now_ms() - self.requeue_ms)
        empty = all_unbegun or self.queue.is_empty()
        tasks = self.retries.lost_tasks(older_than_ms=older_than_ms, queue_is_empty=empty)
        for task in (*tasks, *self.turns.take_all()):
            self.queue.put(task)
        if tasks:
            log.info("lost_tasks_queued", num_tasks=len(tasks))
            self.metrics.count_lost_tasks(len(tasks))
        return len(tasks)

    def remove_files_of_ended(self, job_id: str) -> None:
        """Remove what a job left that was removed, was cancelled or has failed, perhaps while it was worked on."""
        if not self.jobs.keeps_files(job_id):
            self.storage.delete_folder(job_id)

    def close(self) -> None:
        """Close the connections."""
        self.queue.broker.close()
        self.engine.dispose()


def job_parts(settings: Settings, metrics: JobMetrics | None = None) -> JobParts:
    """Compose what jobs need; makes the data folder, touches nothing else. Without *metrics* nobody reads them."""
    metrics = metrics or JobMetrics(CollectorRegistry())
    if settings.database_url is None or settings.storage is None:
        make_private_folder(settings.data)
    engine = open_engine(settings.database(), on_outage=partial(metrics.count_outage, "sql"))
    limits = JobLimits(
        max_unfinished_jobs=settings.max_unfinished_jobs,
        max_unfinished_jobs_per_key=settings.most_jobs_of_a_key(),
        max_bad_row_share=settings.max_bad_row_share,
    )
    url = settings.redis_url
    broker: dramatiq.Broker = embedded_broker() if url is None else redis_broker(url.get_secret_value())
    return JobParts(
        engine=engine,
        jobs=JobStore(engine, limits),
        chunks=ChunkStore(engine, limits),
        retries=RetryStore(engine, settings.max_chunk_attempts),
        turns=Turns(engine),
        queue=TaskQueue(broker, on_outage=partial(metrics.count_outage, "queue")),
        storage=Storage(settings.job_storage(), on_outage=partial(metrics.count_outage, "files")),
        roots=SourceRoots(settings.input_roots),
        destinations=DestinationRoots(settings.output_roots),
        limits=SourceLimits(
            max_bytes=settings.max_input_bytes,
            max_expanded_bytes=settings.max_expanded_bytes,
            max_items=settings.max_items_per_sequence,
        ),
        embedded=url is None,
        requeue_ms=round(settings.requeue_seconds * 1000),
        metrics=metrics,
    )


def check_schema(engine: Engine) -> None:
    """Raise SchemaOutdatedError unless the database's schema is this code's."""
    if not schema.is_current(engine):
        raise SchemaOutdatedError(
            f"the database's schema is not at revision {schema.newest_revision()}: run `taesar migrate`"
        )

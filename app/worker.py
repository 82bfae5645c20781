"""
The worker: what jobs need, composed from the settings; the threads that take tasks; the search for lost ones.

``taesar worker`` is one process whose threads share one model. Without Redis the API process runs the same threads on
a queue of its own (embedded mode): the same code, nothing to install.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

import dramatiq
from dramatiq.worker import Worker
from sqlalchemy import Engine

from app import schema
from app.chunks import ChunkStore
from app.deadline import SPARE_SECONDS, end_within
from app.errors import StoreUnavailableError
from app.formats import SourceLimits
from app.jobs import JobLimits, JobStore, created_at_ms_of
from app.runner import BundleModels, JobRunner, Models
from app.settings import Settings
from app.sources import SourceRoots
from app.storage import Storage
from app.tables import now_ms, open_engine
from app.tasks import TaskQueue, declare_actors, embedded_broker, redis_broker
from app.telemetry import configure_logging, logger

log = logger(__name__)

SWEEP_SECONDS = 10.0
# The search usually takes milliseconds; nothing is lost when it is cut off.
SWEEP_JOIN_SECONDS = 2.0
# Files of an upload appear before their job does; younger folders without a job are left alone.
ORPHAN_AGE_MS = 24 * 3600 * 1000
DAY_MS = 24 * 3600 * 1000


class SchemaOutdatedError(Exception):
    """The database's schema is not the one that this code was written for."""


class NoQueueError(Exception):
    """A worker without Redis would have nothing to work on."""


@dataclass(frozen=True)
class JobParts:
    """Everything that jobs need, in API and workers alike; nothing is connected before it is used."""

    engine: Engine
    jobs: JobStore
    chunks: ChunkStore
    queue: TaskQueue
    storage: Storage
    roots: SourceRoots
    limits: SourceLimits
    embedded: bool
    requeue_ms: int

    def queue_lost_tasks(self, *, all_unbegun: bool = False) -> int:
        """
        Queue what unfinished jobs need and no queue holds; how many tasks. See ``ChunkStore.lost_tasks``.

        *all_unbegun* says that no other process works on jobs and this one has not begun: everything is lost.
        """
        older_than_ms = now_ms() + 1 if all_unbegun else max(0, now_ms() - self.requeue_ms)
        empty = all_unbegun or self.queue.is_empty()
        tasks = self.chunks.lost_tasks(older_than_ms=older_than_ms, queue_is_empty=empty)
        for task in tasks:
            self.queue.put(task)
        if tasks:
            log.info("lost_tasks_queued", num_tasks=len(tasks))
        return len(tasks)

    def close(self) -> None:
        """Close the connections."""
        self.queue.broker.close()
        self.engine.dispose()


def job_parts(settings: Settings) -> JobParts:
    """Compose what jobs need; makes the data folder, touches nothing else."""
    if settings.database_url is None or settings.storage is None:
        settings.data.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings.database())
    limits = JobLimits(
        max_unfinished_jobs=settings.max_unfinished_jobs,
        max_chunk_attempts=settings.max_chunk_attempts,
        max_bad_row_share=settings.max_bad_row_share,
    )
    url = settings.redis_url
    broker: dramatiq.Broker = embedded_broker() if url is None else redis_broker(url.get_secret_value())
    return JobParts(
        engine=engine,
        jobs=JobStore(engine, limits),
        chunks=ChunkStore(engine, limits),
        queue=TaskQueue(broker),
        storage=Storage(settings.job_storage()),
        roots=SourceRoots(settings.input_roots),
        limits=SourceLimits(
            max_bytes=settings.max_input_bytes,
            max_expanded_bytes=settings.max_expanded_bytes,
            max_items=settings.max_items_per_sequence,
        ),
        embedded=url is None,
        requeue_ms=round(settings.requeue_seconds * 1000),
    )


class WorkerThreads:
    """
    Threads that take tasks from the queue, and one that looks for lost tasks.

    Args:
        parts: of ``job_parts``.
        settings: number of threads, chunk size.
        models: where models come from.
    """

    def __init__(self, parts: JobParts, settings: Settings, models: Models) -> None:
        self._parts = parts
        self._runner = JobRunner(
            parts.chunks,
            parts.queue,
            parts.storage,
            roots=parts.roots,
            limits=parts.limits,
            chunk_sequences=settings.chunk_sequences,
            computing=settings.worker_threads,
            models=models,
        )
        declare_actors(parts.queue.broker, self._runner.run)
        # An idle thread looks up this often; in memory that costs nothing, and the API stops that much sooner.
        timeout_ms = 100 if parts.embedded else 1000
        # One thread more than compute: it cuts inputs, reads and writes while the others hold the model.
        num_threads = settings.worker_threads + 1
        self._worker = Worker(parts.queue.broker, worker_threads=num_threads, worker_timeout=timeout_ms)
        # As many tasks as threads: a chunk held in reserve would wait here while another worker is idle.
        self._worker.queue_prefetch = num_threads
        self._sweeper = _Repeating(self._sweep, min(SWEEP_SECONDS, settings.requeue_seconds / 4))

    def start(self) -> None:
        """Begin to work."""
        self._worker.start()
        self._sweeper.start()

    def stop(self, *, timeout_seconds: float) -> None:
        """Take no more tasks and wait for those begun; what does not end in time is delivered again, elsewhere."""
        self._sweeper.stop()
        self._worker.stop(timeout=round(timeout_seconds * 1000))
        self._sweeper.join(SWEEP_JOIN_SECONDS)

    def _sweep(self) -> None:
        self._runner.renew()  # first: what this process works on is not lost, however long it takes
        self._parts.queue_lost_tasks()


class _Repeating:
    """Calls a function every so many seconds in a thread of its own; a database that is down only delays it."""

    def __init__(self, call: Callable[[], object], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lost-tasks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Call no more."""
        self._stopped.set()

    def join(self, seconds: float) -> None:
        """Wait for a call that was begun, but not for ever: it may be stuck in the database."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._call()
            except StoreUnavailableError as error:
                log.warning("lost_tasks_unknown", reason=str(error))
            except Exception:  # jobs may hang without this thread; nothing may end it
                log.exception("lost_tasks_failed")


def run_worker(settings: Settings) -> None:
    """
    Work until SIGTERM or SIGINT, then finish the chunks that were begun and return.

    A chunk that is stuck is not waited for: the process ends in time, and the chunk is delivered again, elsewhere.

    Raises:
        SchemaOutdatedError: `taesar migrate` has not run.
        NoQueueError: TAESAR_REDIS_URL is not set.
    """
    if settings.redis_url is None:
        raise NoQueueError("TAESAR_REDIS_URL is not set: without Redis the API process works on jobs itself")
    configure_logging(settings.log_level)
    parts = job_parts(settings)
    check_schema(parts.engine)
    threads = WorkerThreads(parts, settings, BundleModels(settings))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threads.start()
    log.info("worker_started", threads=settings.worker_threads)
    stopping.wait()
    end_within(settings.shutdown_seconds + SPARE_SECONDS)
    threads.stop(timeout_seconds=settings.shutdown_seconds)
    parts.close()
    log.info("worker_stopped")


def check_schema(engine: Engine) -> None:
    """Raise SchemaOutdatedError unless the database's schema is this code's."""
    if not schema.is_current(engine):
        raise SchemaOutdatedError(
            f"the database's schema is not at revision {schema.newest_revision()}: run `taesar migrate`"
        )


def prune(parts: JobParts, *, retention_days: float) -> list[str]:
    """
    Remove results and bad rows past their retention, and files that no job needs; the ids of the jobs it took from.

    Records and counts stay.
    """
    # Not before 1970: no job is older, and the database holds no such number
    pruned = parts.jobs.prune(finished_before_ms=max(0, now_ms() - round(retention_days * DAY_MS)))
    for job_id in pruned:
        parts.storage.delete_folder(job_id)
    for folder in parts.storage.folders():
        created_at_ms = created_at_ms_of(folder)
        if created_at_ms is None or created_at_ms > now_ms() - ORPHAN_AGE_MS:
            continue
        if not parts.jobs.keeps_files(folder):
            parts.storage.delete_folder(folder)
    return pruned

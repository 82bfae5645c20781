"""Jobs inside the API process: what runs beside the routes, from the first request to the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import redis
from fastapi import FastAPI

from app.errors import FilesUnavailableError, StoreRefusesError, StoreUnavailableError
from app.jobs.job_gauges import GAUGE_SECONDS, refresh_job_gauges
from app.jobs.job_models import BundleModels, Regenerates
from app.jobs.parts import JobParts, SchemaOutdatedError, check_schema, job_parts
from app.jobs.presence import present_workers, why_jobs_wait
from app.jobs.worker import WorkerThreads
from app.runtime.job_metrics import JobMetrics
from app.runtime.logs import logger
from app.runtime.readiness import BlockingCheck, Probe
from app.runtime.repeating import Repeating
from app.serving.model_registry import LoadedModel, ModelRegistry
from app.settings import Settings
from app.storage import schema

log = logger(__name__)

IDLE_THREADS_SECONDS = 1.0


class SharedModels:
    """
    The service's own models: embedded jobs hold no second copy of them.

    Args:
        registry: gives the service's models, once it has started.
        others: where models under another rule than the service's come from.
    """

    def __init__(self, registry: Callable[[], ModelRegistry], others: BundleModels) -> None:
        self._registry = registry
        self._others = others
        self._last: LoadedModel | None = None  # a job has many chunks: its model is not loaded anew for each

    def regenerator(self, version: str, rule: str) -> Regenerates:
        """See ``job_models.ModelSource``."""
        registry = self._registry()
        if rule != registry.rule:
            return self._others.regenerator(version, rule)
        self._last = model = registry.model(version)
        return model.job_regenerator


class JobService:
    """
    The parts that jobs need in an API process and, without Redis, the threads that work on them.

    Args:
        settings: says where database, queue and files are.
        metrics: told what becomes of jobs.
    """

    def __init__(self, settings: Settings, metrics: JobMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._parts: JobParts | None = None
        patience_seconds = settings.probe_timeout_seconds
        self.probes = (
            Probe("sql", BlockingCheck(self._sql_unreadiness, patience_seconds=patience_seconds)),
            Probe("queue", BlockingCheck(self._queue_unreadiness, patience_seconds=patience_seconds)),
            Probe("files", BlockingCheck(self._files_unreadiness, patience_seconds=patience_seconds)),
            Probe("workers", BlockingCheck(self._why_jobs_wait, patience_seconds=patience_seconds), is_advice=True),
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Give the routes their parts and let unfinished jobs go on."""
        self._parts = parts = job_parts(self._settings, self._metrics)
        app.state.job_parts = parts
        threads: WorkerThreads | None = None
        gauges = Repeating("job-gauges", lambda: self._refresh_gauges(parts), GAUGE_SECONDS)
        try:
            if parts.engine.dialect.name == "sqlite":  # nobody else could have migrated it
                await asyncio.to_thread(schema.upgrade, parts.engine)
            if parts.embedded:
                models = SharedModels(lambda: app.state.inference.registry, BundleModels(self._settings))
                threads = WorkerThreads(parts, self._settings, models)
            await asyncio.to_thread(self._resume, parts)
            if threads is not None:
                threads.start()
            gauges.start()
            yield
        finally:
            gauges.stop()
            if threads is not None:
                # The answers under way have had of this time what they needed; idle threads need a moment to notice
                left = max(app.state.shutdown.seconds_left(), IDLE_THREADS_SECONDS)
                await asyncio.to_thread(threads.stop, timeout_seconds=left)
            parts.close()

    def _resume(self, parts: JobParts) -> None:
        parts.queue.check_entrance()
        try:
            check_schema(parts.engine)
            parts.queue_lost_tasks(all_unbegun=parts.embedded)
        except StoreRefusesError:
            raise  # nothing that comes later mends it
        except (StoreUnavailableError, SchemaOutdatedError) as error:
            # Readiness says so until it is mended; then the search for lost tasks finds them.
            log.warning("jobs_not_resumed", reason=str(error))

    def _sql_unreadiness(self) -> str | None:
        if self._parts is None:
            return "not started"
        try:
            check_schema(self._parts.engine)
        except (StoreUnavailableError, SchemaOutdatedError) as error:
            return str(error)
        return None

    def _queue_unreadiness(self) -> str | None:
        if self._parts is None:
            return "not started"
        try:
            self._parts.queue.ping()
        except redis.RedisError as error:  # its words name the address, which is no business of whoever asks
            log.warning("queue_unavailable", reason=str(error))
            return f"Redis does not answer: {type(error).__name__}"
        return None

    def _refresh_gauges(self, parts: JobParts) -> None:
        refresh_job_gauges(parts.engine, self._metrics)
        with contextlib.suppress(redis.RedisError):  # the check of the queue says so
            self._metrics.set_workers(1 if parts.embedded else len(present_workers(parts.queue.broker)))

    def _why_jobs_wait(self) -> str | None:
        if self._parts is None or self._parts.embedded:
            return None
        return why_jobs_wait(self._parts.queue.broker)

    def _files_unreadiness(self) -> str | None:
        if self._parts is None:
            return "not started"
        try:
            self._parts.storage.check()
        except FilesUnavailableError as error:
            return str(error)
        return None

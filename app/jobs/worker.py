"""
Threads that take tasks from the queue, and one that looks for lost tasks.

``taesar worker`` is one process of such threads, which share one model. Without Redis the API process runs the same
threads on a queue of its own (embedded mode).
"""

from __future__ import annotations

import contextlib
import signal
import threading

import redis
from dramatiq.worker import Worker
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from app.errors import ServiceError
from app.jobs.job_models import BundleModels, ModelSource
from app.jobs.parts import JobParts, SchemaOutdatedError, check_schema, job_parts
from app.jobs.presence import SAY_SECONDS, own_name, say_gone, say_present
from app.jobs.queue import declare_actors
from app.jobs.runner import JobRunner
from app.runtime.job_metrics import JobMetrics
from app.runtime.logs import configure_logging, logger
from app.runtime.repeating import Repeating
from app.runtime.shutdown import SPARE_SECONDS, end_within
from app.runtime.tracing import configure_tracing, stop_tracing
from app.serving.activations import FOLLOW_SECONDS, ActivationStore, Serving
from app.settings import Settings
from models.errors import ModelError

log = logger(__name__)

SWEEP_SECONDS = 10.0
# The search usually takes milliseconds; nothing is lost when it is cut off.
SWEEP_JOIN_SECONDS = 2.0


class NoQueueError(Exception):
    """A worker without Redis would have nothing to work on."""


class WorkerThreads:
    """
    Threads that take tasks from the queue, and one that looks for lost tasks.

    Args:
        parts: of ``job_parts``.
        settings: number of threads, chunk size.
        models: where models come from.
    """

    def __init__(self, parts: JobParts, settings: Settings, models: ModelSource) -> None:
        self._parts = parts
        self._runner = JobRunner(
            parts,
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
        self._sweeper = Repeating("lost-tasks", self._sweep, min(SWEEP_SECONDS, settings.requeue_seconds / 4))

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
        self._parts.retries.settle()
        self._parts.queue_lost_tasks()


class WorkerPresence:
    """
    Says that this worker is there, and what keeps it from working: without that, nobody at the API could tell.

    Args:
        parts: of ``job_parts``.
    """

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts
        self._name = own_name()

    def say(self) -> None:
        """Say so; a Redis that does not answer is told by the queue's own check."""
        with contextlib.suppress(redis.RedisError):
            say_present(self._parts.queue.broker, self._name, self._trouble())

    def end(self) -> None:
        """Say that it ends."""
        with contextlib.suppress(redis.RedisError):
            say_gone(self._parts.queue.broker, self._name)

    def _trouble(self) -> str | None:
        try:
            self._parts.storage.check()
            check_schema(self._parts.engine)
        except (ServiceError, SchemaOutdatedError) as error:
            return str(error)
        return None


class ServingFollower:
    """
    Loads what is activated as soon as it is, so that the first job that needs it does not wait.

    Args:
        activations: say what serves.
        models: where it is loaded and kept.
        rule: that jobs of now are recorded with.
    """

    def __init__(self, activations: ActivationStore, models: BundleModels, rule: str) -> None:
        self._activations = activations
        self._models = models
        self._rule = rule
        self._seen: Serving | None = None

    def follow(self) -> None:
        """Load what serves, if that has changed; raises StoreUnavailableError."""
        serving = self._activations.latest()
        if serving is None or serving == self._seen:
            return
        self._seen = serving
        for version in reversed(serving.versions):  # the active one last: it is forgotten last
            try:
                self._models.regenerator(version, self._rule)
            except (ServiceError, ModelError) as error:  # a job that asks for it will say so, too
                log.warning("activated_model_not_loaded", version=version, reason=str(error))


def run_worker(settings: Settings) -> None:
    """
    Work until SIGTERM or SIGINT, then finish the chunks that were begun and return.

    A chunk that is stuck is not waited for: the process ends in time, and the chunk is delivered again, elsewhere.

    Raises:
        SchemaOutdatedError: `taesar migrate` has not run.
        QueueRefusesError: Redis takes neither the user nor the password of TAESAR_REDIS_URL.
        NoQueueError: TAESAR_REDIS_URL is not set.
        TracingMissingError: traces are asked for, and what sends them is not installed.
        OSError: TAESAR_METRICS_PORT cannot be listened on.
    """
    if settings.redis_url is None:
        raise NoQueueError("TAESAR_REDIS_URL is not set: without Redis the API process works on jobs itself")
    configure_logging(settings.log_level)
    configure_tracing(settings.otlp_endpoint, "worker")
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    metrics = JobMetrics(registry)
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, settings.host, registry)
    parts = job_parts(settings, metrics)
    check_schema(parts.engine)
    parts.queue.check_entrance()
    models = BundleModels(settings)
    threads = WorkerThreads(parts, settings, models)
    follower = ServingFollower(ActivationStore(parts.engine), models, settings.rule)
    following = Repeating("activations", follower.follow, FOLLOW_SECONDS)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    presence = WorkerPresence(parts)
    saying = Repeating("presence", presence.say, SAY_SECONDS)
    presence.say()
    threads.start()
    following.start()
    saying.start()
    log.info("worker_started", threads=settings.worker_threads)
    stopping.wait()
    end_within(settings.shutdown_seconds + SPARE_SECONDS)
    following.stop()
    saying.stop()
    presence.end()
    threads.stop(timeout_seconds=settings.shutdown_seconds)
    parts.close()
    stop_tracing()
    log.info("worker_stopped")

"""Telemetry: structured logs that carry a request id, and Prometheus metrics on a registry that is passed in."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

REQUEST_ID_HEADER = "X-Request-ID"
_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A client may send any word as its method; only these become label values, so it cannot grow the metrics without end
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Logger = structlog.stdlib.BoundLogger


class Metrics:
    """
    Every metric of the service.

    Args:
        registry: where they are registered; one per application, so that tests never share counts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter(
            "taesar_http_requests_total", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "taesar_http_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["method", "route"],
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.batch_rows = Histogram(
            "taesar_batch_sequences",
            "Sequences per call of the model.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "taesar_batch_seconds",
            "Duration of one call of the model.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=registry,
        )
        self.queued_sequences = Gauge(
            "taesar_queued_sequences", "Sequences admitted and not yet computed.", registry=registry
        )
        self.sequences = Counter(
            "taesar_sequences_regenerated_total", "Sequences answered by POST /regenerate.", registry=registry
        )
        self.decisions = Counter(
            "taesar_decisions_total",
            "Submitted items by what became of them: kept, replaced, deleted, unknown, truncated.",
            ["action"],
            registry=registry,
        )
        self.active_model = Gauge(
            "taesar_active_model", "1 for the version that serves.", ["version"], registry=registry
        )

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        """Read the queue's depth from *num_queued* at every scrape."""
        self.queued_sequences.set_function(num_queued)

    def observe_batch(self, rows: int, seconds: float) -> None:
        """Record one call of the model."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def observe_sequence(self, *, kept: int, replaced: int, deleted: int, unknown: int, truncated: int) -> None:
        """Record what became of one sequence's items."""
        self.sequences.inc()
        counts = {"kept": kept, "replaced": replaced, "deleted": deleted, "unknown": unknown, "truncated": truncated}
        for action, count in counts.items():
            self.decisions.labels(action).inc(count)

    def set_active_model(self, version: str) -> None:
        """Record which model serves."""
        self.active_model.clear()
        self.active_model.labels(version).set(1)

    def observe_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Record one answered request; *route* is the template, never the path."""
        method = method if method in _METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.request_seconds.labels(method, route).observe(seconds)


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """
    Write every log line of the process, ours and the libraries', as one JSON object to *stream* (standard output).

    Call once, where the process starts; an application that is only imported configures nothing.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def logger(name: str) -> Logger:
    """A structured logger; its lines carry the request's id and whatever else the context has bound."""
    bound: Logger = structlog.stdlib.get_logger(name)
    return bound


def accepted_request_id(sent: str | None) -> str:
    """The client's request id when it is safe to log (1-128 of letters, digits, ``._:-``), else a new one."""
    if sent is not None and _ACCEPTED_REQUEST_ID.fullmatch(sent):
        return sent
    return uuid.uuid4().hex


@contextlib.contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Bind *request_id* to every log line written inside."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


def stopwatch() -> Callable[[], float]:
    """Start timing; the returned function says the seconds since."""
    started = time.perf_counter()
    return lambda: time.perf_counter() - started

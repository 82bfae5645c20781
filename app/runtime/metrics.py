"""Prometheus metrics of the service, on a registry that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from models.item_counts import ITEM_COUNTS, ItemCounts

# A client may send any word as its method; only these become label values, so it cannot grow the metrics without end
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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
        self.batch_fill = Histogram(
            "taesar_batch_fill",
            "Items of a call of the model, as a share of TAESAR_MAX_BATCH_POSITIONS.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1),
            registry=registry,
        )
        self.model_restarts = Counter(
            "taesar_model_process_restarts_total",
            "Processes of models that ended or hung, and were started again.",
            registry=registry,
        )
        self.queued_sequences = Gauge(
            "taesar_queued_sequences", "Sequences admitted and not yet computed.", registry=registry
        )
        self.sequences = Counter(
            "taesar_sequences_regenerated_total",
            "Sequences answered by POST /regenerate, by the model's version.",
            ["version"],
            registry=registry,
        )
        self.decisions = Counter(
            "taesar_decisions_total",
            f"Submitted items by what became of them: {', '.join(ITEM_COUNTS)}.",
            ["action"],
            registry=registry,
        )
        self.active_model = Gauge(
            "taesar_active_model", "1 for the version that serves.", ["version"], registry=registry
        )
        self.canary_share = Gauge(
            "taesar_canary_share",
            "Share of the requests that a canary answers, by its version.",
            ["version"],
            registry=registry,
        )

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        """Read the queue's depth from *num_queued* at every scrape."""
        self.queued_sequences.set_function(num_queued)

    def observe_batch(self, rows: int, seconds: float) -> None:
        """Record one call of the model."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def observe_fill(self, share: float) -> None:
        """Record how much of what one call may hold it held."""
        self.batch_fill.observe(share)

    def count_model_restart(self) -> None:
        """Record a model's process that was started again."""
        self.model_restarts.inc()

    def observe_sequence(self, version: str, counts: ItemCounts) -> None:
        """Record what became of one sequence's items under the model of *version*."""
        self.sequences.labels(version).inc()
        for action, count in asdict(counts).items():
            self.decisions.labels(action).inc(count)

    def set_serving(self, *, active: str | None, canary: str | None, canary_share: float) -> None:
        """Record which models serve."""
        self.active_model.clear()
        if active is not None:
            self.active_model.labels(active).set(1)
        self.canary_share.clear()
        if canary is not None:
            self.canary_share.labels(canary).set(canary_share)

    def observe_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Record one answered request; *route* is the template, never the path."""
        method = method if method in METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.request_seconds.labels(method, route).observe(seconds)

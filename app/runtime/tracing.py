"""
Traces by OpenTelemetry, where they are asked for; elsewhere nothing is recorded and nothing is imported.

A trace goes through the service as W3C's ``traceparent``: it comes with a request, is kept with a job in SQL (tasks
carry ids only, and a lost one loses no trace), and goes with a call to the model's process. Whatever is inside a span
is a part of it; threads and processes are handed a ``traceparent``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_MILLISECONDS = 2000


class TracingMissingError(Exception):
    """Traces are asked for, and what sends them is not installed."""


@dataclass
class _Tracing:
    """The tracing of a process; one, as its log is."""

    provider: TracerProvider | None = field(default=None)


_tracing = _Tracing()


def configure_tracing(endpoint: str | None, role: str) -> None:
    """
    Send spans of this process to the collector at *endpoint* (OTLP over HTTP) from now on; without one send none.

    Args:
        endpoint: such as http://collector:4318, or None.
        role: of the process: api, worker or model.

    Raises:
        TracingMissingError: taesar[otel] is not installed.
    """
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingMissingError(
            "TAESAR_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'taesar[otel]'"
        ) from error
    version = importlib.metadata.version("taesar")
    resource = Resource.create(
        {"service.name": f"taesar-{role}", "service.version": version, "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    _tracing.provider = provider


def stop_tracing() -> None:
    """Send what is left, for a moment."""
    if _tracing.provider is not None:
        _tracing.provider.force_flush(FLUSH_MILLISECONDS)
        _tracing.provider.shutdown()
        _tracing.provider = None


@contextlib.contextmanager
def span(
    name: str, *, parent: str | None = None, links: Sequence[str] = (), **attributes: Any
) -> Iterator[Callable[[str], None]]:
    """
    What happens inside is one span; nothing where traces are not asked for. Yields what gives it another name.

    Args:
        name: of few: it names a kind of work, never an id.
        parent: the ``traceparent`` that it belongs to; without one the span that is open in this thread or task.
        links: other ``traceparent`` that it works for.
        attributes: what is known of it; underscores stand for dots.
    """
    provider = _tracing.provider
    if provider is None:
        yield lambda _name: None
        return
    from opentelemetry import trace

    above = None if parent is None else _context_of(parent)
    others = [trace.Link(trace.get_current_span(_context_of(link)).get_span_context()) for link in links]
    named = {key.replace("_", "."): value for key, value in attributes.items() if value is not None}
    tracer = provider.get_tracer("taesar")
    with tracer.start_as_current_span(name, context=above, links=others, attributes=named) as opened:
        yield opened.update_name


def current_traceparent() -> str | None:
    """The ``traceparent`` of the open span, to hand on; None where there is none."""
    if _tracing.provider is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _context_of(traceparent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})

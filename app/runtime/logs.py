"""Structured logs that carry a request id."""

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

REQUEST_ID_HEADER = "X-Request-ID"
_ACCEPTED_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Logger = structlog.stdlib.BoundLogger


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


def current_request_id() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


@contextlib.contextmanager
def key_context(name: str) -> Iterator[None]:
    """Bind the name of the request's key to every log line written inside."""
    with structlog.contextvars.bound_contextvars(key=name):
        yield


def current_key_name() -> str | None:
    """What the key of the request that is being answered is called; None without a key, and outside of one."""
    name: str | None = structlog.contextvars.get_contextvars().get("key")
    return name


def stopwatch() -> Callable[[], float]:
    """Start timing; the returned function says the seconds since."""
    started = time.perf_counter()
    return lambda: time.perf_counter() - started

"""
Every error of the service, the only table exception -> status, and the one renderer of problem+json (RFC 9457).

ServiceError
|- UnauthorizedError             no key, or one that is not accepted
|- UnknownModelError             no bundle of that version is loaded or can be loaded
|- RequestTooLargeError          over a documented limit: sequences, items or bytes
|- UnknownSequenceItemsError     on_unknown "error" and items that the model does not know
|- InvalidBodyError              the body cannot be decoded at all
|- QueueFullError                the batcher's queue has no room
|- ClientLeftError               the client closed the connection before its answer was ready
|- ModelUnavailableError         no bundle is active
|- ModelProcessDiedError         the process that holds the networks ended over a call, twice
|- ModelThreadDiedError          the thread that runs the model ended
|- ShuttingDownError             the service drains and takes no more work
|- UnknownJobError               no job of that id
|- InvalidSourceError            a job's input URI is malformed, climbs, or has no reader installed
|- SourceNotAllowedError         an input URI outside the allow-list
|- SourceNotFoundError           an allowed input URI that names no readable file
|- UnsupportedFormatError        an input or result format that is none of those offered
|- NotAcceptableError            the Accept header admits none of the formats offered
|- IdempotencyConflictError      an Idempotency-Key that came before with another request
|- JobStateError                 the job is not in a state that allows the request
|- ResultGoneError               the result, or the list of bad rows, is past its retention and was removed
|- InvalidCursorError            a page cursor that this service did not write
|- StoreUnavailableError         the database does not answer
`- FailedChecksError             checks of the process fail; carries every check's result
   |- NotReadyError              requests cannot be served just now
   `- NotAliveError              requests cannot be served before a restart

``models.errors`` has its own tree; ``STATUS`` covers those of its types that a request can meet. A status is found by
the exception's closest ancestor in the table; what has none is our mistake: 500, logged with its traceback.
"""

from __future__ import annotations

import http
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from models.errors import BundleError, InputFormatError, ModelError, UnknownDomainError

PROBLEM_JSON = "application/problem+json"
ABOUT_BLANK = "about:blank"
MAX_LISTED_PARTS = 100
"""Invalid places that one answer names: a wrong request of thousands of items gets a short answer, and the count."""
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it, logs and metrics are


@dataclass(frozen=True)
class InvalidPart:
    """One place of a request that is wrong: its path from the request's root, and why."""

    location: tuple[str | int, ...]
    message: str


class ServiceError(Exception):
    """The root: everything that ``app`` raises on purpose."""


class UnauthorizedError(ServiceError):
    """No bearer key was sent, or one that is not accepted."""


class UnknownModelError(ServiceError):
    """No bundle of that version is loaded or can be loaded."""

    def __init__(self, version: str) -> None:
        super().__init__(f"no model of version {version!r}; GET /models lists those that can be activated")


class RequestTooLargeError(ServiceError):
    """The request is over a documented limit."""

    def __init__(self, what: str, limit: int, setting: str) -> None:
        super().__init__(f"{what}; the limit is {limit} ({setting})")


class UnknownSequenceItemsError(ServiceError):
    """
    Items that the model does not know, named with their places in the request.

    Args:
        parts: the first of them, at least one and at most MAX_LISTED_PARTS.
        total: how many there are.
    """

    def __init__(self, parts: Sequence[InvalidPart], total: int) -> None:
        assert 0 < len(parts) <= min(total, MAX_LISTED_PARTS)
        super().__init__(parts[0].message + _and_more(total, len(parts)))
        self.parts = tuple(parts)


class InvalidBodyError(ServiceError):
    """The request body cannot be decoded."""


class QueueFullError(ServiceError):
    """The queue has no room for the request."""

    def __init__(self, *, waiting: int, capacity: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} of {capacity} places are taken; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class ClientLeftError(ServiceError):
    """The client closed the connection before its answer was ready."""


class ModelUnavailableError(ServiceError):
    """No bundle is active."""


class ModelProcessDiedError(ServiceError):
    """The process that holds the networks ended over this call, twice, or cannot be started again."""


class ModelThreadDiedError(ServiceError):
    """The thread that runs the model ended; only a restart brings it back."""


class ShuttingDownError(ServiceError):
    """The service is shutting down and takes no more work."""


class FailedChecksError(ServiceError):
    """At least one check of the process fails; carries the result of each."""

    def __init__(self, checks: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {result}" for name, result in checks.items() if result != "ok"))
        self.checks = dict(checks)


class NotReadyError(FailedChecksError):
    """Requests cannot be served just now."""


class NotAliveError(FailedChecksError):
    """Requests cannot be served before a restart."""


class UnknownJobError(ServiceError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")


class InvalidSourceError(ServiceError):
    """The URI of a job's input is malformed, climbs out of its folder, or needs a reader that is not installed."""


class SourceNotAllowedError(ServiceError):
    """The URI of a job's input is outside the allow-list; says nothing of whether it exists."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri!r} lies under none of the allowed places (TAESAR_INPUT_ROOTS)")


class SourceNotFoundError(ServiceError):
    """An allowed URI names no file that can be read."""


class UnsupportedFormatError(ServiceError):
    """The format of an input or a result is none of those offered."""


class NotAcceptableError(ServiceError):
    """The Accept header admits none of the formats offered."""

    def __init__(self, offered: Sequence[str]) -> None:
        super().__init__(f"offered: {', '.join(offered)}")


class IdempotencyConflictError(ServiceError):
    """The Idempotency-Key came before, with another request."""


class JobStateError(ServiceError):
    """The job is not in a state that allows the request."""


class ResultGoneError(ServiceError):
    """The result, or the list of bad rows, is past its retention and was removed."""


class InvalidCursorError(ServiceError):
    """The page cursor is none that this service wrote."""

    def __init__(self) -> None:
        super().__init__("not a cursor of this list; take 'next' of the page before, or begin without one")


class StoreUnavailableError(ServiceError):
    """The database does not answer."""


STATUS: Mapping[type[Exception], int] = {
    UnauthorizedError: 401,
    UnknownDomainError: 404,
    UnknownModelError: 404,
    UnknownJobError: 404,
    SourceNotFoundError: 404,
    SourceNotAllowedError: 403,
    NotAcceptableError: 406,
    IdempotencyConflictError: 409,
    JobStateError: 409,
    ResultGoneError: 410,
    UnsupportedFormatError: 415,
    InvalidSourceError: 422,
    InvalidCursorError: 422,
    InputFormatError: 422,
    StoreUnavailableError: 503,
    BundleError: 409,
    RequestTooLargeError: 413,
    RequestValidationError: 422,
    UnknownSequenceItemsError: 422,
    InvalidBodyError: 422,
    QueueFullError: 429,
    ClientLeftError: CLIENT_CLOSED_REQUEST,
    ModelUnavailableError: 503,
    ModelProcessDiedError: 503,
    ModelThreadDiedError: 503,
    ShuttingDownError: 503,
    FailedChecksError: 503,
}


class InvalidPartBody(BaseModel):
    """One invalid place of a request."""

    location: list[str | int] = Field(description="Path from the request's root, e.g. body, sequences, 0, items, 3.")
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 shapes it."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="A stable URN of the kind of error; about:blank when the status says it all.")
    title: str = Field(description="The kind of error, in words.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What went wrong this time.")
    instance: str = Field(description="Path of the request.")
    errors: list[InvalidPartBody] | None = Field(
        default=None, description=f"With 422: the invalid places, at most the first {MAX_LISTED_PARTS}."
    )
    checks: dict[str, str] | None = Field(
        default=None, description="With 503 of a health check: each check, 'ok' or why not."
    )


def status_of(error: Exception) -> int:
    """The status that *error* is answered with; 500 when the table has no ancestor of its type."""
    if isinstance(error, HTTPException):
        return error.status_code
    return _status_of_type(type(error))


def problem_of(error: Exception, *, instance: str) -> Problem:
    """*error* as a problem; an error outside the table is described without its message, which may tell secrets."""
    status = status_of(error)
    if isinstance(error, HTTPException):
        return Problem(
            type=ABOUT_BLANK, title=_phrase(status), status=status, detail=str(error.detail), instance=instance
        )
    if status == 500:
        detail = "the server failed; its log has the reason under this answer's X-Request-ID"
        return Problem(type=ABOUT_BLANK, title=_phrase(500), status=500, detail=detail, instance=instance)
    parts = _invalid_parts(error)
    detail = str(error)
    if isinstance(error, RequestValidationError):
        detail = "the request is invalid"
        if parts:
            detail += f": {parts[0].message}{_and_more(len(error.errors()), len(parts))}"
    return Problem(
        type=type_of(type(error)),
        title=title_of(type(error)),
        status=status,
        detail=detail,
        instance=instance,
        errors=[InvalidPartBody(location=list(part.location), message=part.message) for part in parts] or None,
        checks=error.checks if isinstance(error, FailedChecksError) else None,
    )


def problem_response(error: Exception, *, path: str) -> Response:
    """*error* as an HTTP answer; *path* is the decoded path of the request."""
    problem = problem_of(error, instance=quote(path, safe="/"))
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = 'Bearer realm="taesar"'
    # json.dumps escapes what is not ASCII: a lone surrogate that a client sent cannot break the answer about it
    content = json.dumps(problem.model_dump(exclude_none=True))
    return Response(content, status_code=problem.status, headers=headers, media_type=PROBLEM_JSON)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error on purpose, and the framework's own, with problem+json."""

    async def answer(request: Request, error: Exception) -> Response:
        cause = error.__cause__ or error.__context__
        if isinstance(error, HTTPException) and cause is not None and error.status_code == 400:
            # FastAPI and Starlette hide what stopped the reading of a body or a form behind a 400
            if isinstance(cause, ServiceError | ClientDisconnect):
                error = cause
            else:
                error = InvalidBodyError(f"the body cannot be read: {cause}")
        if isinstance(error, ClientDisconnect):  # Starlette's, while it reads a body: no mistake of anybody's
            error = ClientLeftError("the client closed the connection before its request was read")
        return problem_response(error, path=request.url.path)

    for kind in (ServiceError, ModelError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer)


def problem_responses(*kinds: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route that may raise *kinds*, with an example of each; ``Exception`` stands for 500."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status = _status_of_type(kind)
        example = {"type": type_of(kind), "title": title_of(kind), "status": status, "detail": "...", "instance": "/"}
        entry = responses.setdefault(
            status,
            {
                "description": "",
                "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], title_of(kind)]))
        entry["content"][PROBLEM_JSON]["examples"][type_of(kind)] = {"value": example}
        if kind is QueueFullError:
            entry["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return responses


def title_of(kind: type[Exception]) -> str:
    """The kind's name in words: QueueFullError -> 'Queue full'."""
    if kind is RequestValidationError:
        return "Invalid request"
    if _status_of_type(kind) == 500:
        return _phrase(500)
    words = re.findall(r"[A-Z][a-z]*", kind.__name__.removesuffix("Error"))
    return " ".join(words).capitalize()


def type_of(kind: type[Exception]) -> str:
    """The kind's stable URN: QueueFullError -> 'urn:taesar:problem:queue-full'; about:blank for a mere 500."""
    if title_of(kind) == _phrase(500):
        return ABOUT_BLANK
    return "urn:taesar:problem:" + title_of(kind).lower().replace(" ", "-")


def _invalid_parts(error: Exception) -> tuple[InvalidPart, ...]:
    if isinstance(error, UnknownSequenceItemsError):
        return error.parts
    if isinstance(error, RequestValidationError):
        listed = error.errors()[:MAX_LISTED_PARTS]
        return tuple(InvalidPart(tuple(found["loc"]), str(found["msg"])) for found in listed)
    return ()


def _and_more(total: int, listed: int) -> str:
    """What follows the first of *total* wrong places, *listed* of which are named."""
    more = "" if total == 1 else f" (and {total - 1:,} more)"
    return more if listed == total else f"{more}; the first {listed} are listed"


def _status_of_type(kind: type[Exception]) -> int:
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), 500)


def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase

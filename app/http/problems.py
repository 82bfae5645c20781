"""
The only table exception -> status, and the one renderer of problem+json (RFC 9457).

A status is found by the closest ancestor of the exception in ``STATUS``; what has none is our mistake: 500, logged with
its traceback.
"""

from __future__ import annotations

import http
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.errors import (
    MAX_LISTED_PARTS,
    ActivationConflictError,
    ClientLeftError,
    ContentTypeError,
    DestinationNotAllowedError,
    FailedChecksError,
    FilesUnavailableError,
    ForeignHostError,
    ForeignPageError,
    IdempotencyConflictError,
    InvalidBodyError,
    InvalidCursorError,
    InvalidPart,
    InvalidSourceError,
    JobStateError,
    KeyLimitError,
    MissingCsrfTokenError,
    MissingScopeError,
    ModelProcessDiedError,
    ModelThreadDiedError,
    ModelUnavailableError,
    NotAcceptableError,
    QueueFullError,
    ReceivingFullError,
    RequestTooLargeError,
    ResultGoneError,
    ServiceError,
    ShuttingDownError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StoreUnavailableError,
    UnauthorizedError,
    UnknownJobError,
    UnknownModelError,
    UnknownReportError,
    UnknownSequenceItemsError,
    UnsupportedFormatError,
    and_more,
)
from models.errors import BundleError, InputFormatError, ModelError, UnknownDomainError

PROBLEM_JSON = "application/problem+json"


ABOUT_BLANK = "about:blank"


CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it, logs and metrics are


STATUS: Mapping[type[Exception], int] = {
    UnauthorizedError: 401,
    MissingScopeError: 403,
    KeyLimitError: 429,
    ForeignHostError: 403,
    ForeignPageError: 403,
    MissingCsrfTokenError: 403,
    ContentTypeError: 415,
    ReceivingFullError: 503,
    UnknownDomainError: 404,
    UnknownModelError: 404,
    UnknownJobError: 404,
    UnknownReportError: 404,
    SourceNotFoundError: 404,
    SourceNotAllowedError: 403,
    DestinationNotAllowedError: 403,
    NotAcceptableError: 406,
    IdempotencyConflictError: 409,
    JobStateError: 409,
    ActivationConflictError: 409,
    ResultGoneError: 410,
    UnsupportedFormatError: 415,
    InvalidSourceError: 422,
    InvalidCursorError: 422,
    InputFormatError: 422,
    StoreUnavailableError: 503,
    FilesUnavailableError: 503,
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


# Those that say when to try again
RETRIED = (KeyLimitError, QueueFullError, ReceivingFullError)


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
            detail += f": {parts[0].message}{and_more(len(error.errors()), len(parts))}"
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
    if isinstance(error, RETRIED):
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
        if isinstance(error, HTTPException) and error.status_code == 405:
            # The router names the methods of the first route of this path, and each method has a route
            error = HTTPException(405, headers={"Allow": ", ".join(allowed_methods(app, request.scope))})
        if isinstance(error, ClientDisconnect):  # Starlette's, while it reads a body: no mistake of anybody's
            error = ClientLeftError("the client closed the connection before its request was read")
        return problem_response(error, path=request.url.path)

    for kind in (ServiceError, ModelError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer)


def allowed_methods(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that the path of *scope* has; HEAD wherever GET is, OPTIONS where pages may ask."""
    candidates = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    found = {
        method
        for method in candidates
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    }
    allowed = [method for method in candidates if method in found or (method == "HEAD" and "GET" in found)]
    return [*allowed, "OPTIONS"] if allowed and app.state.settings.cors_origins else allowed


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
        if kind in RETRIED:
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


def _status_of_type(kind: type[Exception]) -> int:
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), 500)


def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase

"""
What happens to every request before a route sees it, outermost first: request id, log line and metrics; the last net
for errors; the API key; the size of the body. Plain ASGI, so that streams and disconnections pass through untouched.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RequestTooLargeError, UnauthorizedError
from app.http.problems import problem_response
from app.runtime.logs import REQUEST_ID_HEADER, accepted_request_id, logger, request_context, stopwatch
from app.runtime.metrics import Metrics

log = logger(__name__)

# Open without a key: orchestrators and scrapers hold none, and the answers tell nothing of anybody's data; the
# description of the API is the same for everyone
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})


class RequestMiddleware:
    """
    Give every request an id, one log line and its place in the metrics; answer what nobody handled with a 500 problem.

    The id is the client's X-Request-ID when it is harmless, else a new one; it returns in the same header.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = accepted_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        elapsed = stopwatch()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with request_context(request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                log.exception("unhandled_error", path=scope["path"])
                if status is not None:
                    raise  # half an answer is out: only breaking the connection tells the client
                await problem_response(error, path=scope["path"])(scope, receive, send_with_id)
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                # Without a status the client was cut off, or the server is being stopped
                self._metrics.observe_request(
                    method=scope["method"], route=route, status=status or 0, seconds=elapsed()
                )
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    route=route,
                    status=status,
                    seconds=round(elapsed(), 6),
                )


class ApiKeyMiddleware:
    """
    Let through what carries an accepted bearer key, and the open paths; 401 for the rest, unknown paths included.

    Args:
        keys: accepted keys; empty lets everything through.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS:
            try:
                self._check(Headers(scope=scope).get("Authorization"))
            except UnauthorizedError as error:
                await problem_response(error, path=scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, authorization: str | None) -> None:
        scheme, _, sent = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not sent:
            raise UnauthorizedError("send an accepted key as 'Authorization: Bearer <key>'")
        # Headers are latin-1 by the protocol; every key is compared, in constant time, so timing tells nothing
        given = sent.strip().encode("latin-1")
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise UnauthorizedError("the key is not accepted")


class BodyLimitMiddleware:
    """
    413 for bodies over the limit, by the announced length before a byte is read, else by counting what arrives.

    Args:
        limit: bytes, and the setting that says so.
        path_limits: other (bytes, setting) for single paths, such as uploads.
    """

    def __init__(
        self, app: ASGIApp, limit: tuple[int, str], path_limits: Mapping[str, tuple[int, str]] | None = None
    ) -> None:
        self._app = app
        self._limit = limit
        self._path_limits = dict(path_limits or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, setting = self._path_limits.get(scope["path"], self._limit)
        announced = Headers(scope=scope).get("Content-Length", "")
        if announced.isdecimal() and int(announced) > limit:
            error = RequestTooLargeError(f"the body has {announced} bytes", limit, setting)
            await problem_response(error, path=scope["path"])(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise RequestTooLargeError(f"the body has more than {limit} bytes", limit, setting)
            return message

        await self._app(scope, receive_counted, send)

"""
What happens to every request before a route sees it, outermost first: request id, log line and metrics; the last net
for errors; a slash too many; foreign pages; the key and its pace; HEAD; the size of the body. Plain ASGI, so that
streams and disconnections pass through untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.key_file import AccessKey
from app.access.key_limits import KeyLimits
from app.access.key_ring import KeyRing
from app.errors import (
    ForeignHostError,
    ForeignPageError,
    KeyLimitError,
    MissingCsrfTokenError,
    RequestTooLargeError,
    UnauthorizedError,
)
from app.http.key_checks import ACCESS_KEY
from app.http.problems import problem_response
from app.http.receptions import Reception, Receptions
from app.http.sessions import Sessions, is_open_page, is_page, to_login
from app.runtime.logs import REQUEST_ID_HEADER, accepted_request_id, key_context, logger, request_context, stopwatch
from app.runtime.metrics import METHODS, Metrics
from app.runtime.tracing import span

log = logger(__name__)

# Open without a key: orchestrators and scrapers hold none, and the answers tell nothing of anybody's data; the
# description of the API is the same for everyone
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})


BODILESS = frozenset({"GET", "HEAD"})
UPLOAD_MEMORY = 1024 * 1024  # Starlette keeps so much of an uploaded file in memory, the rest on disk
MOST_DIGITS = 20  # of a length that can be: int() of thousands of digits is an error

# What every answer says to browsers: it is what it says it is, is no page to put into another, and loads nothing.
# /docs alone has a style of its own, which it names.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CONTENT_SECURITY_POLICY = b"content-security-policy"
NOTHING_LOADED = b"default-src 'none'; frame-ancestors 'none'"


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
                headers = message["headers"] = list(message.get("headers", ()))
                if not any(name == CONTENT_SECURITY_POLICY for name, _ in headers):
                    headers.append((CONTENT_SECURITY_POLICY, NOTHING_LOADED))
                headers += SECURITY_HEADERS
                headers.append((REQUEST_ID_HEADER.lower().encode(), request_id.encode()))
            await send(message)

        is_traced = scope["path"] not in OPEN_PATHS
        opened = span(
            scope["method"] if scope["method"] in METHODS else "other",
            parent=Headers(scope=scope).get("traceparent"),
            taesar_request=request_id,
        )
        with request_context(request_id), opened if is_traced else contextlib.nullcontext(_ignore) as rename:
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                log.exception("unhandled_error", path=scope["path"])
                if status is not None:
                    raise  # half an answer is out: only breaking the connection tells the client
                await problem_response(error, path=scope["path"])(scope, receive, send_with_id)
            finally:
                route = getattr(scope.get("route"), "path", "unmatched")
                rename(f"{scope['method']} {route}")
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
                    key=_name_of(scope.get(ACCESS_KEY)),
                    seconds=round(elapsed(), 6),
                )


def _ignore(_name: str) -> None:
    """What a request without a span is renamed by."""


def _name_of(key: AccessKey | None) -> str | None:
    return None if key is None else key.name


class SlashMiddleware:
    """
    Lead who asks for a path with a slash too many to the path without it.

    By the path alone: a full URL would repeat the name that the request came by, which may be anybody's.

    Args:
        is_path: whether there is something at a path.
    """

    def __init__(self, app: ASGIApp, is_path: Callable[[Scope], bool]) -> None:
        self._app = app
        self._is_path = is_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] in BODILESS and scope["path"].endswith("/"):
            path = scope["path"].rstrip("/")
            # Two slashes at the beginning would be another host
            if path and not path.startswith("//") and self._is_path({**scope, "path": path}):
                query = scope["query_string"].decode("ascii")
                location = quote(path) + (f"?{query}" if query else "")
                await Response(status_code=308, headers={"Location": location})(scope, receive, send)
                return
        await self._app(scope, receive, send)


class ApiKeyMiddleware:
    """
    Let through what carries an accepted bearer key, or the cookie of a session that one began, and the open paths; 401
    for the rest, unknown paths included, and the login form instead of a page.

    What the key may do is the route's to say (``key_checks``); how often, its limits: 429 before a body is read.

    Args:
        keys: accepted keys; none lets everything through.
        limits: how often each may ask.
        sessions: of browsers.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, limits: KeyLimits, sessions: Sessions) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        path = scope.get("path", "")  # a lifespan has none
        if scope["type"] != "http" or self._keys.is_empty or path in OPEN_PATHS or is_open_page(path):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            key = scope[ACCESS_KEY] = self._find(headers, scope["method"])
            await self._limits.take_request(key.name)
        except (UnauthorizedError, MissingCsrfTokenError, KeyLimitError) as error:
            lost = isinstance(error, UnauthorizedError) and is_page(path)
            answer = to_login(headers, path) if lost else problem_response(error, path=path)
            await answer(scope, receive, send)
            return
        with key_context(key.name):
            await self._app(scope, receive, send)

    def _find(self, headers: Headers, method: str) -> AccessKey:
        authorization = headers.get("Authorization")
        if authorization is None and (of_session := self._sessions.key_of_request(headers, method)) is not None:
            return of_session
        scheme, _, sent = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not sent:
            raise UnauthorizedError("send an accepted key as 'Authorization: Bearer <key>'")
        key = self._keys.find(sent.strip().encode("latin-1"))  # headers are latin-1 by the protocol
        if key is None:
            raise UnauthorizedError("the key is not accepted")
        return key


class HeadMiddleware:
    """Answer HEAD wherever GET is: with its headers, and no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def receive_until_answered() -> Message:
            if not answered.is_set():
                return await receive()
            return {"type": "http.disconnect"}

        async def send_headers(message: Message) -> None:
            if answered.is_set():
                return
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()

        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive_until_answered, send_headers)
        finally:
            scope.update({name: inner[name] for name in ("route",) if name in inner})


class ForeignPageMiddleware:
    """
    Keep web pages of others out of a service that asks for no key.

    A browser on the operator's machine reaches the service, so any page it shows does. A page that rebinds a name of
    its own to this address is known by that name (Host): no address and no localhost can be rebound. A page that sends
    without such a trick is known by what browsers say of it (Origin, Sec-Fetch-Site).

    Args:
        hosts: further names of the service; ``*.example.org`` means every name below.
        pages: origins whose pages may call (TAESAR_CORS_ORIGINS).
        any_page: whether pages are no concern, as keys are asked for: browsers do not hold them.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], pages: Sequence[str], any_page: bool) -> None:
        self._app = app
        self._pages = frozenset(page.encode() for page in pages)
        self._hosts = tuple(host.lower() for host in hosts)
        self._any_host = any_page and not hosts
        self._any_page = any_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            try:
                self._check(scope["method"], scope["headers"])
            except (ForeignHostError, ForeignPageError) as error:
                await problem_response(error, path=scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        # One walk over the headers: it is made for every request
        host, origin, site = b"", None, b"none"
        for name, value in headers:
            if name == b"host":
                host = value.lower()
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
        if not self._any_host and not self._is_own(host.decode("latin-1")):
            raise ForeignHostError(host.decode("latin-1"))
        if self._any_page or origin in self._pages:
            return
        if origin is not None and origin.lower().partition(b"://")[2] != host:
            raise ForeignPageError
        # A link from elsewhere to GET /docs is harmless: its page cannot read the answer
        if method not in BODILESS and site not in (b"none", b"same-origin"):
            raise ForeignPageError

    def _is_own(self, host: str) -> bool:
        if host in LOOPBACKS:
            return True
        name = _HOST.fullmatch(host)
        if name is None:
            return False
        if name["address"] is not None or name["name"] == "localhost":
            return True
        own = name["name"].rstrip(".")
        return any(own == known or (known[:2] == "*." and own.endswith(known[1:])) for known in self._hosts)


LOOPBACKS = frozenset({"localhost", "127.0.0.1"})
_HOST = re.compile(
    r"(?:(?P<address>\[[0-9a-f:.%]+\]|\d{1,3}(?:\.\d{1,3}){3})|(?P<name>[a-z0-9_](?:[a-z0-9_.-]*)))(?::\d{1,5})?"
)


class BodyLimitMiddleware:
    """
    Bounds on the size of a body, and on what memory holds of all bodies together.

    Args:
        limit: bytes of one body, and the setting that says so.
        path_limits: paths whose bodies have a limit of their own; what is above UPLOAD_MEMORY is on disk.
        receptions: the bodies of all requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: tuple[int, str],
        path_limits: Mapping[str, tuple[int, str]],
        receptions: Receptions,
    ) -> None:
        self._app = app
        self._limit = limit
        self._path_limits = path_limits
        self._receptions = receptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in BODILESS:
            await self._app(scope, receive, send)
            return
        limit, setting = self._path_limits.get(scope["path"], self._limit)
        announced = Headers(scope=scope).get("Content-Length", "")
        if announced.isdecimal() and len(announced) < MOST_DIGITS and int(announced) > limit:
            error = RequestTooLargeError(f"the body has {announced} bytes", limit, setting)
            await problem_response(error, path=scope["path"])(scope, receive, send)
            return
        most_held = UPLOAD_MEMORY if scope["path"] in self._path_limits else limit
        reception = self._receptions.begin()

        async def receive_counted() -> Message:
            if reception.is_complete:  # only the client's leaving can still come
                return await receive()
            message = await self._receive(reception, receive)
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                reception.received += size
                if reception.received > limit:
                    raise RequestTooLargeError(f"the body has more than {limit} bytes", limit, setting)
                more = min(size, most_held - reception.held)
                if more > 0:
                    self._receptions.hold(reception, more)
                reception.is_complete = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._receptions.end(reception)

    async def _receive(self, reception: Reception, receive: Receive) -> Message:
        if not reception.received:  # most bodies come in one piece, and hold nothing before
            return await receive()
        try:
            async with asyncio.timeout(None) as reception.patience:
                return await receive()
        except TimeoutError:
            raise self._receptions.refusal() from None
        finally:
            reception.patience = None

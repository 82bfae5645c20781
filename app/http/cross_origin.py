"""Web pages of other origins that may call (CORS), and the answer to OPTIONS that comes with it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.problems import allowed_methods
from app.runtime.logs import REQUEST_ID_HEADER

METHODS = ("GET", "HEAD", "POST", "DELETE")
SENT = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", REQUEST_ID_HEADER, "traceparent")
READ = ("Allow", "ETag", "Idempotent-Replayed", "Location", "Retry-After", "Content-Disposition", REQUEST_ID_HEADER)
PREFLIGHT_SECONDS = 600


class OptionsMiddleware:
    """
    Answer OPTIONS with the methods that the path has.

    Args:
        routes: the application whose paths these are.
    """

    def __init__(self, app: ASGIApp, routes: FastAPI) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            allowed = allowed_methods(self._routes, scope)
            if allowed:
                await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(scope, receive, send)
                return
        await self._app(scope, receive, send)


def allow_pages(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of *origins* call *app*; a preflight is answered before a key is asked for, as it never has one."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=SENT,
        expose_headers=READ,
        max_age=PREFLIGHT_SECONDS,
    )

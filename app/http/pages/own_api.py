"""
The API as a page calls it: in this process, but through the whole of the application, as any other client.

So pages hold no rights of their own: the session that asked for the page is what the call is allowed by, and what the
API refuses is what the page shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
from fastapi import Request

from app.http.sessions import CSRF_HEADER
from app.runtime.logs import REQUEST_ID_HEADER, current_request_id

FORWARDED = ("host", "authorization", "cookie", CSRF_HEADER)
# A model may take its time; the reader leaves sooner than this
PATIENCE_SECONDS = 120.0

Json = Any
Files = Mapping[str, tuple[str, bytes]]


class ApiRefusalError(Exception):
    """The API answered with a problem (RFC 9457), which the page shows."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail", "")))
        self.status = status
        self.problem = problem


class OwnApi:
    """
    Calls the API on behalf of *request*.

    Args:
        request: of the page.
    """

    def __init__(self, request: Request) -> None:
        self._app = request.app
        known = request.headers
        self._headers = {name: known[name] for name in FORWARDED if name in known}
        self._headers[REQUEST_ID_HEADER] = current_request_id()

    async def get(self, path: str, **query: object) -> Json:
        """The JSON at *path*; queries that are None are left out. Raises ApiRefusalError."""
        return (await self._call("GET", path, params=_without_none(query))).json()

    async def lines(self, path: str, **query: object) -> list[str]:
        """The lines of a text at *path*; raises ApiRefusalError."""
        return (await self._call("GET", path, params=_without_none(query))).text.splitlines()

    async def send(self, method: str, path: str, body: Json = None, **query: object) -> Json:
        """Send *body* as JSON; the JSON of the answer, None where it has none. Raises ApiRefusalError."""
        given = {} if body is None else {"json": body}
        answer = await self._call(method, path, params=_without_none(query), **given)
        return answer.json() if answer.content else None

    async def upload(self, path: str, fields: Mapping[str, str], files: Files) -> Json:
        """Send a form with files; raises ApiRefusalError."""
        return (await self._call("POST", path, data=dict(fields), files=dict(files))).json()

    async def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=self._headers, timeout=PATIENCE_SECONDS
        ) as client:
            answer = await client.request(method, path, **arguments)
        if answer.is_error:
            raise ApiRefusalError(answer.status_code, _problem_of(answer))
        return answer


def segment(text: str) -> str:
    """*text* as one part of a path."""
    return quote(text, safe="")


def _without_none(query: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _problem_of(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"title": answer.reason_phrase, "detail": ""}

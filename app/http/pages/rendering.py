"""Templates to answers: what every page has around its content, and what a browser may do with it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from app.http.pages.own_api import ApiRefusalError
from app.http.sessions import SESSION_COOKIE, STATIC, Sessions
from app.settings import Settings

# Scripts and styles are files of ours, nothing is written into a page; nothing is loaded from, or sent, elsewhere
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
VIEWS = (
    ("try", "Try it"),
    ("mappings", "Mappings"),
    ("data", "Data"),
    ("jobs", "Jobs"),
    ("models", "Models"),
    ("results", "Results"),
)
ASSETS = files("app.http.pages") / "static"
NUM_COLOURS = 6


def whole_number(value: float) -> str:
    """
    A count as people read it.

    >>> whole_number(12345)
    '12,345'
    """
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """
    A share as people read it: small ones are not rounded to nothing.

    >>> percent(0.62), percent(0.004), percent(0.00001)
    ('62 %', '0.4 %', '< 0.1 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """
    A span as people read it.

    >>> duration(0.4), duration(75), duration(7300)
    ('under a second', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return "under a second"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(text: str | None) -> str:
    """
    An instant of the API, in UTC, to the minute.

    >>> moment("2026-01-05T10:00:00.120000Z")
    '2026-01-05 10:00 UTC'
    """
    return "" if not text else f"{text[:16].replace('T', ' ')} UTC"


@cache
def asset(name: str) -> str:
    """The address of a file of ours; it changes with the content, so browsers may keep it for ever."""
    digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()
    return f"{STATIC}/{name}?{digest[:12]}"


TEMPLATES = Environment(
    loader=PackageLoader("app.http.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"whole": whole_number, "percent": percent, "duration": duration, "moment": moment}
TEMPLATES.globals |= {"asset": asset, "views": VIEWS}


def page(request: Request, template: str, /, *, view: str = "", status: int = 200, **content: Any) -> HTMLResponse:
    """The *template* as a whole page, or as a part of one that htmx asked for."""
    cookie = request.cookies.get(SESSION_COOKIE, "")
    sessions, settings = sessions_of(request), settings_of(request)
    around = {
        "view": view,
        "csrf": sessions.csrf_token(cookie) if cookie else "",
        "signed_in": sessions.key_of(cookie) is not None,
        "settings": settings,
    }
    text = TEMPLATES.get_template(template).render(**around, **content)
    # A page shows what is so now; a browser's own copy of it may not be
    headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Cache-Control": "no-store"}
    return HTMLResponse(text, status_code=status, headers=headers)


async def show_refusal(request: Request, error: Exception) -> HTMLResponse:
    """What the API refused, as a page or as a part of one; an exception handler."""
    assert isinstance(error, ApiRefusalError)
    is_part = "HX-Request" in request.headers
    name = "problem_part.html" if is_part else "problem.html"
    return page(request, name, status=error.status, problem=error.problem, title=error.problem.get("title", "Error"))


def colour_numbers(domains: list[str]) -> dict[str, int]:
    """Which colour of the style sheet each domain has."""
    return {domain: index % NUM_COLOURS for index, domain in enumerate(domains)}


def sessions_of(request: Request) -> Sessions:
    """The application's sessions."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def settings_of(request: Request) -> Settings:
    """What the operator chose."""
    settings: Settings = request.app.state.settings
    return settings

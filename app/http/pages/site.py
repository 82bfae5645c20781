"""The pages for people, at /ui: put together for the application."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.http.pages import job_pages, login_pages, mapping_pages, model_pages, report_pages, try_pages
from app.http.pages.own_api import ApiRefusalError
from app.http.pages.rendering import ASSETS, show_refusal
from app.http.sessions import PAGES, STATIC

FIRST_VIEW = f"{PAGES}/try"
FOR_EVER = "public, max-age=31536000, immutable"


class Assets(StaticFiles):
    """Files whose addresses change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, to be kept by the browser."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = FOR_EVER
        return response


class BrowserRoute(Route):
    """A path for browsers, which say that they read HTML; other clients meet the next route of the path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route answers."""
        if scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", ""):
            return super().matches(scope)
        return Match.NONE, {}


def install_pages(app: FastAPI) -> None:
    """Add the pages and their files to *app*; none of them is part of the API, or of its description."""
    for module in (login_pages, try_pages, mapping_pages, report_pages, job_pages, model_pages):
        app.include_router(module.router)
    app.add_exception_handler(ApiRefusalError, show_refusal)
    app.mount(STATIC, Assets(directory=str(ASSETS)), name="assets")

    for path in (PAGES, f"{PAGES}/"):
        app.router.routes.append(Route(path, show_first_view))
    app.router.routes.insert(0, BrowserRoute("/", show_first_view))


def show_first_view(_request: Request) -> Response:
    """Lead to the first view."""
    return RedirectResponse(FIRST_VIEW, status_code=303)

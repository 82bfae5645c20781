"""The login form: a key is sent once, and a cookie stands for it from then on."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from app.errors import UnauthorizedError
from app.http.pages.rendering import page, sessions_of
from app.http.sessions import LOGIN, LOGIN_COOKIE, PAGES, SESSION_COOKIE, SESSION_SECONDS

router = APIRouter(prefix=PAGES, include_in_schema=False)

LOGIN_SECONDS = 3600


@router.get("/login")
def show_login(request: Request, next: str = PAGES) -> Response:
    """The form; its token fits the cookie that comes with it, so that no other site's form can log anybody in."""
    if not sessions_of(request).needed:
        return RedirectResponse(PAGES, status_code=303)
    return _form(request, secrets.token_urlsafe(16), _own_path(next))


@router.post("/login")
def log_in(
    request: Request,
    key: Annotated[str, Form(max_length=4096)] = "",
    token: Annotated[str, Form(max_length=128)] = "",
    next: Annotated[str, Form(max_length=4096)] = PAGES,
) -> Response:
    """Begin a session, or show the form again with the reason."""
    sessions, nonce = sessions_of(request), request.cookies.get(LOGIN_COOKIE, "")
    if not nonce or not sessions.is_token_of(nonce, token):
        return _form(request, secrets.token_urlsafe(16), _own_path(next), "This form was too old. Send it again.")
    try:
        cookie = sessions.begin(key.strip())
    except UnauthorizedError:
        return _form(request, nonce, _own_path(next), "This key is not accepted.")
    answer = RedirectResponse(_own_path(next), status_code=303)
    _set_cookie(answer, SESSION_COOKIE, cookie, SESSION_SECONDS, path="/")
    answer.delete_cookie(LOGIN_COOKIE, path=LOGIN)
    return answer


@router.post("/logout")
def log_out(_request: Request) -> Response:
    """Forget the session in this browser."""
    answer = Response(status_code=200, headers={"HX-Redirect": LOGIN})
    answer.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return answer


def _form(request: Request, nonce: str, following: str, problem: str | None = None) -> Response:
    token = sessions_of(request).csrf_token(nonce)
    status = 200 if problem is None else 401
    answer = page(request, "login.html", status=status, title="Log in", token=token, following=following, wrong=problem)
    _set_cookie(answer, LOGIN_COOKIE, nonce, LOGIN_SECONDS, path=LOGIN)
    return answer


def _set_cookie(answer: Response, name: str, value: str, seconds: int, *, path: str) -> None:
    answer.set_cookie(name, value, max_age=seconds, path=path, secure=True, httponly=True, samesite="strict")


def _own_path(address: str) -> str:
    """*address* if it is a page of ours, else the first one: nobody is sent elsewhere after a login."""
    is_ours = address.startswith(f"{PAGES}/") and not {"\\", "\n", "\r"} & set(address)
    return address if is_ours else PAGES

"""
Browsers' sessions: a key is shown once, at the login form, and a signed cookie stands for it from then on.

The cookie holds no key but its digest, and counts as long as that key is accepted: who takes a key away ends its
sessions. It is HttpOnly, Secure and SameSite=Strict, so neither a script nor another site's page gets at it; beside it,
what changes something needs the token that the session's own pages were given (``MissingCsrfTokenError``).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import quote

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from app.access.key_file import AccessKey
from app.access.key_ring import KeyRing
from app.errors import MissingCsrfTokenError, UnauthorizedError

PAGES = "/ui"
LOGIN = f"{PAGES}/login"
STATIC = f"{PAGES}/static"
SESSION_COOKIE = "taesar-session"
LOGIN_COOKIE = "taesar-login"
CSRF_HEADER = "X-CSRF-Token"
SESSION_SECONDS = 12 * 3600  # a working day: then the key is asked for again

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


class Sessions:
    """
    Gives cookies for keys, and keys for cookies.

    Args:
        keys: those that are accepted; without any nobody needs a session.
        secret: signs; None: a new one.
    """

    def __init__(self, keys: KeyRing, secret: str | None) -> None:
        self._keys = keys
        self._secret = secret or secrets.token_urlsafe(32)
        self._signer = URLSafeTimedSerializer(self._secret, salt="taesar session")

    @property
    def needed(self) -> bool:
        """Whether a key is asked for at all."""
        return not self._keys.is_empty

    def begin(self, key: str) -> str:
        """The cookie for *key*; raises UnauthorizedError where it is not accepted."""
        found = self._keys.find(key.encode("utf-8", "surrogateescape"))
        if found is None:
            raise UnauthorizedError("the key is not accepted")
        # The nonce makes every session's token its own
        return str(self._signer.dumps([found.hash, secrets.token_urlsafe(12)]))

    def key_of(self, cookie: str) -> AccessKey | None:
        """The key that *cookie* stands for; None where it is forged, too old, or its key is not accepted any more."""
        try:
            digest, _ = self._signer.loads(cookie, max_age=SESSION_SECONDS)
        except (BadSignature, ValueError, TypeError):
            return None
        return self._keys.with_hash(str(digest))

    def csrf_token(self, cookie: str) -> str:
        """What the pages of the session *cookie* send with every change."""
        return hmac.new(self._secret.encode(), f"csrf {cookie}".encode(), hashlib.sha256).hexdigest()

    def is_token_of(self, cookie: str, token: str) -> bool:
        """Whether *token* is that of *cookie*."""
        return hmac.compare_digest(self.csrf_token(cookie).encode(), token.encode())

    def key_of_request(self, headers: Headers, method: str) -> AccessKey | None:
        """
        The key that a browser's request stands for; None without a session.

        Raises:
            MissingCsrfTokenError: it would change something and lacks its session's token.
        """
        cookie = cookie_of(headers, SESSION_COOKIE)
        key = self.key_of(cookie)
        if key is None:
            return None
        if method not in _HARMLESS and not self.is_token_of(cookie, headers.get(CSRF_HEADER, "")):
            raise MissingCsrfTokenError
        return key


def cookie_of(headers: Headers, name: str) -> str:
    """The cookie *name* of a request; empty where it has none."""
    return cookie_parser(headers.get("cookie", "")).get(name, "")


def is_open_page(path: str) -> bool:
    """Whether a page is for everybody: the way to them, the login, and what it is made of."""
    return path in ("/", LOGIN) or path.startswith(f"{STATIC}/")


def is_page(path: str) -> bool:
    """Whether *path* is one of the pages for people."""
    return path == PAGES or path.startswith(f"{PAGES}/")


def to_login(headers: Headers, path: str) -> Response:
    """The answer to a browser without a session: the login form, which leads back to *path*."""
    if headers.get("HX-Request"):  # a part of a page: the whole of it goes to the login
        return Response(status_code=401, headers={"HX-Redirect": LOGIN})
    return RedirectResponse(f"{LOGIN}?next={quote(path, safe='/')}", status_code=303)

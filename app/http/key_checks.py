"""Who asks, and may they: the key of a request, and the scope that a route asks for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from app.access.key_file import AccessKey, KeyScope
from app.access.key_limits import KeyLimits
from app.errors import MissingScopeError

# Where ApiKeyMiddleware leaves the key in the connection's scope
ACCESS_KEY = "taesar.access_key"

# Only declares the scheme in the OpenAPI document; ApiKeyMiddleware is what checks, before a body is read
_BEARER = HTTPBearer(auto_error=False, scheme_name="key", description="One of the accepted keys: docs/keys.md.")


def key_of(request: Request) -> AccessKey | None:
    """The key of the request; None where no key is asked for."""
    key: AccessKey | None = request.scope.get(ACCESS_KEY)
    return key


def key_name_of(request: Request) -> str | None:
    """What the key of the request is called."""
    key = key_of(request)
    return None if key is None else key.name


def key_limits_of(request: Request) -> KeyLimits:
    """The application's limits of keys."""
    limits: KeyLimits = request.app.state.key_limits
    return limits


def check_scope(request: Request, scope: str) -> None:
    """
    Whether the key of the request may do what *scope* is for; all may where no key is asked for.

    Raises:
        MissingScopeError: it may not.
    """
    key = key_of(request)
    if key is not None and scope not in key.scopes:
        raise MissingScopeError(key.name, scope)


async def _check_route(
    request: Request,
    asked: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> None:
    for scope in asked.scopes:
        check_scope(request, scope)


def needs(scope: KeyScope) -> Any:
    """What a route has among its ``dependencies``: a key with this scope, where keys are asked for."""
    return Security(_check_route, scopes=[scope])


ANY_KEY: Any = Security(_check_route)
"""What a route has among its ``dependencies`` that any accepted key may call."""

"""`taesar probe`: whether the service or the worker in this container is well, for whoever restarts it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.console import print_error, say, set_result
from app.cli.options import read_settings

if TYPE_CHECKING:
    from app.settings import Settings

UNWELL = 1
ANSWER_SECONDS = 5.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def probe(
    what: Annotated[
        Literal["api", "worker"],
        typer.Argument(
            help="api: does GET /readyz of this machine's service say yes? worker: do the database, at the schema of "
            "this code, and Redis answer, without which it waits?"
        ),
    ],
) -> None:
    """
    Say "ok" and end with 0, or say the reason why not and end with 1.

    Address, database and queue are those of the settings. That a process lives is its container's to say.
    """
    checks: dict[str, Callable[[Settings], str | None]] = {"api": api_unreadiness, "worker": worker_unreadiness}
    reason = checks[what](read_settings())
    if reason is not None:
        print_error(f"{what}: {reason}")
        set_result(error=reason)
        sys.exit(UNWELL)
    say("ok")


def api_unreadiness(settings: Settings) -> str | None:
    """Why the service on this machine does not serve, or None when it does."""
    import httpx

    host = EVERY_ADDRESS.get(settings.host, settings.host)
    try:
        answer = httpx.get(f"http://{host}:{settings.port}/readyz", timeout=ANSWER_SECONDS, trust_env=False)
    except httpx.TransportError as error:
        return f"http://{host}:{settings.port} does not answer: {error}"
    return None if answer.is_success else answer.text


def worker_unreadiness(settings: Settings) -> str | None:
    """Why a worker with these settings could not work, or None when it could. Loads no torch: it runs often."""
    import redis

    from app.errors import StoreUnavailableError
    from app.storage import schema
    from app.storage.database import open_engine

    if settings.redis_url is None:
        return "TAESAR_REDIS_URL is not set: there are no workers beside the service"
    engine = open_engine(settings.database())
    queue = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=ANSWER_SECONDS)
    try:
        if not schema.is_current(engine):
            return f"the database's schema is not at revision {schema.newest_revision()}"
        queue.ping()
    except (StoreUnavailableError, redis.RedisError) as error:
        return str(error)
    finally:
        queue.close()
        engine.dispose()
    return None

"""
Which workers are there, and what keeps each from working: they say so in Redis, which forgets what is old.

Not in SQL: it is nobody's truth, only a hint to people who wonder why a job does not move.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from app.storage.database import now_ms

KEY = "taesar:workers"
SAY_SECONDS = 10.0
GONE_MS = 30_000
FORGOTTEN_MS = 3_600_000


def own_name() -> str:
    """A name that no other worker has: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def say_present(broker: dramatiq.Broker, name: str, trouble: str | None) -> None:
    """Say that the worker *name* is there, and why it could not work if it had to; raises redis.RedisError."""
    if isinstance(broker, RedisBroker):
        broker.client.hset(KEY, name, json.dumps({"at_ms": now_ms(), "trouble": trouble}))


def say_gone(broker: dramatiq.Broker, name: str) -> None:
    """Say that the worker *name* ends; raises redis.RedisError."""
    if isinstance(broker, RedisBroker):
        broker.client.hdel(KEY, name)


def present_workers(broker: dramatiq.Broker) -> dict[str, str | None]:
    """Workers that were there a moment ago -> why each cannot work, or None; raises redis.RedisError."""
    if not isinstance(broker, RedisBroker):
        return {}
    found: dict[str, str | None] = {}
    said: dict[Any, Any] = broker.client.hgetall(KEY)
    for name, text in said.items():
        entry = json.loads(text)
        age_ms = now_ms() - entry["at_ms"]
        if age_ms < GONE_MS:
            found[name.decode()] = entry["trouble"]
        elif age_ms > FORGOTTEN_MS:
            broker.client.hdel(KEY, name)
    return found


def why_jobs_wait(broker: dramatiq.Broker) -> str | None:
    """Why no job moves although Redis answers: no worker, or none that can work. None when one can."""
    try:
        workers = present_workers(broker)
    except redis.RedisError as error:
        return f"Redis does not answer: {type(error).__name__}"
    if not workers:
        return f"no worker has been seen for {GONE_MS // 1000} s: jobs wait"
    if None in workers.values():
        return None
    return "no worker can work: " + "; ".join(sorted({str(trouble) for trouble in workers.values()}))

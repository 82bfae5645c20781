"""
What one key may ask for, so that it cannot fill the queue for all: requests a second, and sequences at once.

Requests are paced by the generic cell rate algorithm: per key one instant, at which it would have had all that it took
until now. With Redis the instant is shared by all replicas; where Redis does not answer, each replica paces alone, for
a moment. A kept library (limits) was weighed: it asks for a Redis client older than the queue's, and three packages
for what are ten lines of arithmetic.

Sequences at once are counted in the process, since the queue that they could fill is the process's own. Unfinished jobs
are counted in SQL (``JobStore.record``).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import redis.asyncio
import redis.exceptions

from app.errors import KeyLimitError
from app.runtime.logs import logger
from app.settings import Settings

log = logger(__name__)

NAMESPACE = "taesar:pace:"
# A pacing that takes longer than the request is worse than none
REDIS_SECONDS = 0.25
ALONE_SECONDS = 5.0
PLACES_RETRY_SECONDS = 1

# KEYS[1]: the key's instant. ARGV: seconds that a request costs, seconds of burst. Answers the seconds to wait, 0 for
# none, as text: Redis cuts numbers to integers.
SHARED_PACE = """
local now = redis.call('TIME')
local instant = tonumber(now[1]) + tonumber(now[2]) / 1000000
local cost, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local taken = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), instant)
local wait = taken + cost - burst - instant
if wait > 0 then return tostring(wait) end
redis.call('SET', KEYS[1], string.format('%.6f', taken + cost), 'PX', math.ceil((taken + cost - instant) * 1000) + 1)
return '0'
"""


class KeyPace:
    """
    So many requests a second of each key, and a second's worth of them at once.

    Args:
        per_second: how many; 0 for any number.
        redis_url: where the count is shared, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self, per_second: float, *, redis_url: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cost = 1 / per_second if per_second else 0.0
        self._burst = max(1.0, self._cost)  # less than one request a second is one at a time
        self._clock = clock
        self._taken: dict[str, float] = {}
        self._alone_until = 0.0
        self._redis: Any = None
        if redis_url is not None and per_second:
            self._redis = redis.asyncio.Redis.from_url(
                redis_url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
            )
            self._script = self._redis.register_script(SHARED_PACE)

    async def wait_seconds(self, name: str) -> float:
        """Take one request of the key *name*; 0, or how long to wait before it may be made: then nothing was taken."""
        if not self._cost:
            return 0.0
        if self._redis is not None and self._clock() >= self._alone_until:
            try:
                return float(await self._script(keys=[NAMESPACE + name], args=[self._cost, self._burst]))
            except (redis.exceptions.RedisError, OSError) as error:
                self._alone_until = self._clock() + ALONE_SECONDS
                log.warning("pace_not_shared", reason=type(error).__name__, seconds=ALONE_SECONDS)
        return self._wait_alone(name)

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    def _wait_alone(self, name: str) -> float:
        now = self._clock()
        taken = max(self._taken.get(name, now), now)
        wait = taken + self._cost - self._burst - now
        if wait > 1e-9:
            return wait
        self._taken[name] = taken + self._cost
        return 0.0


class KeyLimits:
    """
    The limits of every key. Used on the event loop only.

    Args:
        settings: how much.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.redis_url
        self._pace = KeyPace(
            settings.key_requests_per_second, redis_url=None if url is None else url.get_secret_value()
        )
        self._requests_per_second = settings.key_requests_per_second
        self._most_sequences = settings.most_sequences_of_a_key()
        self._sequences: Counter[str] = Counter()

    async def take_request(self, name: str | None) -> None:
        """
        Count a request of the key *name* (None: no key is asked for, and nothing counted).

        Raises:
            KeyLimitError: there were too many in this second.
        """
        wait = 0.0 if name is None else await self._pace.wait_seconds(name)
        if wait > 0:
            what = f"the key {name} sends more than {self._requests_per_second:g} requests a second"
            raise KeyLimitError(what, "TAESAR_KEY_REQUESTS_PER_SECOND", retry_after_seconds=math.ceil(wait))

    @contextlib.contextmanager
    def holding_sequences(self, name: str | None, num_sequences: int) -> Iterator[None]:
        """
        Inside, so many sequences of the key wait for their answers.

        Raises:
            KeyLimitError: too many do already.
        """
        if name is None:
            yield
            return
        waiting = self._sequences[name]
        if waiting + num_sequences > self._most_sequences:
            what = f"{waiting} sequences of the key {name} wait already; {num_sequences} more are over its share"
            what += f" of {self._most_sequences}"
            raise KeyLimitError(what, "TAESAR_KEY_QUEUED_SEQUENCES", retry_after_seconds=PLACES_RETRY_SECONDS)
        self._sequences[name] += num_sequences
        try:
            yield
        finally:
            self._sequences[name] -= num_sequences
            if not self._sequences[name]:
                del self._sequences[name]

    async def close(self) -> None:
        """Close the connections."""
        await self._pace.close()

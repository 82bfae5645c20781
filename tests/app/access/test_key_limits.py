"""How often a key may ask, alone and over replicas that share Redis, and how much may wait for it at once."""

import asyncio

import pytest

from app.access.key_limits import KeyLimits, KeyPace
from app.errors import KeyLimitError
from app.settings import Settings
from tests.services import free_port


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def waits(pace, name, count):
    async def ask():
        return [await pace.wait_seconds(name) for _ in range(count)]

    return asyncio.run(ask())


def test_a_seconds_worth_at_once_then_one_whenever_its_time_has_come():
    clock = Clock()
    pace = KeyPace(4, clock=clock)

    assert waits(pace, "shop", 6) == [0, 0, 0, 0, 0.25, 0.25]
    clock.now += 0.5
    assert waits(pace, "shop", 3) == [0, 0, 0.25]
    assert waits(pace, "other", 1) == [0]
    clock.now += 1000
    assert waits(pace, "shop", 5) == [0, 0, 0, 0, 0.25]


def test_less_than_one_in_a_second_is_one_at_a_time():
    clock = Clock()
    pace = KeyPace(0.1, clock=clock)

    assert waits(pace, "shop", 2) == [0, 10]
    clock.now += 10
    assert waits(pace, "shop", 2) == [0, 10]


def test_nought_is_any_number():
    assert waits(KeyPace(0), "shop", 1000) == [0] * 1000


def test_replicas_that_share_redis_share_the_count(redis_server):
    async def ask():
        replicas = [KeyPace(0.5, redis_url=redis_server.url) for _ in range(2)]
        found = [await replica.wait_seconds("shop") for replica in (*replicas, *replicas)]
        others = [await replicas[0].wait_seconds("other")]
        for replica in replicas:
            await replica.close()
        return found, others

    (first, *rest), others = asyncio.run(ask())

    assert first == 0
    assert all(1 < wait <= 2 for wait in rest)
    assert others == [0]


def test_without_redis_each_replica_counts_alone_and_soon():
    clock = Clock()
    pace = KeyPace(2, redis_url=f"redis://127.0.0.1:{free_port()}/0", clock=clock)

    assert waits(pace, "shop", 3) == [0, 0, 0.5]


def test_a_keys_sequences_wait_within_its_share_and_make_room_when_answered():
    limits = KeyLimits(Settings(max_sequences_per_request=4, key_queued_sequences=10))
    with limits.holding_sequences("shop", 4), limits.holding_sequences("shop", 4):
        with pytest.raises(KeyLimitError, match="8 sequences of the key shop wait") as caught:
            limits.holding_sequences("shop", 3).__enter__()
        with limits.holding_sequences("other", 10), limits.holding_sequences("shop", 2):
            pass
    assert caught.value.retry_after_seconds == 1
    with limits.holding_sequences("shop", 10):
        pass


def test_where_no_key_is_asked_for_nothing_is_counted():
    limits = KeyLimits(Settings(key_requests_per_second=1, max_sequences_per_request=1, key_queued_sequences=1))

    async def ask():
        for _ in range(100):
            await limits.take_request(None)

    asyncio.run(ask())
    with limits.holding_sequences(None, 100), limits.holding_sequences(None, 100):
        pass


@pytest.mark.parametrize(
    ("settings", "sequences", "jobs"),
    [
        ({}, 256, 500),
        ({"max_queued_sequences": 200, "max_unfinished_jobs": 1}, 128, 1),
        ({"key_queued_sequences": 130, "key_unfinished_jobs": 3}, 130, 3),
    ],
)
def test_a_keys_share_is_half_unless_chosen(settings, sequences, jobs):
    chosen = Settings(**settings)

    assert (chosen.most_sequences_of_a_key(), chosen.most_jobs_of_a_key()) == (sequences, jobs)

"""Streamed answers give back what they hold, however they end."""

import asyncio
import gc
import threading

import anyio
import pytest

from app.http.streams import ClosingStream


class Held:
    """A generator of endless parts, and whether it holds something: it does from its first part to its end."""

    def __init__(self, *, fail_at=None, last=None):
        self.holds = False
        self.parts = 0
        self.inside = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self._fail_at = fail_at
        self._last = last

    def __iter__(self):
        self.holds = True
        try:
            while self.parts != self._last:
                if self.parts == self._fail_at:
                    raise RuntimeError("half way")
                self.inside.set()
                assert self.free.wait(10)
                self.parts += 1
                yield b"part"
        finally:
            self.holds = False


@pytest.fixture(autouse=True)
def _no_search_for_cycles():
    gc.disable()
    yield
    gc.enable()


async def call(held, *, parts_read):
    """The answer over ASGI, to a client that leaves when it has read so many parts."""
    leaving = asyncio.Event()
    sent = []

    async def receive():
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message.get("body", b""))
        if sent.count(b"part") >= parts_read:
            leaving.set()
            await anyio.sleep_forever()

    if parts_read == 0:
        leaving.set()
    await ClosingStream(iter(held), media_type="text/plain")({"type": "http", "asgi": {}}, receive, send)
    return sent


@pytest.mark.parametrize("parts_read", [0, 1, 3])
def test_a_client_that_leaves_lets_go_of_what_its_answer_held(parts_read):
    held = Held()
    asyncio.run(call(held, parts_read=parts_read))

    assert held.parts == parts_read
    assert not held.holds


def test_an_answer_that_is_read_to_its_end_lets_go():
    held = Held(last=5)
    sent = asyncio.run(call(held, parts_read=6))

    assert sent.count(b"part") == 5
    assert not held.holds


def test_an_answer_that_fails_half_way_lets_go():
    held = Held(fail_at=2)
    with pytest.raises(RuntimeError, match="half way"):
        asyncio.run(call(held, parts_read=6))

    assert held.parts == 2
    assert not held.holds


def test_a_task_that_is_cancelled_while_a_part_is_made_lets_go_when_it_has_been_made():
    """As uvicorn does when its time to shut down is over: the thread cannot be stopped, only waited for."""
    held = Held()
    held.free.clear()

    async def cancel_inside():
        task = asyncio.create_task(call(held, parts_read=6))
        await asyncio.to_thread(held.inside.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        held.free.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_inside())

    assert held.parts == 1
    assert not held.holds

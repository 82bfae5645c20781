"""Answers that are written once and read by many, none of whom holds up another."""

import asyncio
import contextlib

import pytest

from app.http import spools
from app.http.spools import Spools

PART = b"x" * spools.READ_BYTES


class Written:
    """An answer of *num_parts*, and how often it was written."""

    def __init__(self, num_parts=3):
        self.times = 0
        self.num_parts = num_parts

    def __call__(self, spool):
        self.times += 1
        spool.begin("label")
        for _ in range(self.num_parts):
            spool.write(PART)


async def read(all_spools, written, key="key"):
    """The whole answer, as its client gets it."""
    answer = await all_spools.answer(key, written, media_type="text/csv", headers=lambda label: {"ETag": label})
    sent = []

    async def send(message):
        sent.append(message.get("body", b""))

    async def receive():
        await asyncio.Event().wait()

    await answer({"type": "http", "method": "GET", "headers": []}, receive, send)
    return b"".join(sent)


def test_who_asks_again_soon_reads_what_was_written():
    async def run():
        all_spools, written = Spools(), Written()
        first = await read(all_spools, written)
        second = await read(all_spools, written)
        all_spools.close()
        return written.times, first, second

    assert asyncio.run(run()) == (1, PART * 3, PART * 3)


def test_an_answer_that_nobody_asks_for_any_more_goes(monkeypatch):
    monkeypatch.setattr(spools, "KEPT_SECONDS", 0.05)

    async def run():
        all_spools, written = Spools(), Written()
        await read(all_spools, written)
        await asyncio.sleep(0.3)
        await read(all_spools, written)
        all_spools.close()
        return written.times

    assert asyncio.run(run()) == 2


def test_so_many_answers_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(spools, "MOST_KEPT", 2)

    async def run():
        all_spools, written = Spools(), Written()
        for key in "abc" * 2:
            await read(all_spools, written, key)
        all_spools.close()
        return written.times

    assert asyncio.run(run()) == 4  # the third, twice


def test_an_answer_that_failed_is_not_kept():
    async def run():
        all_spools, written = Spools(), Written()

        def fail(spool):
            written(spool)
            raise OSError("the disk is full")

        for _ in range(2):
            with contextlib.suppress(OSError, ExceptionGroup):
                await read(all_spools, fail)
        all_spools.close()
        return written.times

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize("num_readers", [1, 5])
def test_other_requests_have_their_turn_between_any_two_parts_of_any_answers(num_readers):
    """A client takes megabytes without a pause, and its loop is everybody's."""

    async def run():
        all_spools, turns, is_over = Spools(), 0, False

        async def other_request():
            nonlocal turns
            while not is_over:
                turns += 1
                await asyncio.sleep(0)

        written = Written(num_parts=20)
        await read(all_spools, written)  # it is there before it is counted
        other = asyncio.ensure_future(other_request())
        await asyncio.gather(*(read(all_spools, written) for _ in range(num_readers)))
        is_over = True
        await other
        all_spools.close()
        return turns

    assert asyncio.run(run()) >= 20 * num_readers

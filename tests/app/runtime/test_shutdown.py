"""The time to shut down is one, and is told to all."""

import asyncio
from types import SimpleNamespace

import pytest

from app.http.application import create_app
from app.jobs.worker import WorkerThreads
from app.runtime.shutdown import Shutdown
from app.settings import Settings


@pytest.fixture
def clock(monkeypatch):
    """The time, which stands still until the test sets it."""
    now = [100.0]
    monkeypatch.setattr("app.runtime.shutdown.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_time_left_counts_from_the_beginning_and_is_never_negative(clock):
    shutdown = Shutdown(30)
    clock[0] = 150
    before = shutdown.seconds_left()
    shutdown.begin()
    clock[0] = 162
    during = shutdown.seconds_left()
    shutdown.begin()
    again = shutdown.seconds_left()
    clock[0] = 200

    assert (before, during, again, shutdown.seconds_left()) == (30, 18, 18, 0)


@pytest.mark.parametrize(("answering", "left"), [(12, 18), (30, 1)])
def test_embedded_jobs_have_what_the_answers_left_of_the_time(clock, monkeypatch, tmp_path, answering, left):
    granted = []
    stop = WorkerThreads.stop

    def stop_and_tell(threads, *, timeout_seconds):
        granted.append(timeout_seconds)
        stop(threads, timeout_seconds=timeout_seconds)

    async def serve():
        app = create_app(Settings(data=tmp_path, device="cpu", shutdown_seconds=30))
        async with app.router.lifespan_context(app):
            app.state.shutdown.begin()
            clock[0] += answering

    monkeypatch.setattr(WorkerThreads, "stop", stop_and_tell)
    asyncio.run(serve())

    assert granted == [left]


def test_who_waits_is_told_at_once():
    async def wait():
        shutdown = Shutdown(30)
        waiting = asyncio.create_task(shutdown.begins_within(3600))
        early = await shutdown.begins_within(0.001)
        shutdown.begin()
        return early, await waiting, await shutdown.begins_within(3600)

    assert asyncio.run(wait()) == (False, True, True)

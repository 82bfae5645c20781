"""On PostgreSQL, who decides about a job waits for whoever holds its row, and decides by what the row then says."""

from __future__ import annotations

import contextlib
import errno
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text, update

from app.errors import JobStateError
from app.jobs.parts import job_parts
from app.jobs.records import JobState
from app.jobs.tasks import Task, TaskKind
from app.mappings.mapping_store import fold_in
from app.storage.database import reading, writing
from app.storage.tables import chunks, jobs
from tests.job_stores import FIRST, Stores
from tests.services import eventually

SECONDS = 20


@pytest.fixture
def stores(job_settings, postgres_database, clock):
    parts = job_parts(job_settings(database_url=postgres_database))
    yield Stores(parts)
    parts.close()


@pytest.fixture
def aside():
    """Threads for what may have to wait."""
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


@contextlib.contextmanager
def held(stores, state):
    """The job's row is somebody's inside the block, who gives it another *state* at the end."""
    with writing(stores.parts.engine) as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == FIRST).values(state=state))
        yield connection


def waits_for_a_lock(stores):
    with reading(stores.parts.engine) as connection:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return connection.execute(text(waiting)).scalar_one()


def test_who_only_looks_at_a_job_waits_for_nobody(stores, aside):
    stores.submit(FIRST)
    with held(stores, JobState.CANCELLED):
        found = aside(stores.jobs.get, FIRST).result(SECONDS)
        kept = aside(stores.jobs.keeps_files, FIRST).result(SECONDS)

    assert (found.state, kept) == (JobState.QUEUED, True)


@pytest.mark.parametrize("decision", ["begin cutting", "begin delivery", "finish", "fail"])
def test_whoever_meets_a_cancellation_under_way_leaves_the_job_cancelled(stores, aside, decision):
    if decision == "begin cutting":
        stores.submit(FIRST)
    else:
        stores.cut(FIRST)
        stores.do(FIRST)
    decide = {
        "begin cutting": stores.retries.begin_cutting,
        "begin delivery": stores.retries.begin_delivery,
        "finish": stores.chunks.finish,
        "fail": stores.fail,
    }[decision]
    with held(stores, JobState.CANCELLED):
        decided = aside(decide, FIRST)
        eventually(lambda: waits_for_a_lock(stores))

    assert decided.result(SECONDS) is None
    assert stores.states(FIRST) == [JobState.CANCELLED]


def test_a_cancellation_that_meets_the_end_of_the_job_is_refused(stores, aside):
    stores.cut(FIRST)
    with held(stores, JobState.SUCCEEDED):
        cancelled = aside(stores.jobs.cancel, FIRST)
        eventually(lambda: waits_for_a_lock(stores))

    with pytest.raises(JobStateError):
        cancelled.result(SECONDS)
    assert stores.states(FIRST) == [JobState.SUCCEEDED]


def test_a_removal_that_meets_the_end_of_the_job_takes_its_counts_back(stores, aside):
    stores.cut(FIRST)
    stores.do(FIRST)
    with held(stores, JobState.SUCCEEDED) as connection:
        fold_in(connection, stores.jobs.get(FIRST).dictionary)
        removed = aside(stores.jobs.remove, FIRST)
        eventually(lambda: waits_for_a_lock(stores))
    removed.result(SECONDS)

    assert stores.counted() == {}


def test_chunks_that_somebody_gives_a_turn_just_now_are_passed_over(stores, aside):
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    for index in range(3):
        stores.chunks.add_chunk(FIRST, index, input_name=f"in{index}", num_rows=1, rows_read=1, bad=[])
    with writing(stores.parts.engine) as connection:
        first = select(chunks).where(chunks.c.job_id == FIRST, chunks.c.chunk_index == 0)
        connection.execute(first.with_for_update())
        taken = aside(stores.parts.turns.take, FIRST).result(SECONDS)

    assert taken == [Task(TaskKind.CHUNK, FIRST, 1), Task(TaskKind.CHUNK, FIRST, 2)]


def test_a_job_that_somebody_is_at_work_on_has_lost_nothing(stores, aside):
    stores.submit(FIRST)
    with held(stores, JobState.QUEUED):
        lost = aside(lambda: stores.lost(older_than_ms=9999)).result(SECONDS)

    assert lost == []
    assert stores.lost(older_than_ms=9999) == [Task(TaskKind.CUT, FIRST)]


def test_attempts_that_another_thread_takes_back_are_not_waited_for(stores, aside):
    """They wait for the database, which says nothing for long."""
    stores.cut(FIRST)
    work = stores.retries.begin_chunk(FIRST, 0)
    with held(stores, JobState.RUNNING):
        failed = aside(stores.retries.chunk_failed, work, OSError(errno.ENOSPC, "no space left"))
        eventually(lambda: waits_for_a_lock(stores))
        settled = aside(stores.retries.settle).result(SECONDS)

    assert (settled, failed.result(SECONDS)) == (None, True)

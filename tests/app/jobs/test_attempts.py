"""Attempts at inputs, chunks and results, and work that was lost, one transaction after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import errno

import pytest

from app.errors import StoreUnavailableError
from app.jobs.records import JobState
from app.jobs.retries import WAITING
from app.jobs.tasks import Task, TaskKind
from models.errors import UnknownDomainError
from tests.job_stores import FIRST, NEW, SECOND, THIRD

# -- Attempts


def test_a_chunk_is_begun_while_it_is_open_and_its_job_runs(stores):
    stores.cut(FIRST, SECOND, num_chunks=2)
    stores.do(FIRST, 0)
    work = stores.retries.begin_chunk(FIRST, 1)
    stores.jobs.cancel(SECOND)

    assert (work.job.job_id, work.chunk_index, work.input_name) == (FIRST, 1, "in1")
    assert stores.retries.begin_chunk(FIRST, 0) is None
    assert stores.retries.begin_chunk(FIRST, 2) is None
    assert stores.retries.begin_chunk(SECOND, 0) is None


def test_attempts_at_one_chunk_are_not_those_at_another(stores):
    stores.cut(FIRST, SECOND, num_chunks=2)
    for _ in range(5):
        assert stores.retries.begin_chunk(FIRST, 0) is not None
    assert stores.retries.begin_chunk(FIRST, 1) is not None
    assert stores.retries.begin_chunk(SECOND, 0) is not None
    assert stores.retries.begin_chunk(FIRST, 0) is None

    assert stores.states(FIRST, SECOND) == [JobState.FAILED, JobState.RUNNING]
    assert stores.jobs.get(FIRST).reason == "chunk 0 failed in 5 attempts, the last: its worker died"


def test_a_failure_is_tried_again_until_the_last_attempt_and_its_reason_is_kept(stores):
    stores.cut(FIRST, num_chunks=2)
    again = []
    for _ in range(5):
        work = stores.retries.begin_chunk(FIRST, 1)
        again.append(stores.retries.chunk_failed(work, OSError("gone")))

    assert again == [True, True, True, True, False]
    assert stores.jobs.get(FIRST).reason == "chunk 1 failed in 5 attempts, the last: OSError: gone"
    assert stores.retries.chunk_failed(work, OSError("late")) is False


def test_an_outage_that_is_told_twice_gives_no_attempt_more_than_there_are(stores):
    stores.cut(FIRST, num_chunks=2)
    work = stores.retries.begin_chunk(FIRST, 1)
    for _ in range(2):
        stores.retries.chunk_failed(work, OSError(errno.ENOSPC, "No space left on device"))
    begun = [stores.retries.begin_chunk(FIRST, 1) is not None for _ in range(6)]

    assert begun == [True] * 5 + [False]


def test_the_reason_of_a_chunks_last_failure_is_told_when_its_worker_dies_after_it(stores):
    stores.cut(FIRST)
    for _ in range(4):
        work = stores.retries.begin_chunk(FIRST, 0)
    stores.retries.chunk_failed(work, OSError("gone"))
    stores.retries.begin_chunk(FIRST, 0)
    stores.retries.begin_chunk(FIRST, 0)

    assert stores.jobs.get(FIRST).reason == "chunk 0 failed in 5 attempts, the last: OSError: gone"


def test_a_job_says_that_it_waits_until_its_next_chunk_is_done(stores):
    """An outage costs no attempt; another job that waits goes on saying so."""
    stores.cut(FIRST, SECOND)
    full = OSError(errno.ENOSPC, "no space left")
    for _ in range(9):
        for job_id in (FIRST, SECOND):
            assert stores.retries.chunk_failed(stores.retries.begin_chunk(job_id, 0), full)
    waiting = [stores.jobs.get(job_id).reason for job_id in (FIRST, SECOND)]
    stores.do(FIRST)

    assert waiting == [f"{WAITING}OSError: {full}"] * 2
    assert [stores.jobs.get(job_id).reason for job_id in (FIRST, SECOND)] == [None, waiting[1]]


def test_a_failure_of_a_chunk_that_is_done_changes_nothing(stores):
    stores.cut(FIRST)
    work = stores.retries.begin_chunk(FIRST, 0)
    stores.commit(work)

    assert not stores.retries.chunk_failed(work, OSError("gone"))
    assert stores.states(FIRST) == [JobState.RUNNING]


@pytest.mark.parametrize("what", ["input", "chunk"])
def test_a_refusal_fails_the_job_at_once_with_its_own_words(stores, what):
    stores.cut(SECOND)
    error = UnknownDomainError("garden", ("food",))
    if what == "input":
        stores.submit(FIRST)
        stores.retries.begin_cutting(FIRST)
        again = stores.retries.cutting_failed(FIRST, error)
    else:
        stores.cut(FIRST)
        again = stores.retries.chunk_failed(stores.retries.begin_chunk(FIRST, 0), error)

    assert again is False
    assert (stores.jobs.get(FIRST).state, stores.jobs.get(FIRST).reason) == (JobState.FAILED, str(error))
    assert stores.states(SECOND) == [JobState.RUNNING]


def test_attempts_at_an_input_count_from_its_last_new_chunk(stores):
    stores.submit(FIRST, SECOND)
    for _ in range(5):
        stores.retries.begin_cutting(SECOND)
    for index in range(3):
        for _ in range(5):
            assert stores.retries.begin_cutting(FIRST) is not None
        assert stores.retries.cutting_failed(FIRST, OSError("gone"))
        assert stores.jobs.get(FIRST).reason == "OSError: gone"
        assert stores.add(FIRST, index)
        assert stores.jobs.get(FIRST).reason is None
    for _ in range(5):
        assert stores.retries.begin_cutting(FIRST) is not None
    stores.retries.cutting_failed(FIRST, OSError("again"))

    assert stores.retries.begin_cutting(FIRST) is None
    assert stores.jobs.get(FIRST).reason == "the input could not be read in 5 attempts, the last: OSError: again"
    assert stores.retries.begin_cutting(SECOND) is None  # its attempts were its own
    assert stores.jobs.get(SECOND).reason == "the input could not be read in 5 attempts, the last: its worker died"


def test_a_failure_of_cutting_is_told_only_while_the_input_is_cut(stores):
    stores.cut(FIRST)
    stores.submit(SECOND)

    assert stores.retries.cutting_failed(FIRST, OSError("late"))
    assert stores.retries.cutting_failed(SECOND, OSError("early"))
    assert (stores.jobs.get(FIRST).reason, stores.jobs.get(SECOND).reason) == (None, None)


def test_a_result_is_delivered_when_every_chunk_is_done_and_while_the_job_runs(stores):
    stores.cut(FIRST, SECOND)
    stores.submit(THIRD)
    before = stores.retries.begin_delivery(FIRST)
    for job_id in (FIRST, SECOND):
        stores.do(job_id)
    begun = stores.retries.begin_delivery(FIRST)
    stores.jobs.cancel(SECOND)

    assert (before, begun.job_id) == (None, FIRST)
    assert [stores.retries.begin_delivery(job_id) for job_id in (SECOND, THIRD, "f" * 32)] == [None] * 3


@pytest.mark.parametrize(("error", "told"), [(OSError("gone"), "OSError: gone"), (None, "its worker died")])
def test_a_result_that_cannot_be_delivered_fails_its_job_after_the_last_attempt(stores, error, told):
    stores.cut(FIRST, SECOND)
    for job_id in (FIRST, SECOND):
        stores.do(job_id)
    for _ in range(5):
        assert stores.retries.begin_delivery(FIRST) is not None
        if error is not None:
            assert stores.retries.delivery_failed(FIRST, error)

    assert stores.jobs.get(FIRST).reason == (told if error is not None else None)
    assert stores.retries.begin_delivery(FIRST) is None
    assert stores.jobs.get(FIRST).reason == f"the result could not be written in 5 attempts, the last: {told}"
    assert stores.states(FIRST, SECOND) == [JobState.FAILED, JobState.RUNNING]
    assert stores.jobs.get(SECOND).reason is None


def test_attempts_at_the_end_of_an_input_are_none_at_its_result(stores):
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.add(FIRST, 0)
    for _ in range(4):
        assert stores.retries.begin_cutting(FIRST) is not None
    stores.chunks.end_cutting(FIRST, num_chunks=1, rows_read=0, bad=[])
    stores.do(FIRST)
    begun = [stores.retries.begin_delivery(FIRST) is not None for _ in range(6)]

    assert begun == [True] * 5 + [False]


def test_an_outage_costs_a_delivery_no_attempt_and_the_job_says_nothing_of_it_in_the_end(stores):
    stores.jobs.record(FIRST, dataclasses.replace(NEW, result_uri="file:///out.csv"))
    stores.retries.begin_cutting(FIRST)
    stores.add(FIRST, 0)
    stores.chunks.end_cutting(FIRST, num_chunks=1, rows_read=0, bad=[])
    stores.do(FIRST)
    assert stores.chunks.finish(FIRST).state == JobState.RUNNING  # until its result is delivered
    for _ in range(9):
        assert stores.retries.begin_delivery(FIRST) is not None
        assert stores.retries.delivery_failed(FIRST, OSError(errno.ENOSPC, "full"))
    waiting = stores.jobs.get(FIRST).reason
    ended = stores.chunks.finish(FIRST, delivered=True)

    assert waiting == f"{WAITING}OSError: [Errno {errno.ENOSPC}] full"
    assert (ended.state, ended.reason) == (JobState.SUCCEEDED, None)


def test_outages_that_cannot_be_recorded_are_when_the_database_answers_each_once(stores, monkeypatch):
    stores.cut(FIRST, num_chunks=2)
    work = [stores.retries.begin_chunk(FIRST, index) for index in (0, 1)]
    away = StoreUnavailableError("away")

    @contextlib.contextmanager
    def fail(_):
        raise away
        yield

    with monkeypatch.context() as outage:
        outage.setattr("app.jobs.retries.writing", fail)
        assert [stores.retries.chunk_failed(chunk, away) for chunk in work] == [True, True]
    begun = [[stores.retries.begin_chunk(FIRST, index) is not None for _ in range(5)] for index in (0, 1)]

    assert begun == [[True] * 5] * 2
    assert stores.states(FIRST) == [JobState.RUNNING]


def test_a_refused_delivery_fails_its_job_at_once(stores):
    stores.cut(FIRST, SECOND)
    stores.do(FIRST)
    error = UnknownDomainError("garden", ("food",))

    assert stores.retries.delivery_failed(FIRST, error) is False
    assert (stores.jobs.get(FIRST).reason, stores.states(FIRST, SECOND)) == (
        str(error),
        [JobState.FAILED, JobState.RUNNING],
    )


def test_an_outage_that_is_told_late_changes_nothing_of_what_has_ended(stores):
    """Of a job that was cancelled meanwhile, or a chunk that another worker has done."""
    full = OSError(errno.ENOSPC, "full")
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.jobs.cancel(FIRST)
    stores.cut(SECOND, num_chunks=2)
    work = stores.retries.begin_chunk(SECOND, 0)
    stores.commit(work)
    stores.retries.cutting_failed(FIRST, full)
    stores.retries.chunk_failed(work, full)

    assert [stores.jobs.get(job_id).reason for job_id in (FIRST, SECOND)] == [None, None]


# -- Lost work


def test_reading_on_keeps_ones_own_input_from_being_lost_and_no_other(stores, clock):
    stores.submit(FIRST, SECOND)
    for job_id in (FIRST, SECOND):
        stores.retries.begin_cutting(job_id)
    clock.now = 2000
    stores.retries.renew_cutting(FIRST)

    assert stores.lost(older_than_ms=1500) == [Task(TaskKind.CUT, SECOND)]


def test_an_input_is_lost_when_it_was_queued_before_the_instant_and_told_once(stores, clock):
    stores.submit(FIRST)
    clock.now = 2000

    assert stores.lost(older_than_ms=1000) == []
    assert stores.lost(older_than_ms=1001) == [Task(TaskKind.CUT, FIRST)]
    assert stores.lost(older_than_ms=2000) == []  # queued again, at 2000
    assert stores.lost(older_than_ms=2001) == [Task(TaskKind.CUT, FIRST)]


def test_work_is_lost_when_it_was_begun_before_the_instant(stores, clock):
    stores.submit(FIRST)
    clock.now = 2000
    stores.retries.begin_cutting(FIRST)
    stores.add(FIRST, 0)
    stores.add(FIRST, 1)
    clock.now = 3000
    stores.retries.renew_cutting(FIRST)
    work = stores.retries.begin_chunk(FIRST, 0)
    clock.now = 4000
    stores.retries.renew_chunk(work)

    assert stores.lost(older_than_ms=2000) == []
    assert stores.lost(older_than_ms=3000) == [Task(TaskKind.CHUNK, FIRST, 1)]  # never begun, queued at 2000
    assert stores.lost(older_than_ms=3001) == [Task(TaskKind.CUT, FIRST)]
    assert stores.lost(older_than_ms=4001) == [
        Task(TaskKind.CUT, FIRST),  # queued again at 4000, begun at 3000
        Task(TaskKind.CHUNK, FIRST, 0),
        Task(TaskKind.CHUNK, FIRST, 1),
    ]


def test_a_job_whose_chunks_are_done_is_to_be_finished(stores, clock):
    stores.cut(FIRST, SECOND, num_chunks=2)
    for index in range(2):
        stores.do(FIRST, index)
    stores.do(SECOND, 0)
    stores.finished(THIRD)
    clock.now = 5000

    assert stores.lost(older_than_ms=5000) == [Task(TaskKind.FINISH, FIRST), Task(TaskKind.CHUNK, SECOND, 1)]


def test_while_the_queue_holds_tasks_only_what_was_overtaken_is_lost(stores, clock):
    stores.cut(FIRST, num_chunks=2)
    clock.now = 2000
    stores.cut(SECOND, num_chunks=2)
    clock.now = 9000
    nothing_begun = stores.lost(older_than_ms=9000, queue_is_empty=False)
    stores.retries.begin_chunk(SECOND, 0)

    assert nothing_begun == []
    assert stores.lost(older_than_ms=1000, queue_is_empty=False) == []
    assert stores.lost(older_than_ms=9000, queue_is_empty=False) == [
        Task(TaskKind.CHUNK, FIRST, 0),
        Task(TaskKind.CHUNK, FIRST, 1),
    ]


def test_nothing_of_an_ended_job_is_lost(stores, clock):
    stores.cut(FIRST, SECOND)
    stores.submit(THIRD)
    stores.jobs.cancel(FIRST)
    stores.fail(SECOND, "no")
    stores.jobs.cancel(THIRD)
    clock.now = 9000

    assert stores.lost(older_than_ms=9000) == []

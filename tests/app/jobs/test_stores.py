"""The stores of jobs, one transaction after the other, with a clock that stands still: instants, bounds, other jobs."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import select

from app.access.audit import Act, entries_after
from app.errors import IdempotencyConflictError, KeyLimitError, QueueFullError, ResultGoneError, UnknownJobError
from app.jobs.formats import BadRow
from app.jobs.job_store import JobStore
from app.jobs.records import ACTIVE, MAX_REASON, JobLimits, JobState, created_at_ms_of, find_job
from app.jobs.retries import InputChangedError
from app.runtime.logs import key_context
from app.storage.database import reading
from app.storage.tables import bad_rows
from tests.job_stores import FIRST, NEW, ONE, SECOND, THIRD

# -- Ids, states and reasons


@pytest.mark.parametrize("job_id", ["", "0" * 31, "0" * 33, "g" * 32, "0" * 12 + "g" * 20, "-" + "1" * 31, "not-an-id"])
def test_what_is_no_job_id_has_no_instant_and_names_no_job(parts, job_id):
    assert created_at_ms_of(job_id) is None
    with reading(parts.engine) as connection:
        assert find_job(connection, job_id) is None


def test_the_instant_of_a_job_id_is_its_first_twelve_digits():
    assert created_at_ms_of("0000000003e8" + "f" * 20) == 1000
    assert created_at_ms_of("0" * 32) == 0


def test_unfinished_jobs_are_those_that_wait_and_those_that_run():
    assert ACTIVE == (JobState.QUEUED, JobState.RUNNING)


def test_a_job_that_was_never_made_is_unknown(stores):
    with pytest.raises(UnknownJobError):
        stores.jobs.get(FIRST)


def test_a_reason_is_one_short_printable_line(stores):
    stores.submit(FIRST)
    stores.fail(FIRST, "a\nb\0c" + "x" * MAX_REASON)

    assert stores.jobs.get(FIRST).reason == "a b c" + "x" * (MAX_REASON - 5)


def test_a_new_job_waits_with_all_its_counts_at_zero(stores):
    job, is_new = stores.jobs.record(FIRST, NEW)
    counts = ("sequences", "kept", "replaced", "deleted", "unknown", "truncated", "rows_read", "rows_bad")

    assert (job.state, is_new, job.created_at_ms, job.num_chunks) == (JobState.QUEUED, True, 1000, None)
    assert [getattr(job, name) for name in (*counts, "chunks_done")] == [0] * 9
    assert (job.started_at_ms, job.finished_at_ms, job.pruned_at_ms, job.reason) == (None, None, None, None)
    assert {field.name: getattr(job, field.name) for field in dataclasses.fields(NEW) if hasattr(job, field.name)} == {
        name: value for name, value in vars(NEW).items() if hasattr(job, name)
    }


def test_the_first_beginning_is_when_a_job_started_and_its_end_when_it_finished(stores, clock):
    stores.submit(FIRST)
    clock.now = 2000
    stores.retries.begin_cutting(FIRST)
    clock.now = 3000
    stores.retries.begin_cutting(FIRST)
    clock.now = 4000
    stores.fail(FIRST, "no")
    stores.fail(FIRST, "another")
    job = stores.jobs.get(FIRST)

    assert (job.state, job.reason) == (JobState.FAILED, "no")
    assert (job.created_at_ms, job.started_at_ms, job.finished_at_ms) == (1000, 2000, 4000)


def test_failing_what_is_not_there_is_nothing(stores):
    stores.submit(FIRST)
    stores.fail(SECOND, "no")

    assert stores.states(FIRST) == [JobState.QUEUED]


def test_pages_go_from_the_newest_job_to_older_ones_and_keep_to_a_state(stores):
    stores.submit(FIRST, SECOND, THIRD)
    stores.jobs.cancel(SECOND)

    def page(**options):
        return [job.job_id for job in stores.jobs.page(**{"state": None, "before": None, "limit": 10} | options)]

    assert page() == [THIRD, SECOND, FIRST]
    assert page(limit=2) == [THIRD, SECOND]
    assert page(before=SECOND) == [FIRST]
    assert page(state=JobState.QUEUED) == [THIRD, FIRST]
    assert page(state=JobState.CANCELLED, before=SECOND) == []


def test_a_key_names_the_job_that_it_made_and_no_other(stores):
    keyed = dataclasses.replace(NEW, idempotency_key="k")
    other = dataclasses.replace(NEW, idempotency_key="other")
    made = [stores.jobs.record(FIRST, keyed), stores.jobs.record(SECOND, keyed), stores.jobs.record(THIRD, other)]

    assert [(job.job_id, is_new) for job, is_new in made] == [(FIRST, True), (FIRST, False), (THIRD, True)]
    assert stores.jobs.with_key("k", NEW.request_digest).job_id == FIRST
    assert stores.jobs.with_key("other", NEW.request_digest).job_id == THIRD
    assert stores.jobs.with_key("nobody's", NEW.request_digest) is None
    assert stores.jobs.with_key(None, NEW.request_digest) is None
    with pytest.raises(IdempotencyConflictError):
        stores.jobs.with_key("k", "another request")


def test_an_input_without_a_sequence_fails_its_job(stores):
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.chunks.end_cutting(FIRST, num_chunks=0, rows_read=4, bad=[])
    job = stores.jobs.get(FIRST)

    assert (job.state, job.reason, job.rows_read) == (JobState.FAILED, "the input holds no sequence", 4)


# -- One job's end leaves the others as they were


@pytest.mark.parametrize("end", ["cancel", "remove", "fail"])
def test_ending_one_job_leaves_every_other_as_it_was(stores, end):
    stores.cut(FIRST, SECOND, num_chunks=2)
    stores.submit(THIRD)
    for job_id in (FIRST, SECOND):
        assert stores.do(job_id, replaced=1)
    before = [stores.jobs.get(job_id) for job_id in (SECOND, THIRD)]
    {
        "cancel": stores.jobs.cancel,
        "remove": stores.jobs.remove,
        "fail": stores.fail,
    }[end](FIRST)

    assert [stores.jobs.get(job_id) for job_id in (SECOND, THIRD)] == before
    assert (stores.chunks_of(FIRST), stores.chunks_of(SECOND)) == ([], [0, 1])
    assert (stores.counted(FIRST), stores.counted(SECOND)) == ({}, {("f1", "k1"): 1})
    assert stores.do(SECOND, 1)
    assert stores.chunks.finish(SECOND).state == JobState.SUCCEEDED


def test_cancelling_and_removing_are_acts_and_cancelling_again_is_none(stores):
    stores.submit(FIRST, SECOND)
    stores.jobs.cancel(FIRST)
    stores.jobs.cancel(FIRST)
    stores.jobs.remove(FIRST)
    acts = [(entry.action, entry.subject) for entry in entries_after(stores.parts.engine)]

    assert acts == [(Act.SUBMIT, FIRST), (Act.SUBMIT, SECOND), (Act.CANCEL, FIRST), (Act.REMOVE, FIRST)]


def test_removing_a_finished_job_takes_back_its_own_counts_only(stores):
    stores.finished(FIRST, SECOND)
    both = stores.counted()
    stores.jobs.remove(FIRST)

    assert (both, stores.counted()) == ({("f1", "k1"): 2}, {("f1", "k1"): 1})
    assert stores.jobs.output_names(SECOND) == ["out0"]


def test_a_result_is_made_of_the_jobs_own_outputs(stores):
    stores.finished(FIRST, SECOND)

    assert [stores.jobs.output_names(job_id) for job_id in (FIRST, SECOND)] == [["out0"], ["out0"]]


def test_a_job_knows_what_it_carries_along_and_what_was_odd_about_its_input(stores):
    stores.jobs.record(FIRST, dataclasses.replace(NEW, carried='["price", "shop"]'))
    stores.submit(SECOND)
    stores.retries.begin_cutting(FIRST)
    stores.chunks.end_cutting(FIRST, num_chunks=0, rows_read=0, bad=[], warnings=["no times"])
    carrying, plain = (stores.jobs.get(job_id) for job_id in (FIRST, SECOND))

    assert (carrying.carried_columns, plain.carried_columns) == (("price", "shop"), ())
    assert (carrying.warnings, plain.warnings) == (("no times",), ())


def test_a_job_knows_whether_all_times_of_its_input_are_whole(stores):
    stores.submit(FIRST, SECOND, THIRD)
    for job_id, told in ((FIRST, {"whole_times": True}), (SECOND, {})):
        stores.retries.begin_cutting(job_id)
        stores.chunks.end_cutting(job_id, num_chunks=0, rows_read=0, bad=[], **told)

    assert [stores.jobs.get(job_id).whole_times for job_id in (FIRST, SECOND, THIRD)] == [True, False, None]


def test_pruning_is_of_jobs_that_ended_before_the_instant_in_the_order_of_their_ids(stores, clock):
    stores.finished(THIRD, FIRST)
    clock.now = 2000
    stores.finished(SECOND)

    assert stores.jobs.prune(finished_before_ms=1000) == []
    assert stores.jobs.prune(finished_before_ms=1001) == [FIRST, THIRD]
    assert stores.jobs.prune(finished_before_ms=1001) == []
    assert (stores.chunks_of(FIRST), stores.chunks_of(SECOND), stores.chunks_of(THIRD)) == ([], [0], [])
    assert stores.jobs.get(FIRST).pruned_at_ms == 2000
    assert stores.jobs.output_names(SECOND) == ["out0"]
    with pytest.raises(ResultGoneError):
        stores.jobs.output_names(FIRST)


def test_pruning_leaves_bad_rows_of_other_jobs_and_jobs_that_go_on(stores):
    stores.submit(FIRST, SECOND)
    for job_id in (FIRST, SECOND):
        stores.retries.begin_cutting(job_id)
        stores.add(job_id, 0, rows_read=9, bad=[BadRow(3, "no")])
    stores.jobs.cancel(FIRST)

    assert stores.jobs.prune(finished_before_ms=9999) == [FIRST]
    with pytest.raises(ResultGoneError):
        stores.jobs.bad_rows(FIRST)
    with reading(stores.parts.engine) as connection:
        assert list(connection.execute(select(bad_rows.c.job_id)).scalars()) == [SECOND]
    assert stores.jobs.bad_rows(SECOND) == [BadRow(3, "no")]


def test_files_are_kept_for_jobs_that_go_on_and_for_results(stores):
    stores.submit(FIRST)
    kept = [stores.jobs.keeps_files(FIRST), stores.jobs.keeps_files(SECOND)]
    stores.jobs.cancel(FIRST)
    kept.append(stores.jobs.keeps_files(FIRST))
    stores.cut(SECOND)
    stores.fail(SECOND, "no")
    kept.append(stores.jobs.keeps_files(SECOND))
    stores.finished(THIRD)
    kept.append(stores.jobs.keeps_files(THIRD))
    stores.jobs.prune(finished_before_ms=1001)
    kept.append(stores.jobs.keeps_files(THIRD))

    assert kept == [True, False, False, False, True, False]


def test_as_many_unfinished_jobs_as_stated_fit(parts, clock):
    store = JobStore(parts.engine, JobLimits(max_unfinished_jobs=1, max_unfinished_jobs_per_key=1, max_bad_row_share=0))
    store.record(FIRST, NEW)
    with pytest.raises(QueueFullError) as refused:
        store.record(SECOND, NEW)
    store.cancel(FIRST)

    assert (refused.value.retry_after_seconds, "1" in str(refused.value)) == (30, True)
    assert store.record(SECOND, NEW)[1]


def test_a_key_has_its_share_of_the_unfinished_jobs_and_the_others_theirs(parts, clock):
    limits = JobLimits(max_unfinished_jobs=9, max_unfinished_jobs_per_key=1, max_bad_row_share=0)
    store = JobStore(parts.engine, limits)
    with key_context("shop"):
        store.record(FIRST, NEW)
        with pytest.raises(KeyLimitError, match="the key shop has 1 unfinished jobs") as refused:
            store.record(SECOND, NEW)
    with key_context("other"):
        store.record(SECOND, NEW)
    store.cancel(FIRST)

    assert refused.value.retry_after_seconds == 30
    with key_context("shop"):
        assert store.record(THIRD, NEW)[1]


# -- Cutting and chunks


def test_counts_of_chunks_add_up_in_their_job(stores):
    stores.cut(FIRST, num_chunks=2)
    stores.do(FIRST, 0, sequences=2, kept=3, replaced=5, deleted=7, unknown=11, truncated=13)
    stores.do(FIRST, 1, sequences=20, kept=30, replaced=50, deleted=70, unknown=110, truncated=130)
    job = stores.chunks.finish(FIRST)

    assert (job.chunks_done, job.sequences, job.kept, job.replaced) == (2, 22, 33, 55)
    assert (job.deleted, job.unknown, job.truncated) == (77, 121, 143)


def test_a_chunk_counts_once_and_only_while_its_job_runs(stores):
    stores.cut(FIRST, num_chunks=2)
    again = stores.retries.begin_chunk(FIRST, 0)
    late = stores.retries.begin_chunk(FIRST, 1)

    assert stores.commit(again, increments=[ONE], sequences=1)
    assert not stores.commit(again, increments=[ONE], sequences=1)
    assert (stores.jobs.get(FIRST).sequences, stores.counted(FIRST)) == (1, {("f1", "k1"): 1})
    stores.jobs.cancel(FIRST)
    assert not stores.commit(late, sequences=1)
    assert stores.jobs.get(FIRST).sequences == 1


def test_a_chunk_is_known_by_its_input(stores):
    stores.submit(FIRST, SECOND)
    for job_id in (FIRST, SECOND):
        stores.retries.begin_cutting(job_id)
    assert stores.add(FIRST, 0, rows_read=5)
    assert stores.add(FIRST, 0, rows_read=5)
    assert stores.add(SECOND, 0, name="other")
    assert stores.add(FIRST, 1)
    with pytest.raises(InputChangedError):
        stores.add(FIRST, 0, name="other")

    assert (stores.jobs.get(FIRST).rows_read, stores.chunks_of(FIRST), stores.chunks_of(SECOND)) == (6, [0, 1], [0])


def test_a_job_that_does_not_run_is_not_cut(stores):
    stores.submit(FIRST, SECOND)

    assert not stores.add(FIRST, 0)  # nobody has begun with it
    stores.retries.begin_cutting(FIRST)
    stores.jobs.cancel(FIRST)
    assert not stores.add(FIRST, 0)
    stores.chunks.end_cutting(FIRST, num_chunks=0, rows_read=3, bad=[])
    job = stores.jobs.get(FIRST)
    assert (job.state, job.num_chunks, job.rows_read) == (JobState.CANCELLED, None, 0)
    assert stores.retries.begin_cutting(FIRST) is None
    assert stores.retries.begin_cutting("f" * 32) is None
    assert stores.states(SECOND) == [JobState.QUEUED]


def test_an_input_ends_once(stores):
    stores.cut(FIRST, num_chunks=2)
    stores.chunks.end_cutting(FIRST, num_chunks=5, rows_read=7, bad=[])

    assert (stores.jobs.get(FIRST).num_chunks, stores.jobs.get(FIRST).rows_read) == (2, 2)
    assert stores.retries.begin_cutting(FIRST) is None


@pytest.mark.parametrize(("num_bad", "state"), [(1, JobState.SUCCEEDED), (2, JobState.FAILED)])
@pytest.mark.parametrize("found", ["in cutting", "at its end", "in a chunk"])
def test_bad_rows_at_the_stated_share_pass_and_one_more_fails_the_job(stores, found, num_bad, state):
    """0.05 of 20 rows is one; a bad row counts with all that it stands for."""
    bad = [BadRow(3, "no", num_bad)]
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.add(FIRST, 0, rows_read=20, bad=bad if found == "in cutting" else [])
    stores.chunks.end_cutting(FIRST, num_chunks=1, rows_read=0, bad=bad if found == "at its end" else [])
    after_cutting = stores.jobs.get(FIRST).state
    if after_cutting == JobState.RUNNING:
        stores.do(FIRST, bad=bad if found == "in a chunk" else [])
        stores.chunks.finish(FIRST)
    job = stores.jobs.get(FIRST)

    assert (job.state, job.rows_read, job.rows_bad) == (state, 20, num_bad)
    assert (after_cutting == JobState.FAILED) == (state == JobState.FAILED and found != "in a chunk")
    assert stores.jobs.bad_rows(FIRST) == [BadRow(3, "no")]


def test_a_job_finishes_when_its_last_chunk_is_done_and_only_then(stores):
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.add(FIRST, 0)
    stores.do(FIRST, 0)
    before_the_end_is_known = stores.chunks.finish(FIRST)
    stores.add(FIRST, 1)
    stores.chunks.end_cutting(FIRST, num_chunks=2, rows_read=0, bad=[])
    before_the_last_chunk = stores.chunks.finish(FIRST)
    stores.do(FIRST, 1)
    ended = stores.chunks.finish(FIRST)

    assert (before_the_end_is_known, before_the_last_chunk) == (None, None)
    assert (ended.state, ended.finished_at_ms) == (JobState.SUCCEEDED, 1000)
    assert (stores.chunks.finish(FIRST), stores.chunks.finish(SECOND)) == (None, None)
    assert stores.counted() == {("f1", "k1"): 2}


def test_the_first_line_of_an_input_can_be_bad(stores):
    stores.submit(FIRST)
    stores.retries.begin_cutting(FIRST)
    stores.chunks.end_cutting(FIRST, num_chunks=0, rows_read=2, bad=[BadRow(1, "no item"), BadRow(2, "no time")])

    assert [row.line for row in stores.jobs.bad_rows(FIRST)] == [1, 2]
    assert [row.line for row in stores.jobs.bad_rows(FIRST, after=1)] == [2]
    assert [row.line for row in stores.jobs.bad_rows(FIRST, limit=1)] == [1]

"""What is tried again and how often: outages are waited for, failures are counted, refusals fail at once."""

import errno

import pytest

from app.errors import (
    FilesUnavailableError,
    ModelNotRunningError,
    ModelUnavailableError,
    SourceNotFoundError,
    StoreUnavailableError,
    UnknownModelError,
)
from app.jobs.records import JobState
from app.jobs.retries import Fault, fault_of
from app.jobs.tasks import Task, TaskKind
from models.errors import BundleMissingFileError, InputFormatError, UnknownDomainError

MORE_THAN_THE_ATTEMPTS = 12


def behind(error, cause):
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Fault.OUTAGE),
        (OSError(errno.EMFILE, "Too many open files"), Fault.OUTAGE),
        (StoreUnavailableError("the database does not answer"), Fault.OUTAGE),
        (FilesUnavailableError("full"), Fault.OUTAGE),
        (ModelUnavailableError("none"), Fault.OUTAGE),
        (ModelNotRunningError("it cannot be started"), Fault.OUTAGE),
        (UnknownModelError("v"), Fault.OUTAGE),
        (BundleMissingFileError("half copied"), Fault.OUTAGE),
        (behind(SourceNotFoundError("x"), OSError(errno.EMFILE, "Too many open files")), Fault.OUTAGE),
        (SourceNotFoundError("x"), Fault.REFUSAL),
        (behind(SourceNotFoundError("x"), PermissionError(errno.EACCES, "no")), Fault.REFUSAL),
        (InputFormatError("no CSV"), Fault.REFUSAL),
        (UnknownDomainError("garden", ("food",)), Fault.REFUSAL),
        (MemoryError(), Fault.FAILURE),
        (ZeroDivisionError(), Fault.FAILURE),
        (FileNotFoundError(errno.ENOENT, "gone"), Fault.FAILURE),
    ],
)
def test_an_error_is_an_outage_a_refusal_or_a_failure(error, fault):
    assert fault_of(error) is fault


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


def run_often(harness, task, error):
    for _ in range(MORE_THAN_THE_ATTEMPTS):
        with pytest.raises(type(error)):
            harness.runner.run(task)


@pytest.mark.parametrize(
    "error",
    [FilesUnavailableError("full"), OSError(errno.EMFILE, "Too many open files"), ModelNotRunningError("it is down")],
    ids=lambda error: type(error).__name__,
)
def test_an_outage_costs_a_chunk_no_attempt_and_its_job_says_what_it_waits_for(harness, mixed, monkeypatch, error):
    expected = harness.run(mixed)
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    monkeypatch.setattr(harness.models, "regenerator", fail_with(error))
    run_often(harness, harness.tasks[0], error)
    waiting = harness.parts.jobs.get(job.job_id)
    monkeypatch.undo()
    harness.drain()
    ended = harness.parts.jobs.get(job.job_id)

    assert (waiting.state, waiting.reason) == (JobState.RUNNING, f"waiting: {type(error).__name__}: {error}")
    assert (ended.state, ended.reason) == (JobState.SUCCEEDED, None)
    assert harness.result(ended) == harness.result(expected)


def test_an_outage_costs_an_input_no_attempt_and_its_job_says_what_it_waits_for(harness_with, mixed, monkeypatch):
    harness = harness_with(max_chunk_attempts=1)
    job = harness.submit(mixed)
    error = FilesUnavailableError("full")
    monkeypatch.setattr(harness.parts.storage, "write", fail_with(error))
    for _ in range(2):
        with pytest.raises(FilesUnavailableError):
            harness.runner.run(harness.tasks[0])
    waiting = harness.parts.jobs.get(job.job_id)
    monkeypatch.undo()
    harness.drain()

    assert (waiting.state, waiting.reason) == (JobState.RUNNING, "waiting: FilesUnavailableError: full")
    assert harness.parts.jobs.get(job.job_id).state == JobState.SUCCEEDED


def test_a_database_that_was_away_takes_the_attempts_back_once_it_answers(harness, mixed, monkeypatch):
    """While it is away nothing can be taken back: the runner remembers, and settles before it counts the next."""
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    retries, error = harness.parts.retries, StoreUnavailableError("away")
    settle = retries.settle
    for _ in range(MORE_THAN_THE_ATTEMPTS):
        with monkeypatch.context() as away:
            away.setattr(harness.parts.chunks, "commit_chunk", fail_with(error))
            away.setattr(retries, "settle", lambda: None)
            settle()
            with pytest.raises(StoreUnavailableError):
                harness.runner.run(harness.tasks[0])
    harness.drain()

    assert harness.parts.jobs.get(job.job_id).state == JobState.SUCCEEDED


def test_failures_among_outages_are_counted(harness, mixed, monkeypatch):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    for error in [ZeroDivisionError("odd"), FilesUnavailableError("full")] * 4:
        monkeypatch.setattr(harness.models, "regenerator", fail_with(error))
        with pytest.raises(type(error)):
            harness.runner.run(Task(TaskKind.CHUNK, job.job_id, 0))
    monkeypatch.setattr(harness.models, "regenerator", fail_with(ZeroDivisionError("odd")))
    harness.runner.run(Task(TaskKind.CHUNK, job.job_id, 0))
    ended = harness.parts.jobs.get(job.job_id)

    assert ended.state == JobState.FAILED
    assert ended.reason == "chunk 0 failed in 5 attempts, the last: ZeroDivisionError: odd"


def test_during_an_outage_a_job_keeps_no_more_chunks_in_the_queue_than_before(harness, inputs, sequences, write_ndjson):
    """Else every chunk of a large job would come back every 15 s, for nothing."""
    harness.submit(write_ndjson(inputs / "long.ndjson", sequences(100)))
    harness.runner.run(harness.tasks.pop(0))
    harness.models.regenerator = fail_with(FilesUnavailableError("full"))
    waiting = list(harness.tasks)
    for _ in range(5):
        for _ in range(len(harness.tasks)):
            task = harness.tasks.pop(0)
            with pytest.raises(FilesUnavailableError):
                harness.runner.run(task)
            harness.tasks.append(task)

    assert len(waiting) == 2
    assert len(set(harness.tasks)) <= 3


def test_after_an_outage_of_all_chunks_in_the_queue_the_others_have_their_turn(
    harness, inputs, sequences, write_ndjson
):
    """A chunk that failed keeps its place in the queue until it is done."""
    job = harness.submit(write_ndjson(inputs / "long.ndjson", sequences(60)))
    harness.runner.run(harness.tasks.pop(0))
    with pytest.MonkeyPatch.context() as outage:
        outage.setattr(harness.models, "regenerator", fail_with(FilesUnavailableError("full")))
        for number in range(3):
            with pytest.raises(FilesUnavailableError):
                harness.runner.run(harness.tasks[number])
    harness.drain()

    assert harness.parts.jobs.get(job.job_id).state == JobState.SUCCEEDED

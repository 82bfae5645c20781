"""Jobs whose work is repeated, interrupted, given up or lost: nothing lost, nothing doubled."""

import threading
import time

import pytest
from sqlalchemy import select

from app.errors import DestinationNotAllowedError
from app.jobs.destinations import DestinationRoots
from app.jobs.reading_process import read_in_process
from app.jobs.records import JobState
from app.jobs.retries import InputChangedError
from app.jobs.tasks import Task, TaskKind
from app.storage.database import now_ms, reading
from app.storage.tables import jobs

# -- Work that is repeated, interrupted or given up


@pytest.mark.parametrize("order", ["repeated", "reversed", "twice whole"])
def test_tasks_that_come_twice_or_in_another_order_change_nothing(harness, mixed, order):
    undisturbed = harness.run(mixed)
    expected = (harness.result(undisturbed), harness.mapping(undisturbed))
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    tasks = [Task(TaskKind.CHUNK, job.job_id, index) for index in range(4)]
    if order == "repeated":
        tasks = [task for task in tasks for _ in range(3)]
    elif order == "reversed":
        tasks.reverse()
    else:
        tasks = [Task(TaskKind.CUT, job.job_id), *tasks, Task(TaskKind.FINISH, job.job_id), *tasks]
    for task in tasks:
        harness.runner.run(task)
    harness.drain()
    job = harness.parts.jobs.get(job.job_id)

    assert job.state == JobState.SUCCEEDED
    assert (harness.result(job), harness.mapping(job)) == expected
    assert (job.chunks_done, job.sequences) == (4, 27)
    assert {line.key: line.count for line in harness.mapping()} == {line.key: 2 * line.count for line in expected[1]}


def test_workers_that_do_the_same_tasks_at_the_same_time_count_once(harness, mixed):
    expected = harness.run(mixed)
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    tasks, failures = [Task(TaskKind.CHUNK, job.job_id, index) for index in range(4)], []

    def work():
        try:
            for task in tasks:
                harness.runner.run(task)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job = harness.parts.jobs.get(job.job_id)

    assert failures == []
    assert job.state == JobState.SUCCEEDED
    assert harness.result(job) == harness.result(expected)
    assert harness.mapping(job) == harness.mapping(expected)


def test_cutting_that_was_interrupted_begins_again_and_knows_its_chunks(harness, mixed, monkeypatch):
    expected = harness.run(mixed)
    job = harness.submit(mixed)
    add_chunk, calls = harness.parts.chunks.add_chunk, []

    def dies_at_the_third(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add_chunk(*arguments, **options)

    monkeypatch.setattr(harness.parts.chunks, "add_chunk", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        harness.runner.run(harness.tasks[0])
    halfway = harness.parts.jobs.get(job.job_id)
    harness.drain()
    job = harness.parts.jobs.get(job.job_id)

    assert (halfway.num_chunks, halfway.rows_read) == (None, 16)
    assert (job.state, job.rows_read) == (JobState.SUCCEEDED, 27)
    assert harness.result(job) == harness.result(expected)


def test_a_job_that_is_cancelled_while_its_input_is_read_keeps_no_thread(harness, inputs, monkeypatch):
    """Interactions are sorted before the first comes, for minutes where they are many."""
    monkeypatch.setattr("app.jobs.reading_process.LOOK_SECONDS", 0.05)
    (inputs / "long.csv").write_text("user,item,domain,timestamp\n" + "u,x,food,1\n" * 1_500_000)
    job = harness.submit(inputs / "long.csv")
    unwanted = []
    is_kept = harness.parts.jobs.keeps_files

    def cancelled_at_the_first_look(job_id):
        unwanted.append(harness.parts.jobs.cancel(job_id))
        return is_kept(job_id)

    monkeypatch.setattr(harness.parts.jobs, "keeps_files", cancelled_at_the_first_look)
    harness.runner.run(harness.tasks.pop(0))
    job = harness.parts.jobs.get(job.job_id)

    assert unwanted
    assert (job.state, job.rows_read) == (JobState.CANCELLED, 0)
    assert harness.tasks == []


def test_cutting_may_be_interrupted_as_often_as_it_adds_chunks(harness, inputs, sequences, write_ndjson, monkeypatch):
    """As by a database that restarts, or a worker that is replaced every few minutes, during a large input."""
    job = harness.submit(write_ndjson(inputs / "long.ndjson", sequences(60)))
    cut, store = harness.tasks.pop(), harness.parts.chunks
    add_chunk, interruptions = store.add_chunk, 0

    def dies_after_a_new_one(job_id, chunk_index, **options):
        assert add_chunk(job_id, chunk_index, **options)
        if chunk_index == interruptions:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(store, "add_chunk", dies_after_a_new_one)
    while interruptions < 7:
        with pytest.raises(KeyboardInterrupt):
            harness.runner.run(cut)
        interruptions += 1
    monkeypatch.undo()
    harness.tasks.append(cut)
    harness.drain()
    job = harness.parts.jobs.get(job.job_id)

    assert (job.state, job.rows_read, job.reason) == (JobState.SUCCEEDED, 60, None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError("no space left"), "OSError: no space left"), (KeyboardInterrupt(), "its worker died")],
)
def test_cutting_that_makes_no_headway_is_given_up_with_the_last_reason(harness, mixed, monkeypatch, error, reason):
    job = harness.submit(mixed)
    cut = harness.tasks.pop()

    def fails(*_):
        raise error

    monkeypatch.setattr("app.jobs.runner.cut_rows", fails)
    for _ in range(5):
        with pytest.raises(type(error)):
            harness.runner.run(cut)
    harness.runner.run(cut)
    job = harness.parts.jobs.get(job.job_id)

    assert (job.state, job.reason) == (
        JobState.FAILED,
        f"the input could not be read in 5 attempts, the last: {reason}",
    )


def test_a_reason_of_an_attempt_that_was_made_good_is_forgotten(harness, inputs, sequences, write_ndjson, monkeypatch):
    job = harness.submit(write_ndjson(inputs / "short.ndjson", sequences(3)))
    monkeypatch.setattr(harness.parts.chunks, "end_cutting", _raise_os_error)
    with pytest.raises(OSError, match="gone"):
        harness.runner.run(harness.tasks[0])
    between = harness.parts.jobs.get(job.job_id)
    monkeypatch.undo()
    harness.drain()

    assert (between.state, between.reason) == (JobState.RUNNING, "OSError: gone")
    assert harness.parts.jobs.get(job.job_id).reason is None


def _raise_os_error(*_, **__):
    raise OSError("gone")


def test_an_input_that_changes_while_it_is_cut_fails_the_job(harness, mixed, write_ndjson, sequences, monkeypatch):
    job = harness.submit(mixed)
    monkeypatch.setattr(harness.parts.chunks, "end_cutting", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        harness.runner.run(harness.tasks[0])
    monkeypatch.undo()
    write_ndjson(mixed, sequences(27, seed=99))
    harness.runner.run(Task(TaskKind.CUT, job.job_id))
    job = harness.parts.jobs.get(job.job_id)

    assert job.state == JobState.FAILED
    assert job.reason == str(InputChangedError("the input, or how it is cut, changed while the job was reading it"))


def test_a_chunk_whose_stored_input_was_damaged_fails_the_job_instead_of_being_regenerated(harness, mixed):
    """Even where what lies there now can be read: the rows of another chunk, whole and in order."""
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    chunks = [harness.parts.retries.begin_chunk(job.job_id, index) for index in (1, 2)]
    first, second = (f"{job.job_id}/{work.input_name}" for work in chunks)
    harness.parts.storage.write(second, harness.parts.storage.read(first))
    harness.drain()
    job = harness.parts.jobs.get(job.job_id)

    assert (job.state, job.reason) == (JobState.FAILED, f"{chunks[1].input_name} is damaged")
    assert harness.mapping(job) == []


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_chunk_that_always_fails_ends_its_job_with_the_reason_and_other_jobs_go_on(harness, mixed):
    poisoned = harness.submit(mixed, version="poison")
    healthy = harness.submit(mixed)
    regenerator, failures = harness.models.regenerator, 0

    def break_over_poison(version, rule):
        if version == "poison":
            raise ZeroDivisionError("poison")
        return regenerator(version, rule)

    harness.models.regenerator = break_over_poison
    while harness.tasks:
        task = harness.tasks.pop(0)
        try:
            harness.runner.run(task)
        except ZeroDivisionError:  # the broker delivers again what raised
            failures += 1
            harness.tasks.append(task)
    poisoned, healthy = (harness.parts.jobs.get(job.job_id) for job in (poisoned, healthy))

    assert healthy.state == JobState.SUCCEEDED
    assert poisoned.state == JobState.FAILED
    assert "failed in 5 attempts, the last: ZeroDivisionError: poison" in poisoned.reason
    assert failures >= 4
    assert harness.mapping(poisoned) == []


def test_a_chunk_that_kills_its_worker_is_given_up_after_the_stated_attempts(harness, mixed, monkeypatch):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    monkeypatch.setattr(harness.models, "regenerator", _interrupt)
    begun = 0
    for _ in range(8):
        try:
            harness.runner.run(Task(TaskKind.CHUNK, job.job_id, 2))
        except KeyboardInterrupt:
            begun += 1
    job = harness.parts.jobs.get(job.job_id)

    assert begun == 5
    assert (job.state, job.reason) == (JobState.FAILED, "chunk 2 failed in 5 attempts, the last: its worker died")


# -- Lost tasks


def test_tasks_that_no_queue_holds_are_told_once(harness, mixed):
    """What unfinished jobs need is found in SQL: a job to cut, chunks to do, a job to finish."""
    lost = harness.parts.retries.lost_tasks
    job = harness.submit(mixed)
    future = now_ms() + 1000
    cut = lost(older_than_ms=future, queue_is_empty=True)
    harness.runner.run(cut[0])
    chunks = lost(older_than_ms=now_ms() + 1, queue_is_empty=True)
    again = lost(older_than_ms=now_ms() - 1000, queue_is_empty=True)

    assert cut == [Task(TaskKind.CUT, job.job_id)]
    assert chunks == [Task(TaskKind.CHUNK, job.job_id, index) for index in range(2)]  # the others' turn has not come
    assert again == []


def test_waiting_tasks_are_not_lost_while_the_queue_holds_any(harness, mixed):
    harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))

    assert harness.parts.retries.lost_tasks(older_than_ms=now_ms() + 1, queue_is_empty=False) == []


def test_a_task_that_later_ones_have_overtaken_is_lost(harness, mixed):
    first = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    harness.tasks.clear()
    time.sleep(0.01)
    harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    harness.runner.run(harness.tasks.pop(0))
    found = harness.parts.retries.lost_tasks(older_than_ms=now_ms() + 1, queue_is_empty=False)

    assert {task.job_id for task in found} == {first.job_id}


def test_a_chunk_that_takes_longer_than_lost_work_waits_is_not_lost_while_its_worker_says_so(harness, mixed):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    regenerator, seen = harness.models.regenerator, []

    def slow_regenerator(version, rule):
        time.sleep(0.01)
        begun_before = now_ms()
        harness.runner.renew()
        chunks = harness.parts.retries.lost_tasks(older_than_ms=begun_before, queue_is_empty=True)
        seen.extend(task.chunk_index for task in chunks)
        return regenerator(version, rule)

    harness.models.regenerator = slow_regenerator
    harness.runner.run(harness.tasks[0])
    harness.runner.renew()  # nothing is in hand any more

    assert seen == [1, 2]
    assert harness.parts.retries.lost_tasks(older_than_ms=now_ms() + 1, queue_is_empty=True) == [
        Task(TaskKind.CHUNK, job.job_id, index) for index in (1, 2)
    ]


def test_an_input_that_is_long_in_being_cut_is_not_lost_while_its_worker_says_so(harness, mixed, monkeypatch):
    """Reading on and on without a whole chunk: nobody else begins to cut it, too."""
    job = harness.submit(mixed)
    seen = []

    def slow_rows(*arguments, **options):
        time.sleep(0.01)
        begun_before = now_ms()
        harness.runner.renew()
        seen.extend(harness.parts.retries.lost_tasks(older_than_ms=begun_before, queue_is_empty=True))
        yield from read_in_process(*arguments, **options)

    monkeypatch.setattr("app.jobs.runner.read_in_process", slow_rows)
    harness.runner.run(harness.tasks.pop(0))

    assert seen == []
    assert harness.tasks == [Task(TaskKind.CHUNK, job.job_id, index) for index in range(len(harness.tasks))] != []


def test_what_is_no_longer_in_hand_is_renewed_no_more(harness, mixed, monkeypatch):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    in_an_hour = now_ms() + 3_600_000
    monkeypatch.setattr("app.jobs.retries.now_ms", lambda: in_an_hour)
    harness.runner.renew()
    with reading(harness.parts.engine) as connection:
        claimed_at_ms = connection.execute(select(jobs.c.claimed_at_ms)).scalar_one()

    assert job.job_id == harness.tasks[0].job_id
    assert claimed_at_ms < in_an_hour


# -- Results that are to be written somewhere


@pytest.fixture
def delivering(harness_with, tmp_path):
    """A harness whose jobs may write below ``out``, and that folder."""
    (tmp_path / "out").mkdir()
    return harness_with(output_roots=(f"file://{tmp_path / 'out'}",)), tmp_path / "out"


def test_a_result_that_could_not_be_written_is_written_by_the_next_attempt(delivering, mixed, monkeypatch):
    harness, out = delivering
    job = harness.submit(mixed, result_uri=f"file://{out}/result.ndjson")
    with monkeypatch.context() as broken:
        broken.setattr(DestinationRoots, "write", _raise_os_error)
        with pytest.raises(OSError, match="gone"):  # so that the queue delivers the task again
            harness.drain()
    waiting = harness.parts.jobs.get(job.job_id)
    harness.runner.run(Task(TaskKind.FINISH, job.job_id))

    assert (waiting.state, waiting.finished_at_ms) == (JobState.RUNNING, None)
    assert harness.tasks == []
    assert harness.parts.jobs.get(job.job_id).state == JobState.SUCCEEDED
    assert (out / "result.ndjson").read_bytes() == harness.result(job)


def test_a_result_that_may_not_be_written_fails_its_job(delivering, mixed, monkeypatch):
    harness, out = delivering
    job = harness.submit(mixed, result_uri=f"file://{out}/result.ndjson")

    def refuse(*_):
        raise DestinationNotAllowedError("not there")

    monkeypatch.setattr(DestinationRoots, "write", refuse)
    harness.drain()

    assert harness.parts.jobs.get(job.job_id).state == JobState.FAILED
    assert harness.parts.storage.names(f"{job.job_id}/output") == []


def test_an_input_of_nothing_but_bad_rows_ends_its_job_before_it_fills_the_memory(harness, inputs, monkeypatch):
    monkeypatch.setattr("app.jobs.cutting.MAX_BAD_ROWS", 20)
    (inputs / "bad.csv").write_text("user_id,item_id,domain\n" + "x\n" * 1000)
    ended = harness.run(inputs / "bad.csv")

    assert ended.state == JobState.FAILED
    assert "more than 20 bad rows" in ended.reason
    assert "line 2: 1 fields instead of 3" in ended.reason

"""Fair turns: a small job waits for a few chunks of a large one, whatever its size."""

import pytest

from app.jobs.records import JobState
from app.jobs.tasks import Task, TaskKind
from app.jobs.turns import CHUNKS_AHEAD
from tests.job_stores import FIRST, SECOND


@pytest.fixture
def large(inputs, sequences, write_ndjson):
    """80 sequences: ten chunks."""
    return write_ndjson(inputs / "ten-chunks.ndjson", sequences(80))


def test_a_chunk_that_is_begun_or_done_makes_room_and_one_that_failed_takes_it_again(stores):
    for job_id in (FIRST, SECOND):
        stores.submit(job_id)
        stores.retries.begin_cutting(job_id)
        for index in range(6):
            stores.chunks.add_chunk(job_id, index, input_name=f"in{index}", num_rows=1, rows_read=1, bad=[])

    def turns():
        return [task.chunk_index for task in stores.parts.turns.take(FIRST)]

    told = [turns(), turns()]
    begun = stores.retries.begin_chunk(FIRST, 0)
    told.append(turns())
    stores.retries.chunk_failed(begun, OSError("gone"))
    stores.retries.begin_chunk(FIRST, 1)
    told.append(turns())
    stores.commit(stores.retries.begin_chunk(FIRST, 0))
    told.append(turns())

    assert told == [[0, 1], [], [2], [], [3]]
    assert stores.parts.turns.take_all() == [Task(TaskKind.CHUNK, SECOND, 0), Task(TaskKind.CHUNK, SECOND, 1)]


def test_a_one_row_job_waits_for_a_few_chunks_of_a_large_one(harness, inputs, sequences, write_ndjson):
    large = harness.submit(write_ndjson(inputs / "large.ndjson", sequences(200)))  # 25 chunks
    harness.runner.run(harness.tasks.pop(0))
    small = harness.submit(write_ndjson(inputs / "small.ndjson", sequences(1)))
    while harness.parts.jobs.get(small.job_id).state != JobState.SUCCEEDED:
        harness.runner.run(harness.tasks.pop(0))
    done_before = harness.parts.jobs.get(large.job_id).chunks_done
    harness.drain()

    assert done_before <= 5
    assert harness.parts.jobs.get(large.job_id).chunks_done == 25


def test_while_a_chunk_is_regenerated_the_next_ones_wait_in_the_queue(harness, large, monkeypatch):
    """So that another worker finds work meanwhile."""
    regenerator, seen = harness.models.regenerator, []

    def look(*arguments):
        seen.append(len(harness.tasks))
        return regenerator(*arguments)

    monkeypatch.setattr(harness.models, "regenerator", look)
    harness.submit(large)
    harness.drain()

    assert seen == [CHUNKS_AHEAD] * 8 + [1, 0]


def test_three_large_jobs_advance_together(harness, large):
    ids = [harness.submit(large).job_id for _ in range(3)]
    for _ in range(3 + 15):  # the three cuts, then chunks
        harness.runner.run(harness.tasks.pop(0))
    done = [harness.parts.jobs.get(job_id).chunks_done for job_id in ids]

    assert max(done) - min(done) <= CHUNKS_AHEAD
    assert sum(done) == 15


def test_each_chunk_that_is_begun_queues_the_next(harness, large):
    """So that however many workers there are, each finds one."""
    harness.submit(large)
    harness.runner.run(harness.tasks.pop(0))
    in_queue, seen = harness.tasks, []
    regenerator = harness.models.regenerator

    def look(version, rule):
        seen.append(len(in_queue))
        return regenerator(version, rule)

    harness.models.regenerator = look
    harness.drain()

    assert seen[:8] == [CHUNKS_AHEAD] * 8


def test_a_turn_that_a_killed_worker_did_not_queue_is_found_by_the_search(harness, large, monkeypatch):
    job = harness.submit(large)
    parts = harness.parts
    with monkeypatch.context() as killed:
        killed.setattr(parts.turns, "take", lambda job_id: [])
        harness.runner.run(harness.tasks.pop(0))
    before = list(harness.tasks)
    parts.queue_lost_tasks()
    harness.drain()

    assert before == []
    assert parts.jobs.get(job.job_id).state == JobState.SUCCEEDED

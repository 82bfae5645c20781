"""Jobs on both databases, carried out step by step by the real runner: from the input to the result, and their end."""

import dataclasses
import io
import json
import threading
import time

import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from app.errors import (
    IdempotencyConflictError,
    JobStateError,
    QueueFullError,
    ResultGoneError,
    UnknownJobError,
    UnsupportedFormatError,
)
from app.jobs.formats import BadRow, SequenceRow
from app.jobs.job_bodies import JobCounts, JobRequest
from app.jobs.parts import job_parts
from app.jobs.pruning import prune
from app.jobs.records import JobState, created_at_ms_of, new_job_id
from app.jobs.results import CHUNK, encode_results, input_file, read_input_file, read_output_file
from app.mappings.mapping_store import Increment
from app.serving.regeneration_bodies import RegeneratedSequence
from app.storage.database import now_ms, reading
from app.storage.tables import bad_rows
from models.decoding.regenerator import Regenerator
from models.item_counts import ITEM_COUNTS, SEQUENCE_COUNTS, SequenceCounts
from tests.job_harness import Harness

# -- One job from end to end


def test_a_job_gives_what_the_model_gives_in_the_order_of_the_input(harness, mixed, bundle, sequences):
    job = harness.run(mixed)
    expected = []
    vocabulary = bundle.vocabulary
    for sequence in sequences(27):
        tokens = [vocabulary.token_id(item["domain"], item["item_id"]) for item in sequence["items"]]
        [alone] = Regenerator(bundle, "paper").regenerate([tokens], "kitchen")
        expected.append((sequence["user_id"], vocabulary.item_ids_of(alone.token_ids), alone.kept, alone.deleted))
    found = [json.loads(line) for line in harness.result(job).splitlines()]

    assert job.state == JobState.SUCCEEDED
    assert [(row["user_id"], row["items"], row["kept"], row["deleted"]) for row in found] == expected
    assert (job.num_chunks, job.chunks_done, job.rows_read, job.sequences) == (4, 4, 27, 27)
    assert sum(row["kept"] for row in found) == job.kept


def test_the_mapping_counts_every_decision_of_the_job_once(harness, mixed):
    job = harness.run(mixed)
    lines = harness.mapping()

    assert sum(line.count for line in lines if line.target_item is not None) == job.replaced
    assert sum(line.count for line in lines if line.target_item is None) == job.deleted
    assert harness.mapping(job) == lines


# -- Cancelling and removing


def test_cancelling_stops_within_a_chunk_and_leaves_no_count(harness, mixed):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))
    harness.runner.run(harness.tasks.pop(0))
    work = harness.parts.retries.begin_chunk(job.job_id, 1)
    before = harness.mapping(job)
    cancelled = harness.parts.jobs.cancel(job.job_id)
    added = harness.parts.chunks.commit_chunk(
        work, output_name="x", counts=SequenceCounts(), bad=[], increments=[Increment("food", "f01", "k01", 1, 1)]
    )
    calls = harness.models.calls
    harness.drain()

    assert before != []
    assert (cancelled.state, added) == (JobState.CANCELLED, False)
    assert harness.models.calls == calls
    assert harness.mapping(job) == []
    assert harness.mapping() == []
    assert harness.parts.jobs.get(job.job_id).state == JobState.CANCELLED


def test_cancelling_twice_changes_nothing_and_an_ended_job_cannot_be_cancelled(harness, mixed):
    ended = harness.run(mixed)
    job = harness.submit(mixed)
    first = harness.parts.jobs.cancel(job.job_id)
    second = harness.parts.jobs.cancel(job.job_id)

    assert first == second
    with pytest.raises(JobStateError, match="succeeded already"):
        harness.parts.jobs.cancel(ended.job_id)


def test_removing_a_job_takes_its_counts_back(harness, mixed, write_ndjson, inputs, sequences):
    first = harness.run(mixed)
    alone = harness.mapping()
    second = harness.run(write_ndjson(inputs / "second.ndjson", sequences(12, seed=5)))
    both = harness.mapping()
    harness.parts.jobs.remove(second.job_id)

    assert both != alone
    assert harness.mapping() == alone == harness.mapping(first)
    with pytest.raises(UnknownJobError):
        harness.parts.jobs.get(second.job_id)
    with pytest.raises(UnknownJobError):
        harness.parts.jobs.remove(second.job_id)


# -- Bad rows and unknown items


def test_bad_rows_are_counted_and_listed_and_the_others_are_done(harness_with, inputs, sequences):
    harness = harness_with(max_bad_row_share=0.1)
    good = [json.dumps(row) for row in sequences(30)]
    lines = [*good[:5], "{", *good[5:], '{"user_id": "x"}']
    path = inputs / "some-bad.ndjson"
    path.write_text("\n".join(lines) + "\n")
    parts = harness.parts
    job = harness.run(path)

    assert (job.state, job.rows_read, job.rows_bad, job.sequences) == (JobState.SUCCEEDED, 32, 2, 30)
    assert [row.line for row in parts.jobs.bad_rows(job.job_id)] == [6, 32]


def test_bad_rows_come_in_pages_and_are_the_same_whatever_the_pages_size(harness, inputs):
    path = inputs / "bad.ndjson"
    path.write_text("{\n" * 7)
    job = harness.run(path)
    pages, after = [], 0
    while page := harness.parts.jobs.bad_rows(job.job_id, after=after, limit=3):
        pages.append(page)
        after = page[-1].line

    assert [len(page) for page in pages] == [3, 3, 1]
    assert [row for page in pages for row in page] == harness.parts.jobs.bad_rows(job.job_id)
    assert [row.line for row in harness.parts.jobs.bad_rows(job.job_id)] == [1, 2, 3, 4, 5, 6, 7]


def test_more_bad_rows_than_the_stated_share_fail_the_job(harness, inputs, sequences):
    path = inputs / "bad.ndjson"
    path.write_text("\n".join([*(json.dumps(row) for row in sequences(10)), "{"]) + "\n")
    job = harness.run(path)

    assert job.state == JobState.FAILED
    assert job.reason.startswith("1 of 11 rows are bad; at most a share of 0.05")
    assert harness.parts.jobs.bad_rows(job.job_id) == [
        BadRow(11, "Invalid JSON: EOF while parsing an object at line 1 column 1")
    ]
    assert harness.mapping() == []


def test_unknown_items_are_skipped_and_counted_or_make_the_row_bad(harness, inputs, sequences, write_ndjson):
    rows = sequences(30)
    rows[7]["items"][0:0] = [{"item_id": "b99", "domain": "books"}, {"item_id": "x", "domain": "garden"}]
    path = write_ndjson(inputs / "unknown.ndjson", rows)
    skipped = harness.run(path)
    refused = harness.run(path, on_unknown="error")

    assert (skipped.state, skipped.unknown, skipped.sequences, skipped.rows_bad) == (JobState.SUCCEEDED, 2, 30, 0)
    assert (refused.state, refused.unknown, refused.sequences, refused.rows_bad) == (JobState.SUCCEEDED, 0, 29, 1)
    assert harness.parts.jobs.bad_rows(refused.job_id) == [
        BadRow(8, "position 0: unknown item 'b99' of domain 'books'")
    ]


def test_a_job_newer_than_its_bundle_keeps_every_item_of_the_target(harness, inputs, sequences, write_ndjson):
    """Where the items that the bundle does not know stood; the counts add up to what was sent."""
    rows = sequences(30)
    for row in rows:
        row["items"] = row["items"][:8]
        for position in range(0, len(row["items"]), 2):
            row["items"].insert(position, {"item_id": f"new-{position}", "domain": "kitchen"})
    path = write_ndjson(inputs / "newer.ndjson", rows)
    job = harness.run(path)
    results = [json.loads(line) for line in harness.result(job).splitlines()]
    kitchen = [[item["item_id"] for item in row["items"] if item["domain"] == "kitchen"] for row in rows]
    kept = [
        [item for item in result["items"] if item.startswith("new-") or item in real]
        for result, real in zip(results, kitchen, strict=True)
    ]

    assert job.unknown_kept == sum(item.startswith("new-") for real in kitchen for item in real) > 30
    assert (job.unknown, job.truncated) == (0, 0)
    assert job.kept + job.unknown_kept == sum(map(len, kitchen))
    assert job.kept + job.unknown_kept + job.replaced + job.deleted == sum(len(row["items"]) for row in rows)
    assert [set(row) for row in kept] == [set(real) for real in kitchen]
    assert [[i for i in row if i.startswith("new-")] for row in kept] == [
        [i for i in real if i.startswith("new-")] for real in kitchen
    ]


def test_a_result_from_before_unknown_items_stayed_is_read_as_having_none(harness, mixed):
    job = harness.run(mixed)
    [name, *_] = harness.parts.jobs.output_names(job.job_id)
    table = pq.read_table(io.BytesIO(harness.parts.storage.read(f"{job.job_id}/{name}")))
    earlier = io.BytesIO()
    pq.write_table(table.drop_columns(["unknown_kept", "interactions"]), earlier)
    read = read_output_file(earlier.getvalue())

    assert read.drop_columns("interactions") == table.drop_columns("interactions")
    with pytest.raises(UnsupportedFormatError, match="earlier version"):
        list(encode_results([read], "csv", "interactions"))


def test_a_job_in_which_every_user_is_bad_fails_in_every_format(harness, inputs, sequences, write_ndjson):
    """Rows read and bad rows are counted in one unit: 20 users are 20 lines of NDJSON and many of CSV."""
    users = sequences(20)
    for user in users:
        user["items"].append({"item_id": "nosuch", "domain": "books"})
    lines = [f"{user['user_id']},{item['item_id']},{item['domain']}" for user in users for item in user["items"]]
    (inputs / "all-bad.csv").write_text("\n".join(["user_id,item_id,domain", *lines]) + "\n")
    ended = [
        harness.run(path, on_unknown="error")
        for path in (write_ndjson(inputs / "all-bad.ndjson", users), inputs / "all-bad.csv")
    ]

    assert [(job.state, job.rows_bad, job.rows_read) for job in ended] == [
        (JobState.FAILED, 20, 20),
        (JobState.FAILED, len(lines), len(lines)),
    ]
    assert len(list(harness.parts.jobs.bad_rows(ended[1].job_id))) == 20


def test_a_user_with_too_many_interactions_counts_with_all_of_them(harness_with, inputs):
    harness = harness_with(max_items_per_sequence=10)
    (inputs / "long.csv").write_text("user_id,item_id,domain\n" + "A,b01,books\n" * 30 + "B,b01,books\n" * 10)
    ended = harness.run(inputs / "long.csv")

    assert (ended.state, ended.rows_bad, ended.rows_read) == (JobState.FAILED, 30, 40)


def test_a_chunk_that_an_older_version_recorded_is_still_read():
    rows = [SequenceRow(2, "A", ["b01", "b02"], ["books", "books"], 2), SequenceRow(4, "B", ["b01"], ["books"])]
    older = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(input_file(rows))).drop_columns(["num_rows"]), older)

    assert read_input_file(input_file(rows)) == rows
    assert read_input_file(older.getvalue()) == [dataclasses.replace(row, num_rows=1) for row in rows]


# -- Inputs that give no job


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_input_without_sequences_fails(harness, inputs, content):
    path = inputs / "empty.ndjson"
    path.write_text(content)
    job = harness.run(path)

    assert (job.state, job.reason) == (JobState.FAILED, "the input holds no sequence")


def test_an_input_that_vanishes_fails_the_job_with_the_reason(harness, mixed):
    job = harness.submit(mixed)
    mixed.unlink()
    harness.drain()

    assert harness.parts.jobs.get(job.job_id).reason == f"file://{mixed}: no such file"


def test_an_unknown_target_fails_at_once(harness, mixed):
    request = JobRequest(target_domain="garden", source_uri=f"file://{mixed}")
    job = harness.intake.accept_uri(request, model_version=harness.bundle.version, rule="paper", key=None).job
    harness.drain()
    job = harness.parts.jobs.get(job.job_id)

    assert job.state == JobState.FAILED
    assert "unknown domain 'garden'" in job.reason


# -- One job per key, jobs in pages


def test_an_idempotency_key_returns_its_job_when_the_input_is_gone(harness, mixed):
    """A client that lost the answer asks again, after the job is done and its input deleted."""
    first = harness.run(mixed, key="once")
    mixed.unlink()

    assert harness.submit(mixed, key="once").job_id == first.job_id


def test_an_idempotency_key_returns_the_first_job_and_refuses_another_request(harness, mixed):
    first = harness.submit(mixed, key="k")
    again = harness.submit(mixed, key="k")

    assert again.job_id == first.job_id
    assert len(harness.tasks) == 1
    with pytest.raises(IdempotencyConflictError):
        harness.submit(mixed, key="k", on_unknown="error")


def test_the_same_key_sent_at_the_same_time_makes_one_job(harness, mixed):
    found = []
    threads = [threading.Thread(target=lambda: found.append(harness.submit(mixed, key="k").job_id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 6
    assert len(set(found)) == 1


def test_too_many_unfinished_jobs_are_refused(job_settings, database, bundle, mixed):
    parts = job_parts(job_settings(database_url=database, max_unfinished_jobs=2))
    harness = Harness(parts, bundle)
    harness.submit(mixed)
    harness.submit(mixed)
    with pytest.raises(QueueFullError):
        harness.submit(mixed)
    harness.drain()
    harness.submit(mixed)
    parts.close()


def test_jobs_are_listed_newest_first_in_pages(harness, mixed):
    made = []
    for _ in range(5):
        made.append(harness.submit(mixed).job_id)
        time.sleep(0.002)
    jobs = harness.parts.jobs
    first = jobs.page(state=None, before=None, limit=2)
    rest = jobs.page(state=None, before=first[-1].job_id, limit=10)
    jobs.cancel(made[0])

    assert [job.job_id for job in [*first, *rest]] == made[::-1]
    assert [job.job_id for job in jobs.page(state=JobState.CANCELLED, before=None, limit=10)] == [made[0]]


def test_an_id_begins_with_its_instant():
    before = now_ms()
    job_id = new_job_id()

    assert before <= created_at_ms_of(job_id) <= now_ms()
    assert created_at_ms_of("not-an-id") is None


# -- Pruning


def test_pruning_removes_old_results_and_keeps_records_and_counts(harness, mixed):
    job = harness.run(mixed)
    counts = harness.mapping()
    kept = prune(harness.parts, retention_days=1)
    time.sleep(0.01)
    pruned = prune(harness.parts, retention_days=0)

    assert (kept, pruned) == ([], [job.job_id])
    assert harness.parts.storage.folders() == []
    assert harness.mapping() == counts
    assert harness.parts.jobs.get(job.job_id).sequences == 27
    with pytest.raises(ResultGoneError):
        harness.parts.jobs.output_names(job.job_id)


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_pruning_removes_bad_rows_however_their_job_ended_and_says_that_they_went(harness_with, mixed, inputs, state):
    harness = harness_with(max_bad_row_share=0.01 if state == JobState.FAILED else 0.5)
    path = inputs / "bad.ndjson"
    path.write_text("{\n" + mixed.read_text())
    job = harness.submit(path)
    if state == JobState.CANCELLED:
        harness.runner.run(harness.tasks.pop(0))
        harness.parts.jobs.cancel(job.job_id)
    harness.drain()
    before = harness.parts.jobs.bad_rows(job.job_id)
    time.sleep(0.01)
    pruned = prune(harness.parts, retention_days=0)
    with reading(harness.parts.engine) as connection:
        left = connection.execute(select(func.count()).select_from(bad_rows)).scalar_one()

    assert harness.parts.jobs.get(job.job_id).state == state
    assert [row.line for row in before] == [1]
    assert (pruned, left) == ([job.job_id], 0)
    assert harness.parts.jobs.get(job.job_id).rows_bad == 1
    with pytest.raises(ResultGoneError):
        harness.parts.jobs.bad_rows(job.job_id)
    assert prune(harness.parts, retention_days=0) == []


def test_pruning_removes_old_files_that_no_job_needs(harness, mixed):
    old = "0" * 32
    harness.parts.storage.write(f"{old}/input/upload", b"left behind")
    harness.parts.storage.write(f"{new_job_id()}/input/upload", b"just arriving")
    harness.parts.storage.write("not-a-job/x", b"somebody else's")
    prune(harness.parts, retention_days=1)

    assert len(harness.parts.storage.folders()) == 2
    assert old not in harness.parts.storage.folders()


def test_the_staged_input_goes_when_the_job_has_succeeded(harness, mixed):
    job = harness.run(mixed)
    name = harness.parts.jobs.output_names(job.job_id)[0]

    assert harness.parts.storage.read(f"{job.job_id}/{name}")
    with pytest.raises(FileNotFoundError):
        harness.parts.storage.read(f"{job.job_id}/input/00000000")


# -- Formats of the result


@pytest.mark.parametrize("result_format", ["parquet", "ndjson", "csv", "inter"])
def test_every_format_is_the_same_bytes_whatever_was_repeated(harness, mixed, result_format):
    first, second = harness.run(mixed), harness.run(mixed)

    assert harness.result(first, result_format) == harness.result(second, result_format)


def test_the_formats_hold_the_same_sequences(harness, mixed):
    job = harness.run(mixed)
    rows = [json.loads(line) for line in harness.result(job).splitlines()]
    table = pq.read_table(io.BytesIO(harness.result(job, "parquet")))
    header, *lines = harness.result(job, "inter").decode().splitlines()
    csv_header, *csv_lines = harness.result(job, "csv").decode().splitlines()
    long = [(row["user_id"], item, str(n)) for row in rows for n, item in enumerate(row["items"], start=1)]

    assert table.to_pylist() == rows
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    assert [tuple(line.split("\t")) for line in lines] == long
    assert csv_header == "user_id,item_id,timestamp"
    assert [tuple(line.split(",")) for line in csv_lines] == long


def test_what_counts_items_names_the_counts_of_one_list():
    """A new count is added in models/item_counts.py; bodies that spell them out for their documentation must follow."""
    assert set(JobCounts.model_fields) == {"rows_read", "rows_bad", *SEQUENCE_COUNTS}
    assert set(RegeneratedSequence.model_fields) == {"user_id", "items", "steps", "likely_items", *ITEM_COUNTS}
    assert tuple(name for name in CHUNK.names if name in ITEM_COUNTS) == ITEM_COUNTS

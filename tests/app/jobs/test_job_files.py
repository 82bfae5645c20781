"""Files of jobs: none is left of a job that is gone, none but what was written is served, none is anybody else's."""

import itertools
import os
import stat
from pathlib import Path

import pytest

from app.errors import FilesUnavailableError, ResultDamagedError
from app.jobs.chunk_files import ChunkFileDamagedError, read_chunk_file, read_result, write_chunk_file
from app.jobs.job_bodies import JobOptions
from app.jobs.pruning import prune
from app.jobs.reading_process import ReadingUnwantedError, read_in_process
from app.jobs.records import JobState, new_job_id
from app.jobs.tasks import Task, TaskKind
from app.storage.job_files import Storage
from models.errors import InputFormatError, UnknownDomainError


def files_of(parts, job):
    return parts.storage.names(job.job_id)


# -- Jobs that are gone


def remove(parts, job):
    parts.jobs.remove(job.job_id)
    parts.storage.delete_folder(job.job_id)


def cancel(parts, job):
    parts.jobs.cancel(job.job_id)
    parts.storage.delete_folder(job.job_id)


@pytest.mark.parametrize("end", [remove, cancel])
@pytest.mark.parametrize("step", [TaskKind.CUT, TaskKind.CHUNK])
def test_a_job_that_ends_while_a_worker_writes_leaves_no_file(harness, mixed, monkeypatch, end, step):
    """Removing and cancelling delete the files; what a worker has in hand is written after that."""
    job = harness.submit(mixed)
    if step is TaskKind.CHUNK:
        harness.runner.run(harness.tasks.pop(0))
    parts, write, written = harness.parts, harness.parts.storage.write, []

    def write_when_it_is_gone(name, content):
        if not written:
            end(parts, job)
        write(name, content)
        written.append(name)

    monkeypatch.setattr(parts.storage, "write", write_when_it_is_gone)
    harness.runner.run(harness.tasks.pop(0))

    assert len(written) == 1
    assert files_of(parts, job) == []
    assert parts.storage.folders() == []


@pytest.mark.parametrize("end", [remove, cancel])
@pytest.mark.parametrize("step", list(TaskKind))
def test_what_a_killed_worker_left_of_a_job_that_is_gone_goes_with_its_task(harness, mixed, end, step):
    job = harness.submit(mixed)
    if step is TaskKind.CHUNK:
        harness.runner.run(harness.tasks.pop(0))
    end(harness.parts, job)
    write_chunk_file(harness.parts.storage, job.job_id, "output", 0, b"rows of a user")
    harness.runner.run(Task(step, job.job_id, 0))

    assert files_of(harness.parts, job) == []


def test_a_job_whose_input_cannot_be_read_to_its_end_leaves_no_file(harness, inputs, mixed, monkeypatch):
    """Its first chunk is on disk by then."""

    def rows_and_a_tear(*arguments, **options):
        yield from itertools.islice(read_in_process(*arguments, **options), 8)
        raise InputFormatError("torn")

    monkeypatch.setattr("app.jobs.runner.read_in_process", rows_and_a_tear)
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))

    assert harness.tasks == [Task(TaskKind.CHUNK, job.job_id, 0)]
    assert harness.parts.jobs.get(job.job_id).reason == "torn"
    assert files_of(harness.parts, job) == []


def test_a_job_of_which_nobody_wants_the_rest_leaves_no_file(harness, mixed, monkeypatch):
    """The reading process is told so while it reads on."""
    job = harness.submit(mixed)

    def rows_until_it_is_cancelled(*arguments, **options):
        yield from itertools.islice(read_in_process(*arguments, **options), 8)
        cancel(harness.parts, job)
        write_chunk_file(harness.parts.storage, job.job_id, "input", 1, b"rows of a user")
        raise ReadingUnwantedError

    monkeypatch.setattr("app.jobs.runner.read_in_process", rows_until_it_is_cancelled)
    harness.runner.run(harness.tasks.pop(0))

    assert files_of(harness.parts, job) == []


def test_a_job_whose_chunk_fails_for_the_last_time_leaves_no_file(harness, mixed, monkeypatch):
    job = harness.submit(mixed)
    harness.runner.run(harness.tasks.pop(0))

    def refuse(*_):
        raise UnknownDomainError("garden", ("food",))

    monkeypatch.setattr(harness.models, "regenerator", refuse)
    harness.runner.run(harness.tasks.pop(0))

    assert harness.parts.jobs.get(job.job_id).state == JobState.FAILED
    assert files_of(harness.parts, job) == []


def test_a_job_whose_result_was_begun_too_often_leaves_no_file(harness_with, mixed, tmp_path):
    (tmp_path / "out").mkdir()
    harness = harness_with(output_roots=(f"file://{tmp_path / 'out'}",))
    job = harness.submit(mixed, result_uri=f"file://{tmp_path / 'out'}/result.ndjson")
    while harness.tasks[0].step is not TaskKind.FINISH:
        harness.runner.run(harness.tasks.pop(0))
    for _ in range(5):  # by workers that die each time
        assert harness.parts.retries.begin_delivery(job.job_id) is not None
    before = files_of(harness.parts, job)
    harness.runner.run(harness.tasks.pop(0))

    assert harness.parts.jobs.get(job.job_id).state == JobState.FAILED
    assert (before != [], files_of(harness.parts, job)) == (True, [])


@pytest.mark.parametrize("end", [remove, cancel])
def test_what_was_left_of_a_job_that_is_gone_is_found_by_pruning_however_young(harness, mixed, end):
    job = harness.submit(mixed)
    end(harness.parts, job)
    write_chunk_file(harness.parts.storage, job.job_id, "input", 0, b"rows of a user")
    prune(harness.parts, retention_days=30)

    assert harness.parts.storage.folders() == []


def test_a_job_that_fails_leaves_no_file(harness, inputs, mixed, bundle):
    path = inputs / "bad.ndjson"
    path.write_text(mixed.read_text() + "{\n" * 9)
    with path.open("rb") as file:
        options = JobOptions(target_domain="kitchen")
        version = bundle.version
        job = harness.intake.accept_upload(options, file, "bad.ndjson", model_version=version, rule="paper", key=None)
    before = files_of(harness.parts, job.job)
    harness.drain()

    assert before == ["input/upload"]
    assert harness.parts.jobs.get(job.job.job_id).state == JobState.FAILED
    assert files_of(harness.parts, job.job) == []


def test_the_input_goes_also_where_a_later_task_settles_the_job(harness, mixed, monkeypatch):
    """As when the worker of the last chunk was killed before it could."""
    job = harness.submit(mixed)
    with monkeypatch.context() as killed:
        killed.setattr(harness.parts.chunks, "finish", lambda *_, **__: None)
        harness.drain()
    before = {name.split("/")[0] for name in files_of(harness.parts, job)}
    harness.runner.run(Task(TaskKind.FINISH, job.job_id))

    assert before == {"input", "output"}
    assert {name.split("/")[0] for name in files_of(harness.parts, job)} == {"output"}
    assert harness.parts.jobs.get(job.job_id).state == JobState.SUCCEEDED


def test_pruning_leaves_an_upload_that_is_about_to_become_a_job(harness):
    arrived, arriving = new_job_id(), new_job_id()
    harness.parts.storage.write(f"{arrived}/input/upload", b"rows")
    harness.parts.storage.write(f"{arriving}/input/.upload.0123.partial", b"ro")
    prune(harness.parts, retention_days=0)

    assert harness.parts.storage.folders() == sorted([arrived, arriving])


# -- Results


def swap(paths):
    first, second = paths[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def truncate(paths):
    paths[1].write_bytes(paths[1].read_bytes()[:-1])


def change_one_byte(paths):
    content = bytearray(paths[-1].read_bytes())
    content[len(content) // 2] ^= 1
    paths[-1].write_bytes(content)


DAMAGES = [swap, truncate, change_one_byte, lambda paths: paths[2].unlink()]


@pytest.mark.parametrize("damage", DAMAGES, ids=["swapped", "truncated", "changed", "missing"])
def test_a_damaged_result_is_refused_before_its_first_byte(harness, mixed, tmp_path, damage):
    job = harness.run(mixed)
    names = harness.parts.jobs.output_names(job.job_id)
    damage([tmp_path / "data" / "jobs" / job.job_id / name for name in names])
    with pytest.raises(ResultDamagedError, match="missing or damaged"):
        read_result(harness.parts.storage, job.job_id, names)


@pytest.mark.parametrize("held_bytes", [0, 4, 1000])
def test_a_result_that_is_damaged_while_it_is_sent_breaks_off_and_gives_nothing_foreign(
    tmp_path, monkeypatch, held_bytes
):
    monkeypatch.setattr("app.jobs.chunk_files.HELD_BYTES", held_bytes)
    storage = Storage(str(tmp_path))
    names = [write_chunk_file(storage, "job", "output", index, f"{index}".encode() * 3) for index in range(4)]
    contents = read_result(storage, "job", names)
    storage.write(f"job/{names[3]}", b"foreign")
    got = list(itertools.islice(contents, 3))

    assert got == [b"000", b"111", b"222"]
    if held_bytes == 1000:
        assert list(contents) == [b"333"]
    else:
        with pytest.raises(ResultDamagedError):
            next(contents)


def test_a_damaged_input_of_a_chunk_is_not_read(tmp_path):
    storage = Storage(str(tmp_path))
    name = write_chunk_file(storage, "job", "input", 0, b"rows")
    whole = read_chunk_file(storage, "job", name)
    storage.write(f"job/{name}", b"other rows")

    assert whole == b"rows"
    with pytest.raises(ChunkFileDamagedError):
        read_chunk_file(storage, "job", name)


# -- The storage itself


def test_what_the_storage_writes_is_its_users_alone(tmp_path):
    former = os.umask(0o022)
    try:
        storage = Storage(str(tmp_path / "new" / "jobs"))
        storage.write("job/input/a", b"x")
        with (tmp_path / "source").open("wb+") as source:
            storage.write_stream("job/input/upload", source)
    finally:
        os.umask(former)
    made = sorted((tmp_path / "new" / "jobs").rglob("*"))

    assert [path.name for path in made] == ["job", "input", "a", "upload"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700, 0o700, 0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "new" / "jobs").stat().st_mode) == 0o700


def test_a_storage_whose_folder_vanishes_is_away_and_is_not_made_anew(tmp_path):
    """As when its volume is unmounted: files written into the mount's place would be hidden when it is back."""
    root = tmp_path / "volume" / "jobs"
    storage = Storage(str(root))
    storage.write("job/a", b"x")
    root.rename(tmp_path / "away")
    for call in (
        lambda: storage.read("job/a"),
        lambda: storage.write("job/a", b"y"),
        lambda: storage.open("job/a"),
        storage.check,
    ):
        with pytest.raises(FilesUnavailableError, match="not there"):
            call()
    nothing_was_made = not root.exists()
    (tmp_path / "away").rename(root)

    assert nothing_was_made
    assert storage.read("job/a") == b"x"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_that_is_away_and_leaves_no_half_file(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.check()
    os_open = os.open
    monkeypatch.setattr(
        "app.storage.job_files.os.open",
        lambda path, flags, *mode: os_open("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else os_open(path, flags),
    )
    with pytest.raises(FilesUnavailableError, match="No space left on device"):
        storage.write("job/a", b"x")
    with pytest.raises(FilesUnavailableError, match="No space left on device"):
        storage.check()

    assert storage.names("job") == []

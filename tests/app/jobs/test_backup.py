"""A backup restores to a working service: every table and every file, on both databases and from one to the other."""

import gzip
import json
import os
import subprocess

import pytest
from sqlalchemy import select, text

from app.errors import BackupError
from app.jobs.parts import job_parts
from app.serving.activations import ActivationStore, Serving
from app.storage import schema
from app.storage.backup import restore_backup, save_backup
from app.storage.database import open_engine, reading, writing
from app.storage.job_files import Storage
from app.storage.tables import metadata
from tests.command_line import COMMAND
from tests.job_harness import Harness


def contents(engine):
    """Every row of every table."""
    with reading(engine) as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).all())) for table in metadata.sorted_tables
        }


@pytest.fixture
def used(harness, mixed, inputs, sequences, write_ndjson):
    """A service with a finished job, one that failed, one that waits, and an activation."""
    done = harness.run(mixed)
    harness.run(write_ndjson(inputs / "empty.ndjson", []))
    waiting = harness.submit(write_ndjson(inputs / "later.ndjson", sequences(9)))
    ActivationStore(harness.parts.engine).record(Serving(1, "b", "a"))
    return harness, done, waiting


def test_a_restored_service_has_every_row_and_every_result_and_goes_on(
    used, tmp_path, empty_database, job_settings, bundle
):
    harness, done, waiting = used
    save_backup(harness.parts.engine, harness.parts.storage, tmp_path / "backup")
    engine, storage = open_engine(empty_database), Storage(str(tmp_path / "elsewhere"))
    restore_backup(engine, storage, tmp_path / "backup")
    saved = contents(harness.parts.engine)
    same = contents(engine) == saved
    engine.dispose()
    parts = job_parts(job_settings(database_url=empty_database, storage=str(tmp_path / "elsewhere")))
    restored = Harness(parts, bundle)
    parts.queue_lost_tasks(all_unbegun=True)
    restored.drain()
    expected = harness.result(done)
    found = restored.result(parts.jobs.get(done.job_id))
    states = [parts.jobs.get(job.job_id).state for job in (done, waiting)]
    new = restored.run(tmp_path / "inputs" / "mixed.ndjson")
    parts.close()

    assert same
    assert len(saved["mapping_pairs"]) > 0
    assert found == expected
    assert states == ["succeeded", "succeeded"]
    assert new.state == "succeeded"  # numbers of new rows go on after the restored ones


def test_a_backup_of_an_earlier_schema_is_restored_and_brought_up_to_date(empty_database, tmp_path):
    engine = open_engine(empty_database)
    schema.upgrade(engine, "0001")
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO dictionaries VALUES (7, 'kitchen', 'v', 'paper', '', 3)"))
    save_backup(engine, Storage(str(tmp_path / "jobs")), tmp_path / "backup")
    schema.downgrade(engine, schema.BASE)
    restore_backup(engine, Storage(str(tmp_path / "jobs")), tmp_path / "backup")
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT dictionary_id, revision FROM dictionaries")).all()
    current = schema.is_current(engine)
    engine.dispose()

    assert [tuple(row) for row in rows] == [(7, 3)]
    assert current


def test_a_database_that_is_not_empty_is_left_alone(used, tmp_path):
    harness, *_ = used
    save_backup(harness.parts.engine, harness.parts.storage, tmp_path / "backup")
    before = contents(harness.parts.engine)

    with pytest.raises(BackupError, match="not empty"):
        restore_backup(harness.parts.engine, harness.parts.storage, tmp_path / "backup")
    assert contents(harness.parts.engine) == before


def test_a_folder_that_is_there_is_not_written_over(harness, tmp_path):
    (tmp_path / "backup").mkdir()

    with pytest.raises(BackupError, match="is there already"):
        save_backup(harness.parts.engine, harness.parts.storage, tmp_path / "backup")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("damage", ["manifest", "table", "row", "file"])
def test_a_damaged_backup_says_what_is_wrong_and_leaves_no_rows(used, tmp_path, empty_database, damage):
    harness, *_ = used
    folder = tmp_path / "backup"
    save_backup(harness.parts.engine, harness.parts.storage, folder)
    table = folder / "tables" / "mapping_pairs.ndjson.gz"
    if damage == "manifest":
        (folder / "backup.json").write_text("{}")
    elif damage == "table":
        table.write_bytes(table.read_bytes()[:-20])
    elif damage == "row":
        lines = gzip.decompress(table.read_bytes()).splitlines(keepends=True)
        table.write_bytes(gzip.compress(b"".join(lines[1:])))
    else:
        next(path for path in (folder / "files").rglob("*") if path.is_file()).unlink()
    engine = open_engine(empty_database)
    with pytest.raises(BackupError, match=str(folder)):
        restore_backup(engine, Storage(str(tmp_path / "new")), folder)
    schema.upgrade(engine)
    left = contents(engine)
    engine.dispose()

    assert not any(left.values())


def test_the_commands_save_and_restore_what_the_environment_names(tmp_path):
    def taesar(*arguments, data):
        program = [*COMMAND, *arguments, "--json"]
        environment = os.environ | {"TAESAR_DATA": str(tmp_path / data)}
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)

    taesar("migrate", data="old")
    saved = taesar("backup", str(tmp_path / "backup"), data="old")
    again = taesar("backup", str(tmp_path / "backup"), data="old")
    restored = taesar("restore", str(tmp_path / "backup"), data="new")

    assert saved[0] == restored[0] == 0
    assert saved[1]["rows"] == restored[1]["rows"]
    assert (again[0], again[1]["ok"]) == (2, False)
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0

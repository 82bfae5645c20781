"""The database: who waits for a lock that somebody holds, who may read its file, and what it says when it is unfit."""

import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.errors import StoreRefusesError, StoreUnavailableError
from app.storage import schema
from app.storage.database import SQLITE_WAITING_WRITERS, open_engine, reading, writing


@pytest.fixture
def sqlite_file(tmp_path):
    path = tmp_path / "taesar.db"
    engine = open_engine(f"sqlite:///{path}")
    schema.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def lock(sqlite_file):
    """SQLite's write lock, held by somebody else until ``execute("ROLLBACK")``."""
    other = sqlite3.connect(sqlite_file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_while_the_write_lock_is_held_few_wait_for_it_and_everybody_reads(sqlite_file, lock):
    engine = open_engine(f"sqlite:///{sqlite_file}")
    num_writers, refused = 60, threading.Semaphore(0)

    def write():
        try:
            with writing(engine) as connection:
                connection.execute(text("SELECT 1"))
        except StoreUnavailableError:
            refused.release()
            return "refused"
        return "written"

    with ThreadPoolExecutor(num_writers) as pool:
        outcomes = [pool.submit(write) for _ in range(num_writers)]
        for _ in range(num_writers - SQLITE_WAITING_WRITERS):
            refused.acquire()
        with reading(engine) as connection:
            read = connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()
        lock.execute("ROLLBACK")
        found = [outcome.result() for outcome in outcomes]
    engine.dispose()

    assert read == 0
    assert found.count("written") == SQLITE_WAITING_WRITERS


def test_sqlites_files_are_their_users_alone(tmp_path):
    former = os.umask(0o022)
    try:
        engine = open_engine(f"sqlite:///{tmp_path / 'taesar.db'}")
        schema.upgrade(engine)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        engine.dispose()
    finally:
        os.umask(former)

    assert modes == {"taesar.db": 0o600, "taesar.db-wal": 0o600, "taesar.db-shm": 0o600}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_is_reached_by_each_of_its_schemes(postgres_database, scheme):
    engine = open_engine(f"{scheme}://{postgres_database.split('://', 1)[1]}")

    assert schema.is_current(engine)
    engine.dispose()


def test_a_database_without_its_schema_is_unavailable_and_says_what_to_run(empty_database):
    engine = open_engine(empty_database)
    with pytest.raises(StoreUnavailableError, match="run `taesar migrate`"), reading(engine) as connection:
        connection.execute(text("SELECT count(*) FROM jobs"))
    with pytest.raises(StoreUnavailableError, match="run `taesar migrate`"), writing(engine) as connection:
        connection.execute(text("DELETE FROM jobs"))
    engine.dispose()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("taesar@", "stranger:hunter2@"), "it refuses this user or password"),
        (("/postgres", "/elsewhere"), "it has no database of this name"),
    ],
)
def test_who_is_not_let_in_is_told_why_and_no_stranger_learns_a_name(postgres_server, change, says):
    engine = open_engine(postgres_server.url().replace(*change))
    with pytest.raises(StoreRefusesError) as refused, reading(engine):
        pass

    assert str(refused.value) == f"the database cannot be used: {says}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u@127.0.0.1:1/x", "nothing listens at its address"),
        ("postgresql://u@nowhere.invalid/x", "its host is not known"),
        ("sqlite:////dev/null/x.db", "unable to open database file"),
    ],
)
def test_a_database_that_is_not_reached_is_said_to_be_why(url, says):
    with (
        pytest.raises(StoreUnavailableError, match=f"^the database does not answer: {says}$"),
        reading(open_engine(url)),
    ):
        pass

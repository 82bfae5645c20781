"""The database: who waits for a lock that somebody holds, who may read its file, and what it says when it is unfit."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from app.errors import StoreUnavailableError
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

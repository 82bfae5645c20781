"""Real databases and queues for the tests of jobs: SQLite, and PostgreSQL and Redis that the suite starts itself."""

import contextlib
import itertools

import psycopg
import pytest

from app.jobs.parts import job_parts
from app.settings import Settings
from app.storage import schema
from app.storage.database import open_engine
from tests.job_harness import Harness
from tests.job_inputs import sequences, write_ndjson
from tests.job_stores import Clock, Stores
from tests.services import PostgresServer, RedisServer, ServiceMissingError, reachable_folder, require

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def redis_server():
    """A Redis of our own, running."""
    with reachable_folder() as folder:
        server = RedisServer(folder / "redis")
        try:
            server.start()
        except ServiceMissingError as error:
            require(error)
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL of our own, running, with a migrated database ``template`` to copy."""
    with reachable_folder() as folder:
        server = PostgresServer(folder / "postgres")
        try:
            server.start()
        except ServiceMissingError as error:
            require(error)
        engine = open_engine(server.create_database("migrated"))
        schema.upgrade(engine)
        engine.dispose()
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request, tmp_path):
    """URL of a database without any table, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return request.getfixturevalue("postgres_server").create_database(f"empty{next(NUMBERS)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """URL of a migrated database, once for each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'taesar.db'}"
        engine = open_engine(url)
        schema.upgrade(engine)
        engine.dispose()
        return url
    return copy_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def postgres_database(postgres_server):
    """URL of a migrated PostgreSQL database."""
    return copy_database(postgres_server)


def copy_database(server):
    """A fresh copy of the migrated database; its URL."""
    name = f"test{next(NUMBERS)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
    return server.url(name)


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def job_settings(tmp_path, bundle):
    """A function that makes settings for jobs: small chunks, files under the test's folder."""

    def make(**changes):
        inputs = tmp_path / "inputs"
        inputs.mkdir(exist_ok=True)
        defaults = {
            "bundle": bundle.directory,
            "device": "cpu",
            "data": tmp_path / "data",
            "input_roots": (f"file://{inputs}",),
            "chunk_sequences": 8,
        }
        return Settings(**defaults | changes)

    return make


@pytest.fixture
def parts(job_settings, database):
    """What jobs need, on each kind of database; no worker runs."""
    parts = job_parts(job_settings(database_url=database))
    yield parts
    parts.close()


@pytest.fixture
def clock(monkeypatch):
    """The instant that the stores take for the present one; it stands still."""
    clock = Clock()
    for module in ("chunks", "job_store", "records", "retries", "turns"):
        monkeypatch.setattr(f"app.jobs.{module}.now_ms", clock)
    return clock


@pytest.fixture
def stores(parts, clock):
    return Stores(parts)


@pytest.fixture
def inputs(job_settings, tmp_path):
    """The folder that jobs may read."""
    job_settings()
    return tmp_path / "inputs"


@pytest.fixture(name="sequences")
def sequences_fixture():
    return sequences


@pytest.fixture(name="write_ndjson")
def write_ndjson_fixture():
    return write_ndjson


@pytest.fixture
def harness(parts, bundle):
    return Harness(parts, bundle)


@pytest.fixture
def harness_with(job_settings, database, bundle):
    """A function settings -> harness."""
    with contextlib.ExitStack() as stack:

        def make(**settings):
            parts = job_parts(job_settings(database_url=database, **settings))
            stack.callback(parts.close)
            return Harness(parts, bundle)

        yield make


@pytest.fixture
def mixed(inputs, sequences, write_ndjson):
    """27 sequences: three chunks of 8 and one of 3."""
    return write_ndjson(inputs / "mixed.ndjson", sequences(27))

"""Jobs on each kind of database, whose tasks a test carries out by hand."""

import contextlib

import pytest

from app.jobs.parts import job_parts
from app.settings import Settings
from tests.job_harness import Harness
from tests.job_inputs import sequences, write_ndjson
from tests.job_stores import Clock, Stores


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

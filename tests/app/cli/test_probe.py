"""`taesar probe` as a container's health check runs it; tests/test_topology.py asks it about services that are well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.storage import schema
from app.storage.database import open_engine
from tests.services import free_port

TAESAR = Path(sys.executable).with_name("taesar")


@pytest.fixture
def probe(tmp_path):
    """A function (what, settings) -> the finished command."""

    def run(what, **settings):
        environment = {"PATH": os.environ["PATH"], "TAESAR_DATA": str(tmp_path)} | settings
        return subprocess.run([TAESAR, "probe", what], env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def database(tmp_path):
    """URL of a migrated database."""
    url = f"sqlite:///{tmp_path / 'taesar.db'}"
    engine = open_engine(url)
    schema.upgrade(engine)
    engine.dispose()
    return url


def test_a_service_that_does_not_listen_is_unwell(probe):
    port = free_port()
    done = probe("api", TAESAR_HOST="0.0.0.0", TAESAR_PORT=str(port))

    assert done.returncode == 1
    assert f"http://127.0.0.1:{port} does not answer" in done.stderr


def test_a_worker_without_a_queue_is_unwell(probe):
    done = probe("worker")

    assert done.returncode == 1
    assert "TAESAR_REDIS_URL is not set" in done.stderr


def test_a_worker_whose_redis_does_not_answer_is_unwell(probe, database):
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = probe("worker", TAESAR_DATABASE_URL=database, TAESAR_REDIS_URL=url)

    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr


def test_a_worker_whose_database_was_not_migrated_is_unwell(probe, tmp_path):
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = probe("worker", TAESAR_DATABASE_URL=f"sqlite:///{tmp_path / 'empty.db'}", TAESAR_REDIS_URL=url)

    assert done.returncode == 1
    assert f"not at revision {schema.newest_revision()}" in done.stderr


def test_a_probe_loads_no_torch(database):
    """Health checks run every few seconds beside the model's threads."""
    code = """
import sys
from app.cli.probe import api_unreadiness, worker_unreadiness
from app.settings import Settings
settings = Settings(port=1, redis_url="redis://127.0.0.1:1/0")
assert "does not answer" in api_unreadiness(settings)
assert "127.0.0.1:1" in worker_unreadiness(settings)
sys.exit("torch" in sys.modules)
"""
    environment = os.environ | {"TAESAR_DATABASE_URL": database}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr

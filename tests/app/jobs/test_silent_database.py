"""A PostgreSQL that neither answers nor refuses: what needs none is answered, and every process can be ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import text

from app.errors import StoreUnavailableError
from app.storage import database
from app.storage.database import open_engine, reading, writing
from tests.services import eventually, free_port

ROOT = Path(__file__).resolve().parents[3]
SHUTDOWN_SECONDS = 3
# More than any machine's event loop has threads of its own.
MANY_PROBES = 40


@contextlib.contextmanager
def process(command, tmp_path, **settings):
    """``taesar COMMAND`` with *settings*; its standard output is the file ``log``."""
    environment = {f"TAESAR_{name.upper()}": str(value) for name, value in settings.items()}
    code = f"import sys; sys.argv = ['taesar', '{command}']; from app.cli.taesar import main; main()"
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def events(tmp_path):
    lines = (tmp_path / "log").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


def test_requests_that_need_no_database_are_answered_however_often_readiness_is_asked(
    serving, postgres_server, postgres_database, payload
):
    client = serving(database_url=postgres_database, probe_timeout_seconds=0.1)
    assert client.get("/readyz").status_code == 200
    with postgres_server.frozen():
        unready = [client.get("/readyz") for _ in range(MANY_PROBES)]
        answered = client.post("/regenerate", json=payload("b01 k02"))
    eventually(lambda: client.get("/readyz").status_code == 200, seconds=60)

    assert {answer.status_code for answer in unready} == {503}
    assert "has not returned" in unready[-1].json()["checks"]["sql"]
    assert answered.status_code == 200


def test_a_service_ends_on_sigterm_while_its_threads_are_stuck_in_the_database(
    postgres_server, postgres_database, bundle, tmp_path
):
    """A request, the search for lost work and a readiness check are stuck."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = {
        "port": port,
        "bundle": bundle.directory,
        "device": "cpu",
        "data": tmp_path,
        "database_url": postgres_database,
    }
    settings |= {"shutdown_seconds": SHUTDOWN_SECONDS, "requeue_seconds": 0.2}

    def ready():
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/readyz", timeout=30).status_code == 200

    with process("serve", tmp_path, **settings) as service:
        eventually(ready, seconds=60)
        with postgres_server.frozen():
            assert httpx.get(f"{address}/readyz", timeout=30).status_code == 503
            with contextlib.suppress(httpx.TimeoutException):
                httpx.get(f"{address}/jobs", timeout=1)
            service.send_signal(signal.SIGTERM)
            service.wait(SHUTDOWN_SECONDS + 30)

    assert "Application shutdown complete." in events(tmp_path)


def test_a_worker_ends_on_sigterm_while_its_threads_are_stuck_in_the_database(
    postgres_server, redis_server, postgres_database, bundle, tmp_path
):
    settings = {"bundle": bundle.directory, "device": "cpu", "data": tmp_path, "database_url": postgres_database}
    settings |= {"redis_url": redis_server.url, "shutdown_seconds": SHUTDOWN_SECONDS, "requeue_seconds": 0.2}

    with process("worker", tmp_path, **settings) as worker:
        eventually(lambda: "worker_started" in events(tmp_path), seconds=60)
        with postgres_server.frozen():
            time.sleep(1)  # for the search for lost work to be under way
            worker.send_signal(signal.SIGTERM)
            worker.wait(SHUTDOWN_SECONDS + 30)

    assert "worker_stopped" in events(tmp_path)


def test_connecting_to_a_server_that_does_not_answer_is_given_up(postgres_server, postgres_database):
    engine = open_engine(postgres_database)
    with postgres_server.frozen(), pytest.raises(StoreUnavailableError), reading(engine):
        pass
    engine.dispose()


def test_what_the_url_says_of_patience_goes_first(postgres_database):
    """The rest is the service's; both reach the driver."""
    engine = open_engine(f"{postgres_database}?connect_timeout=7")
    with reading(engine) as connection:
        parameters = connection.connection.driver_connection.info.get_parameters()
    engine.dispose()

    assert parameters["connect_timeout"] == "7"
    assert parameters["tcp_user_timeout"] == str(database.POSTGRESQL_PATIENCE["tcp_user_timeout"])


def test_a_read_that_waits_for_a_lock_is_given_up_and_a_write_is_not(postgres_database, monkeypatch):
    monkeypatch.setattr(database, "READ_SECONDS", 1)
    engine = open_engine(postgres_database)
    with psycopg.connect(postgres_database) as other:
        other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailableError, match="QueryCanceled"), reading(engine) as connection:
            connection.execute(text("SELECT count(*) FROM jobs"))
    with writing(engine) as connection:
        slept = connection.execute(text("SELECT pg_sleep(1.5)")).all()
    engine.dispose()

    assert len(slept) == 1

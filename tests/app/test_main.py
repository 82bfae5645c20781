"""A real server: clients that leave, and SIGTERM."""

import contextlib
import gc
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert

from app.http.application import create_app
from app.jobs.records import TERMINAL, NewJob, new_job_id
from app.main import Server, serve
from app.mappings.mapping_store import DictionaryKey, Increment, merge_staged, stage
from app.settings import Settings
from app.storage.database import writing
from app.storage.tables import bad_rows
from tests.services import eventually, free_port

JOB = NewJob(
    target_domain="kitchen",
    model_version="none",
    rule="paper",
    on_unknown="skip",
    purpose="live",
    source_uri=None,
    source_name="in.ndjson",
    source_format="ndjson",
    request_digest="",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def live(bundle, tmp_path):
    """(application, server, port) of a server in a thread of this process."""
    settings = Settings(bundle=bundle.directory, device="cpu", data=tmp_path, port=0, shutdown_seconds=60)
    app = create_app(settings)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield app, server, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


class Gate:
    """Stands in for a regenerator's method: records calls, and holds the thread until opened."""

    def __init__(self, real):
        self.real = real
        self.calls = []
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, sequences, target, **asked):
        self.calls.append(len(sequences))
        self.entered.set()
        assert self.open.wait(20)
        return self.real(sequences, target, **asked)


@pytest.fixture
def gate(live, monkeypatch):
    regenerator = live[0].state.inference.registry.active().regenerator
    gate = Gate(regenerator.regenerate)
    monkeypatch.setattr(regenerator, "regenerate", gate)
    yield gate
    gate.open.set()


def queued(app):
    return app.state.metrics.registry.get_sample_value("taesar_queued_sequences")


def test_the_sequences_of_a_client_that_leaves_while_waiting_are_not_computed(live, gate, payload):
    app, _, port = live
    url = f"http://127.0.0.1:{port}/regenerate"
    answers = []
    stays = threading.Thread(target=lambda: answers.append(httpx.post(url, json=payload("b01 k02"), timeout=30)))
    stays.start()
    assert gate.entered.wait(10)

    leaver = http.client.HTTPConnection("127.0.0.1", port)
    leaver.request("POST", "/regenerate", json.dumps(payload(*["b01 k02"] * 7)), {"Content-Type": "application/json"})
    eventually(lambda: queued(app) == 8)
    leaver.close()
    left = {"method": "POST", "route": "/regenerate", "status": "499"}
    eventually(lambda: app.state.metrics.registry.get_sample_value("taesar_http_requests_total", left) == 1)
    gate.open.set()
    stays.join(20)
    after = httpx.post(url, json=payload("b01 k02"), timeout=30)

    assert [answers[0].status_code, after.status_code] == [200, 200]
    assert gate.calls == [1, 1]
    assert queued(app) == 0


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/jobs", "multipart/form-data; boundary=b"),
        ("/jobs", "application/json"),
        ("/regenerate", "application/json"),
    ],
)
def test_a_client_that_leaves_while_it_sends_its_body_is_a_499(live, path, content_type):
    app, _, port = live
    leaver = socket.create_connection(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: 100000\r\n\r\n"
    begin = '--b\r\nContent-Disposition: form-data; name="file"; filename="x.ndjson"\r\n\r\nabc'
    leaver.sendall((head + begin).encode())
    time.sleep(0.3)
    leaver.close()
    left = {"method": "POST", "route": path, "status": "499"}

    eventually(lambda: app.state.metrics.registry.get_sample_value("taesar_http_requests_total", left) == 1)


def test_stopping_answers_what_was_accepted(live, gate, payload):
    _, server, port = live
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(httpx.post(f"http://127.0.0.1:{port}/regenerate", json=payload("b01 k02")))
    )
    caller.start()
    assert gate.entered.wait(10)
    server.should_exit = True
    time.sleep(0.3)
    gate.open.set()
    caller.join(20)

    assert [answer.status_code for answer in answers] == [200]


def test_stopping_does_not_wait_for_those_who_follow_a_job(live):
    """The job does not end, and the server may wait for a minute: only the stream's own end lets it stop."""
    app, server, port = live
    job, _ = app.state.job_parts.jobs.record(new_job_id(), JOB)  # recorded, but not queued: nobody begins it
    followed = threading.Event()
    lines = []

    def follow():
        with httpx.stream("GET", f"http://127.0.0.1:{port}/jobs/{job.job_id}/events", timeout=50) as events:
            for line in events.iter_lines():
                lines.append(line)
                followed.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert followed.wait(10)
    server.should_exit = True
    follower.join(20)

    assert not follower.is_alive()
    assert lines[0] == "event: progress"
    assert "event: end" not in lines


def finished_job(app, url, lines=b"nonsense\n"):
    """The id of a job, once it has ended, whose input was *lines*."""
    files = {"file": ("in.ndjson", lines)}
    job_id = httpx.post(f"{url}/jobs", data={"target_domain": "kitchen"}, files=files, timeout=30).json()["job_id"]
    eventually(lambda: app.state.job_parts.jobs.get(job_id).state in TERMINAL)
    return job_id


def num_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def open_downloads(port, path, media_type, *, number=8):
    """So many connections whose clients ask for *path*, read the first bytes and no more."""
    opened = []
    for _ in range(number):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {media_type}\r\n\r\n".encode())
        opened.append(client)
    for client in opened:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    return opened


@pytest.fixture
def _no_search_for_cycles():
    """A connection must come back because it is given back, not because Python happens to look for cycles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_search_for_cycles")
@pytest.mark.parametrize("media_type", ["application/x-ndjson", "text/csv", "application/vnd.apache.parquet"])
def test_downloads_of_mappings_hold_no_connection_however_slowly_they_are_read(live, media_type):
    app, _, port = live
    engine = app.state.job_parts.engine
    key = DictionaryKey("kitchen", app.state.inference.registry.active().bundle.version, app.state.settings.rule)
    source = random.Random(1)  # more than the sockets' buffers hold, also when compressed
    lines = [Increment("food", source.randbytes(200).hex(), "k01", 1, n) for n in range(30_000)]
    with writing(engine) as connection:
        stage(connection, lines)
        merge_staged(connection, key)
    opened = open_downloads(port, "/mappings/kitchen", media_type, number=60)
    eventually(lambda: engine.pool.checkedout() == 0)
    others = [
        httpx.get(f"http://127.0.0.1:{port}{path}").status_code for path in ("/jobs", "/readyz", "/mappings/kitchen")
    ]
    descriptors = num_descriptors()
    for client in opened:
        client.close()

    assert others == [200, 200, 200]
    # all of them read one file, which goes with the last
    eventually(lambda: num_descriptors() <= descriptors - 2 * len(opened) - 1)


@pytest.mark.usefixtures("_no_search_for_cycles")
def test_downloads_of_bad_rows_hold_no_connection_however_slowly_they_are_read(live):
    app, _, port = live
    engine = app.state.job_parts.engine
    job_id = finished_job(app, f"http://127.0.0.1:{port}")
    with writing(engine) as connection:
        rows = [{"job_id": job_id, "line": n, "reason": "x" * 500} for n in range(2, 30_000)]
        connection.execute(insert(bad_rows), rows)
    opened = open_downloads(port, f"/jobs/{job_id}/errors", "*/*")
    eventually(lambda: engine.pool.checkedout() == 0)
    for client in opened:
        client.close()

    assert len(httpx.get(f"http://127.0.0.1:{port}/jobs/{job_id}/errors", timeout=60).text.splitlines()) == 29_999
    eventually(lambda: engine.pool.checkedout() == 0)


def start_process(tmp_path, port, **environment):
    code = "from app.main import serve; from app.settings import Settings; serve(Settings())"
    settings = {"TAESAR_PORT": str(port), "TAESAR_DEVICE": "cpu", "TAESAR_DATA": str(tmp_path)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_up(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_process_serves_until_sigterm_and_logs_json_only(bundle, tmp_path, payload):
    port = free_port()
    process = start_process(tmp_path, port, TAESAR_BUNDLE=str(bundle.directory))
    try:
        eventually(lambda: is_up(port), seconds=60)
        answer = httpx.post(f"http://127.0.0.1:{port}/regenerate", json=payload("b01 k02"))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    lines = [json.loads(line) for line in output.splitlines()]

    assert answer.status_code == 200
    assert errors == ""
    assert {"authentication_off", "model_activated", "request"} <= {line["event"] for line in lines}
    assert any(line["event"] == "request" and line["route"] == "/regenerate" for line in lines)
    # uvicorn gives the signal back after it has shut down in order, as a shell expects
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete." in {line["event"] for line in lines}


def test_who_connected_and_sent_before_sigterm_is_answered_even_where_the_process_had_not_come_to_it(bundle, tmp_path):
    """A busy process takes connections up later than the system does: none of them is reset."""
    port = free_port()
    process = start_process(tmp_path, port, TAESAR_BUNDLE=str(bundle.directory))
    try:
        eventually(lambda: is_up(port), seconds=60)
        process.send_signal(signal.SIGSTOP)
        clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(8)]
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        answers = [client.recv(100).split(b"\r\n")[0] for client in clients]
        process.communicate(timeout=30)
    finally:
        process.kill()
    for client in clients:
        client.close()

    assert answers == [b"HTTP/1.1 200 OK"] * 8


def test_no_search_for_cycles_while_serving_looks_through_what_the_start_left(tmp_path, monkeypatch):
    """A full one holds up every request for as long as it takes."""
    seen = []
    for name in ("configure_logging", "return_large_blocks"):  # what is of the whole process, and this one tests others
        monkeypatch.setattr(f"app.main.{name}", lambda *_: None)
    monkeypatch.setattr(Server, "run", lambda _: seen.append((gc.get_freeze_count(), len(gc.get_objects()))))
    try:
        serve(Settings(device="cpu", data=tmp_path, port=0))
    finally:
        gc.unfreeze()
    [(frozen, searched)] = seen

    assert frozen > 100_000
    assert searched < frozen / 10


def test_a_port_that_is_in_use_is_named_with_the_way_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, errors = start_process(tmp_path, port).communicate(timeout=60)

    assert f"127.0.0.1:{port} cannot be listened on; --port names another port" in errors.splitlines()[-1]


def test_a_second_server_on_one_data_folder_is_refused_until_the_first_is_gone(tmp_path):
    def is_alive(port):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
        return False

    first_port, third_port = free_port(), free_port()
    first = start_process(tmp_path, first_port)
    try:
        eventually(lambda: is_alive(first_port), seconds=60)
        second = start_process(tmp_path, free_port())
        _, errors = second.communicate(timeout=60)
    finally:
        first.kill()  # no chance to tidy up
        first.communicate()
    third = start_process(tmp_path, third_port)
    try:
        eventually(lambda: is_alive(third_port), seconds=60)
    finally:
        third.kill()
        third.communicate()

    assert second.returncode != 0
    assert f"another `taesar serve` works on the jobs of {tmp_path}" in errors.splitlines()[-1]
    assert "TAESAR_DATA names another folder" in errors.splitlines()[-1]


def test_a_process_whose_bundle_cannot_be_loaded_ends_with_the_reason(tmp_path):
    process = start_process(tmp_path, free_port(), TAESAR_BUNDLE=str(tmp_path / "nowhere"))
    output, errors = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "Traceback" not in output  # the log of a service that never began is empty
    assert "BundleMissingFileError" in errors.splitlines()[-1]
    assert "nowhere/manifest.json" in errors.splitlines()[-1]

"""A real server: clients that leave, and SIGTERM."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, *, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def live(bundle, tmp_path):
    """(application, server, port) of a server in a thread of this process."""
    app = create_app(Settings(bundle=bundle.directory, device="cpu", data=tmp_path))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
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

    def __call__(self, sequences, target):
        self.calls.append(len(sequences))
        self.entered.set()
        assert self.open.wait(20)
        return self.real(sequences, target)


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


def test_a_process_whose_bundle_cannot_be_loaded_ends_with_the_reason(tmp_path):
    process = start_process(tmp_path, free_port(), TAESAR_BUNDLE=str(tmp_path / "nowhere"))
    _, errors = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "BundleMissingFileError" in errors.splitlines()[-1]
    assert "nowhere/manifest.json" in errors.splitlines()[-1]

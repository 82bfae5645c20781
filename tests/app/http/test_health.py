"""Liveness, readiness, metrics, logs."""

import asyncio
import contextlib
import io
import json
import logging
import re
import threading

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from app.http.application import PARTS, ServicePart
from app.runtime.logs import accepted_request_id, configure_logging, logger
from app.runtime.readiness import BlockingCheck, Probe, run_probes


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(client, name, **labels):
    return samples(client).get((name, tuple(sorted(labels.items()))), 0.0)


def test_a_serving_process_is_alive_and_ready(client):
    assert client.get("/healthz").json()["status"] == "alive"
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert {"model", "model_thread"} <= set(ready["checks"])
    assert set(ready["checks"].values()) == {"ok"}


def test_without_a_model_the_process_is_alive_but_not_ready(serving):
    client = serving(bundle=None)

    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").json()["checks"]["model"] == "no model is loaded"


def test_when_the_models_thread_dies_waiters_are_told_and_the_process_is_neither_ready_nor_alive(
    serving, payload, monkeypatch
):
    client = serving()
    regenerator = client.app.state.inference.registry.active().regenerator

    def die(sequences, target, **asked):
        raise SystemExit("out of everything")

    monkeypatch.setattr(regenerator, "regenerate", die)
    during = client.post("/regenerate", json=payload("b01 k02"))
    after = client.post("/regenerate", json=payload("b01 k02"))

    assert (during.status_code, after.status_code) == (503, 503)
    assert during.json()["type"] == "urn:taesar:problem:model-thread-died"
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 503
    assert "out of everything" in client.get("/healthz").json()["detail"]


def test_a_failed_call_of_the_model_is_500_and_the_next_is_answered(serving, payload, monkeypatch):
    client = serving()
    regenerator = client.app.state.inference.registry.active().regenerator

    def fail(sequences, target, **asked):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(regenerator, "regenerate", fail)
        assert client.post("/regenerate", json=payload("b01 k02")).status_code == 500

    assert client.post("/regenerate", json=payload("b01 k02")).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_probes_run_together_and_a_slow_or_broken_one_fails_alone():
    async def good():
        return None

    async def bad():
        return "down"

    async def broken():
        raise OSError("refused")

    async def slow():
        await asyncio.sleep(60)

    probes = [Probe(check.__name__, check) for check in (good, bad, broken, slow)]

    assert asyncio.run(run_probes(probes, timeout_seconds=0.05)) == {
        "good": "ok",
        "bad": "down",
        "broken": "the check broke: OSError",
        "slow": "no answer in 0.05 s",
    }


def test_a_check_that_does_not_return_is_made_once_and_said_to_be_stuck_until_it_does():
    """It must not keep a thread per question, nor one of the event loop's, which requests need."""
    begun, free = [], threading.Event()

    def stuck():
        begun.append(threading.current_thread())
        free.wait()

    probe = Probe("sql", BlockingCheck(stuck, patience_seconds=0.05))
    other = Probe("other", BlockingCheck(lambda: None, patience_seconds=0.05))

    async def ask(times):
        return [await run_probes([probe, other], timeout_seconds=0.1) for _ in range(times)]

    answers = asyncio.run(ask(20))
    while_stuck = len(begun)
    free.set()
    begun[0].join(10)
    [after] = asyncio.run(ask(1))

    assert while_stuck == 1
    assert begun[0].daemon  # or the interpreter would wait for it
    assert answers[0] == {"sql": "no answer in 0.1 s", "other": "ok"}
    assert all(re.fullmatch(r"the check of \d+ s ago has not returned", one["sql"]) for one in answers[1:])
    assert after == {"sql": "ok", "other": "ok"}


def test_who_asks_while_a_check_is_made_shares_its_answer_even_if_another_leaves():
    begun, free = [], threading.Event()

    def slow():
        begun.append(True)
        free.wait(10)
        return "down"

    check = BlockingCheck(slow, patience_seconds=60)

    async def ask():
        leaver, stayer = asyncio.create_task(check()), asyncio.create_task(check())
        await asyncio.sleep(0.05)
        leaver.cancel()
        await asyncio.sleep(0.05)
        free.set()
        return await stayer

    assert asyncio.run(ask()) == "down"
    assert len(begun) == 1


def test_a_part_is_started_with_the_application_and_left_with_it(serving):
    seen = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        seen.append(("start", app.state.inference is not None))
        yield
        seen.append("stop")

    def part(settings, metrics):
        return ServicePart((), (), lifespan)

    serving(parts=(*PARTS, part))

    assert seen == [("start", True)]


def test_requests_are_counted_by_route_template_and_status(client, payload):
    client.post("/regenerate", json=payload("k01"))
    client.post("/regenerate", json=payload("k01", target="garden"))
    client.post("/models/a/activate")
    client.post("/models/b/activate")
    client.get("/some/scan")
    client.request("BREW", "/regenerate")

    def count(method, route, status):
        return value(client, "taesar_http_requests_total", method=method, route=route, status=str(status))

    assert count("POST", "/regenerate", 200) == 1
    assert count("POST", "/regenerate", 404) == 1
    assert count("POST", "/models/{version}/activate", 404) == 2
    assert count("GET", "unmatched", 404) == 1
    assert (
        sum(
            v
            for (name, labels), v in samples(client).items()
            if name == "taesar_http_requests_total" and ("method", "other") in labels
        )
        == 1
    )
    assert value(client, "taesar_http_request_seconds_count", method="POST", route="/regenerate") == 2


def test_decisions_batches_and_sequences_are_counted(client, payload):
    whole = client.post("/regenerate", json=payload("b01 f02 k03 b99", "k01", "")).json()
    answer = whole["sequences"]

    for action in ("kept", "replaced", "deleted", "unknown", "unknown_kept", "truncated"):
        assert value(client, "taesar_decisions_total", action=action) == sum(one[action] for one in answer)
    assert value(client, "taesar_sequences_regenerated_total", version=whole["model_version"]) == 3
    assert value(client, "taesar_batch_sequences_sum") == 2  # the empty sequence needs no model
    assert value(client, "taesar_queued_sequences") == 0
    assert value(client, "taesar_batch_seconds_count") >= 1


def test_applications_do_not_share_counts(serving, payload):
    first, second = serving(), serving()
    version = first.post("/regenerate", json=payload("k01")).json()["model_version"]

    assert value(first, "taesar_sequences_regenerated_total", version=version) == 1
    assert value(second, "taesar_sequences_regenerated_total", version=version) == 0


def test_a_request_id_comes_back_and_a_harmful_one_is_replaced(client):
    assert client.get("/healthz", headers={"X-Request-ID": "trace-1.2:3"}).headers["x-request-id"] == "trace-1.2:3"
    assert re.fullmatch(r"[0-9a-f]{32}", client.get("/healthz").headers["x-request-id"])
    for harmful in ("a b", 'x"y', "a" * 129, "line\nbreak", ""):
        assert re.fullmatch(r"[0-9a-f]{32}", accepted_request_id(harmful))


@pytest.fixture
def log_lines():
    """Everything logged, as parsed JSON; logging is put back as it was."""
    root = logging.getLogger()
    handlers, level, before = root.handlers, root.level, structlog.get_config()
    stream = io.StringIO()
    configure_logging("info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**before)


def test_every_request_is_one_json_line_with_its_id(log_lines, client, payload):
    client.post("/regenerate", json=payload("k01"), headers={"X-Request-ID": "mine"})
    [line] = [line for line in log_lines() if line["event"] == "request"]

    assert {key: line[key] for key in ("request_id", "method", "path", "route", "status", "level")} == {
        "request_id": "mine",
        "method": "POST",
        "path": "/regenerate",
        "route": "/regenerate",
        "status": 200,
        "level": "info",
    }
    assert line["seconds"] > 0


def test_lines_of_libraries_are_json_too_and_a_traceback_is_inside_its_line(log_lines):
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("library").exception("it failed")
        logger("ours").exception("we failed", attempt=2)
    theirs, ours = log_lines()

    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("it failed", "library", "error")
    assert (ours["event"], ours["attempt"]) == ("we failed", 2)
    assert "ValueError: inner" in theirs["exception"]
    assert "ValueError: inner" in ours["exception"]

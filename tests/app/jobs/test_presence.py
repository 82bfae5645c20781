"""Who wonders why jobs wait is told: no worker, none that can work, no Redis; and what metrics say of all jobs."""

import contextlib
import json

import pytest
from prometheus_client import CollectorRegistry

from app.errors import StoreUnavailableError
from app.jobs.job_gauges import refresh_job_gauges
from app.jobs.presence import KEY, present_workers, say_gone, say_present, why_jobs_wait
from app.jobs.queue import embedded_broker, redis_broker
from app.runtime.job_metrics import JobMetrics
from app.storage.database import open_engine, reading
from tests.services import free_port


@pytest.fixture
def broker(redis_server):
    broker = redis_broker(redis_server.url)
    broker.client.delete(KEY)
    yield broker
    broker.close()


def test_without_a_worker_jobs_wait_and_one_that_can_work_is_enough(broker):
    alone = why_jobs_wait(broker)
    say_present(broker, "full", "jobs' files cannot be read or written: No space left on device")
    full = why_jobs_wait(broker)
    say_present(broker, "well", None)
    well = why_jobs_wait(broker)
    say_gone(broker, "well")

    assert alone == "no worker has been seen for 30 s: jobs wait"
    assert full == "no worker can work: jobs' files cannot be read or written: No space left on device"
    assert well is None
    assert why_jobs_wait(broker) == full


def test_a_worker_that_has_gone_silent_is_gone_and_is_forgotten_in_an_hour(broker):
    for name, at_ms in (("silent", 10**12), ("new", 10**15)):
        broker.client.hset(KEY, name, json.dumps({"at_ms": at_ms, "trouble": None}))

    assert present_workers(broker) == {"new": None}
    assert broker.client.hkeys(KEY) == [b"new"]


def test_without_redis_that_is_the_reason_and_where_the_api_works_itself_there_is_none():
    missing = redis_broker(f"redis://127.0.0.1:{free_port()}/0")

    assert why_jobs_wait(missing) == "Redis does not answer: ConnectionError"
    assert present_workers(embedded_broker()) == {}


def test_readiness_remarks_that_no_worker_is_there_and_serves_all_the_same(serving, redis_server, broker):
    client = serving(redis_url=redis_server.url)
    ready = client.get("/readyz")

    assert ready.status_code == 200
    assert ready.json()["remarks"] == {"workers": "no worker has been seen for 30 s: jobs wait"}
    assert "workers" not in ready.json()["checks"]


def gauges(registry):
    names = ("taesar_oldest_waiting_job_seconds", "taesar_unfinished_chunks")
    states = {
        state: registry.get_sample_value("taesar_jobs", {"state": state})
        for state in ("queued", "running", "succeeded", "failed")
    }
    return states, *(registry.get_sample_value(name) for name in names)


def test_gauges_say_what_sql_does_of_all_jobs(harness, mixed):
    registry = CollectorRegistry()
    metrics = JobMetrics(registry)
    engine = harness.parts.engine
    refresh_job_gauges(engine, metrics)
    empty = gauges(registry)
    job = harness.submit(mixed)
    refresh_job_gauges(engine, metrics)
    waiting, oldest, uncut = gauges(registry)
    harness.runner.run(harness.tasks.pop(0))
    refresh_job_gauges(engine, metrics)
    _, _, cut = gauges(registry)
    harness.drain()
    refresh_job_gauges(engine, metrics)
    done = gauges(registry)

    assert empty == ({"queued": 0, "running": 0, "succeeded": 0, "failed": 0}, 0, 0)
    assert (waiting["queued"], uncut) == (1, 1)
    assert oldest >= 0
    assert cut == 4
    assert done == ({"queued": 0, "running": 0, "succeeded": 1, "failed": 0}, 0, 0)
    assert harness.parts.jobs.get(job.job_id).state == "succeeded"


def test_chunks_and_bad_rows_are_counted_where_they_are_worked_on(harness, inputs, sequences):
    """Some bad rows are found when the input is cut, those of unknown items when their chunk is computed."""
    path = inputs / "some-bad.ndjson"
    rows = sequences(30)
    rows[9]["items"] = [{"item_id": "never seen", "domain": "food"}]
    lines = [json.dumps(row) for row in [*rows, *rows]]
    path.write_text("\n".join([*lines, "{"]) + "\n", encoding="utf-8")
    harness.run(path, on_unknown="error")
    registry = harness.parts.metrics.registry

    assert registry.get_sample_value("taesar_chunks_total", {"outcome": "done"}) == 8
    assert registry.get_sample_value("taesar_chunk_seconds_count") == 8
    assert registry.get_sample_value("taesar_bad_rows_total") == 3


def test_a_database_that_does_not_answer_is_counted():
    told = []
    engine = open_engine(f"postgresql://x@127.0.0.1:{free_port()}/x", on_outage=lambda: told.append(1))
    with contextlib.suppress(StoreUnavailableError), reading(engine):
        pass
    engine.dispose()

    assert told == [1]

"""Real processes on real Redis and PostgreSQL, killed with -9: the outcome equals an undisturbed run's."""

import threading
import time

import httpx
import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen
from tests.chaos.rounds import disturbed, undisturbed
from tests.services import ServiceMissingError, reachable_folder, require

SECONDS = 240
SETTINGS = {"TAESAR_CHUNK_SEQUENCES": "16", "TAESAR_REQUEUE_SECONDS": "20", "TAESAR_MAX_CHUNK_ATTEMPTS": "8"}


@pytest.fixture(scope="module")
def place():
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=400, width=16)
        yield folder, bundle, path


@pytest.fixture(scope="module")
def cluster(place):
    """API, two workers, Redis and PostgreSQL."""
    folder, bundle, path = place
    cluster = Cluster(folder / "cluster", bundle, path.parent, num_workers=2, settings=SETTINGS)
    try:
        cluster.__enter__()
    except ServiceMissingError as error:
        require(error)
    yield cluster
    cluster.__exit__()


def test_killing_workers_redis_postgres_and_the_api_loses_and_doubles_nothing(cluster, place):
    _, _, path = place
    expected = undisturbed(cluster, path, "kitchen", seconds=SECONDS)
    found = disturbed(cluster, path, "kitchen", seed=2025, seconds=SECONDS)

    assert expected.state == "succeeded", cluster.log_tail()
    assert expected.counts["sequences"] == 400
    assert found.outcome == expected, (found.disturbances, cluster.log_tail())


def test_readers_meet_no_error_while_a_job_writes(cluster, place):
    """Sixteen clients read mappings and job states all the time; benchmarks/bench_readers.py does it with 200."""
    _, _, path = place
    answers, stop = [], threading.Event()

    def read(number):
        with httpx.Client(base_url=cluster.client.base_url, timeout=30) as client:
            while not stop.is_set():
                target = (
                    "/mappings/kitchen?limit=50",
                    f"/jobs/{job_id}",
                    "/jobs",
                    f"/mappings/kitchen?job_id={job_id}",
                )
                answers.append(client.get(target[number % 4]).status_code)

    job_id = cluster.submit(path, "kitchen")
    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    job = cluster.wait(job_id, SECONDS)
    stop.set()
    for thread in threads:
        thread.join()

    assert job["state"] == "succeeded"
    assert len(answers) > 16
    assert set(answers) == {200}


def test_a_cancelled_job_stops_within_a_chunk_on_every_worker(cluster, place):
    _, _, path = place
    job_id = cluster.submit(path, "kitchen")
    while cluster.job(job_id)["progress"]["chunks_done"] == 0:
        time.sleep(0.02)
    cancelled = cluster.client.delete(f"/jobs/{job_id}").json()
    time.sleep(2)

    assert cancelled["state"] == "cancelled"
    assert cluster.job(job_id) == cancelled
    assert cluster.client.get("/mappings/kitchen", params={"job_id": job_id}).json()["mappings"] == []


def test_killing_the_api_in_embedded_mode_changes_nothing(place):
    """SQLite and the queue inside the API, nothing installed."""
    folder, bundle, path = place
    with Cluster(folder / "embedded", bundle, path.parent, num_workers=0, settings=SETTINGS) as embedded:
        expected = undisturbed(embedded, path, "kitchen", seconds=SECONDS)
        found = disturbed(embedded, path, "kitchen", seed=7, seconds=SECONDS)

        assert expected.state == "succeeded", embedded.log_tail()
        assert found.outcome == expected, (found.disturbances, embedded.log_tail())

"""
Throughput of a bulk job next to the same regeneration in process, without queue, SQL and files.

Both read the same NDJSON, use the same chunks and one computing thread. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.jobs.chunk_regeneration import regenerate_rows
from app.jobs.cutting import cut_rows
from app.jobs.formats import SourceLimits, read_rows
from app.jobs.intake import JobIntake
from app.jobs.job_bodies import JobRequest
from app.jobs.job_models import BundleModels
from app.jobs.parts import job_parts
from app.jobs.records import TERMINAL, Job, JobState
from app.jobs.results import output_file
from app.jobs.worker import WorkerThreads
from app.runtime.logs import configure_logging
from app.settings import Settings
from app.storage import schema
from models.bundle import read_version
from models.data.reading.layouts import Layout
from models.data.reading.places import files_of
from models.decoding.regenerator import Regenerator
from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen
from tests.services import ServiceMissingError, reachable_folder

TARGET = "kitchen"


def main() -> None:
    """Measure, alternating, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=8000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=512)
    arguments = parser.parse_args()
    configure_logging("error")
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=arguments.sequences, width=arguments.width)
        settings = Settings(
            bundle=bundle,
            device="cpu",
            data=folder / "data",
            chunk_sequences=arguments.chunk,
            input_roots=(f"file://{path.parent}",),
        )
        models = BundleModels(settings)
        regenerator = models.regenerator(read_version(bundle), "paper")
        in_process(regenerator, path, settings)  # the first run compiles and warms caches
        seconds: dict[str, list[float]] = {"in_process": [], "embedded": []}
        for _ in range(arguments.rounds):
            seconds["in_process"].append(in_process(regenerator, path, settings))
            seconds["embedded"].append(embedded(models, path, settings))
        try:
            seconds["redis_postgres"] = with_servers(folder, bundle, path, arguments)
        except ServiceMissingError as error:
            print(f"without Redis and PostgreSQL: {error}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "jobs",
                "sequences": arguments.sequences,
                "sequences_per_second": {n: round(arguments.sequences / s, 1) for n, s in medians.items()},
                "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
                "relative_to_in_process": {n: round(medians["in_process"] / s, 3) for n, s in medians.items()},
            }
        )
    )


def in_process(regenerator: Regenerator, path: Path, settings: Settings) -> float:
    """Seconds for reading, regenerating and encoding, and nothing else."""
    job = _job(regenerator.bundle.version)
    started = time.perf_counter()
    limits = SourceLimits(1 << 40, 1 << 40, settings.max_items_per_sequence)
    for part in cut_rows(read_rows(files_of([path]), Layout(), limits), settings.chunk_sequences):
        output_file(regenerate_rows(regenerator, job, part.rows).rows)
    return time.perf_counter() - started


def embedded(models: BundleModels, path: Path, settings: Settings) -> float:
    """Seconds from submission to success of a job on SQLite and the in-process queue."""
    job_things = job_parts(settings)
    schema.upgrade(job_things.engine)
    threads = WorkerThreads(job_things, settings, models)
    threads.start()
    started = time.perf_counter()
    version = read_version(settings.bundle or path)
    request = JobRequest(target_domain=TARGET, source_uri=f"file://{path}")
    job = JobIntake(job_things).accept_uri(request, model_version=version, rule="paper", key=None).job
    while (job := job_things.jobs.get(job.job_id)).state not in TERMINAL:
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    assert job.state == JobState.SUCCEEDED, job.reason
    threads.stop(timeout_seconds=10)
    job_things.close()
    return seconds


def with_servers(folder: Path, bundle: Path, path: Path, arguments: argparse.Namespace) -> list[float]:
    """Seconds from submission to success of a job on one worker process, Redis and PostgreSQL, as a client sees it."""
    seconds = []
    chunks = {"TAESAR_CHUNK_SEQUENCES": str(arguments.chunk)}
    with Cluster(folder / "cluster", bundle, path.parent, num_workers=1, settings=chunks) as cluster:
        cluster.wait(cluster.submit(path, TARGET), 3600)
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            job = cluster.wait(cluster.submit(path, TARGET), 3600)
            assert job["state"] == "succeeded", job
            seconds.append(time.perf_counter() - started)
    return seconds


def _job(version: str) -> Job:
    numbers = (
        "rows_read",
        "rows_bad",
        "sequences",
        "kept",
        "replaced",
        "deleted",
        "unknown",
        "unknown_kept",
        "truncated",
    )
    return Job(
        job_id="0" * 32,
        state=JobState.RUNNING,
        target_domain=TARGET,
        model_version=version,
        rule="paper",
        on_unknown="skip",
        source_uri=None,
        source_name="",
        source_format="ndjson",
        created_at_ms=0,
        started_at_ms=None,
        finished_at_ms=None,
        pruned_at_ms=None,
        num_chunks=None,
        chunks_done=0,
        reason=None,
        **dict.fromkeys(numbers, 0),
    )


if __name__ == "__main__":
    main()

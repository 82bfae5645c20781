"""
Many clients read mappings and job states while a job writes: errors, and how long answers take.

Against the API as a process: on Redis and PostgreSQL with a worker, and embedded on SQLite. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.chaos.cluster import TERMINAL, Cluster
from tests.chaos.inputs import food_kitchen
from tests.services import ServiceMissingError, reachable_folder


def main() -> None:
    """Measure both modes and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=3000)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=arguments.sequences)
        for name, num_workers in (("embedded", 0), ("redis_postgres", 1)):
            try:
                settings = {"TAESAR_CHUNK_SEQUENCES": "100"}
                with Cluster(folder / name, bundle, path.parent, num_workers=num_workers, settings=settings) as cluster:
                    cluster.wait(cluster.submit(path, "kitchen"), 3600)  # something to read
                    found[name] = asyncio.run(read_while_writing(cluster, path, arguments.clients))
            except ServiceMissingError as error:
                print(f"without {name}: {error}")
    print(json.dumps({"benchmark": "readers", "clients": arguments.clients, **found}))


async def read_while_writing(cluster: Cluster, path: Path, num_clients: int) -> dict[str, Any]:
    """Statuses and seconds of every answer between a job's submission and its end."""
    job_id = await asyncio.to_thread(cluster.submit, path, "kitchen")
    urls = ("/mappings/kitchen?limit=100", f"/jobs/{job_id}", "/jobs?limit=20", f"/mappings/kitchen?job_id={job_id}")
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    ended = asyncio.Event()

    async def read(client: httpx.AsyncClient, number: int) -> None:
        while not ended.is_set():
            started = time.perf_counter()
            try:
                status = str((await client.get(urls[number % len(urls)])).status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            statuses[status] += 1
            seconds.append(time.perf_counter() - started)

    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=cluster.client.base_url, timeout=60, limits=limits) as client:
        readers = [asyncio.create_task(read(client, number)) for number in range(num_clients)]
        while (await asyncio.to_thread(cluster.job, job_id))["state"] not in TERMINAL:
            await asyncio.sleep(0.2)
        ended.set()
        await asyncio.gather(*readers)
    job = cluster.job(job_id)
    return {
        "job": job["state"],
        "statuses": dict(statuses),
        "median_milliseconds": round(statistics.median(seconds) * 1000, 1),
        "p99_milliseconds": round(statistics.quantiles(seconds, n=100)[-1] * 1000, 1),
    }


if __name__ == "__main__":
    main()

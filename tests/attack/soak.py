"""
``make soak``: half an hour of mixed load while everything is killed at random; the last line is JSON.

A cycle has three parts. In the first, requests are timed alone; in the second beside slow senders, slow readers, big
uploads, full bodies of too many parts and downloads of the dictionary; in the third a job runs while one or two of API,
the model's process, worker, Redis and PostgreSQL are killed, in random order. Every answer is compared with the first
answer to the same request, every job's result and dictionary with those of an undisturbed job. Memory and descriptors
of every process are watched in the first part of every cycle (``watched``). API and worker are killed only in the
second half of the time, so that in the first they live long enough for a leak to show. Times are of the first two
parts; those of the third, in which answers may fail, are told apart.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx

from tests.attack.attacks import MANY_PARTS
from tests.attack.served import children, connect, post_head, process_id
from tests.attack.watched import Watch
from tests.chaos.cluster import Cluster, Outcome
from tests.chaos.inputs import food_kitchen
from tests.chaos.rounds import undisturbed
from tests.services import reachable_folder

JOB_SECONDS = 900
MOST_TIMES = 3.0
NUM_REQUESTS = 40
RETRIED = frozenset({429, 503})
KEEPS_GOING = 0.01
# What is killed in a cycle, in random order: in the first half of the time, and in the second
KILLED_FIRST = (("model",), ("redis",), ("postgres",), ("model", "redis"), ("redis", "postgres"), ("postgres", "model"))
KILLED_THEN = (("api",), ("worker",), ("api", "worker"), ("model", "api"), ("worker", "postgres"), ("redis", "api"))
# After a restart: compiled kernels and caches are filled before anything is timed
WARM_SECONDS = 3.0


@dataclass
class Findings:
    """What the soak saw."""

    wrong: list[str] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    disturbed: list[float] = field(default_factory=list)
    num_jobs: int = 0
    num_answers: int = 0
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Requests:
    """Small requests and the one right answer to each."""

    def __init__(self, path: Path, url: str) -> None:
        self._url = f"{url}/regenerate"
        with path.open(encoding="utf-8") as lines:
            sequences = [json.loads(line) for line in itertools.islice(lines, NUM_REQUESTS)]
        self._bodies = [{"target_domain": "kitchen", "sequences": [sequence]} for sequence in sequences]
        self._right: list[object] = []

    def learn(self) -> None:
        """Take the answers of now for the right ones."""
        self._right = [httpx.post(self._url, json=body, timeout=60).raise_for_status().json() for body in self._bodies]

    def ask(self, seconds: float, findings: Findings, times: list[float], *, may_fail: bool) -> None:
        """Ask for so long, one after the other; *times* are added to."""
        over = time.monotonic() + seconds
        client = httpx.Client(timeout=60)
        for number in itertools.cycle(range(NUM_REQUESTS)):
            if time.monotonic() > over:
                break
            began = time.monotonic()
            try:
                answer = client.post(self._url, json=self._bodies[number])
            except httpx.TransportError as error:
                if not may_fail:
                    findings.wrong.append(f"a request: {type(error).__name__}")
                time.sleep(0.1)
                continue
            if answer.status_code == 200:
                times.append(time.monotonic() - began)
                findings.num_answers += 1
                if answer.json() != self._right[number]:
                    findings.wrong.append(f"request {number} got another answer")
            elif not (may_fail and answer.status_code in RETRIED):
                findings.wrong.append(f"a request was answered {answer.status_code}: {answer.text[:100]}")
            time.sleep(KEEPS_GOING)
        client.close()


class Hostility:
    """Clients that behave badly until the block ends, in a process of their own, which costs the timed one nothing."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._over = context.Event()
        self._process = context.Process(target=behave_badly, args=(cluster.port, path, self._over))

    def __enter__(self) -> Hostility:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._process.join()


def behave_badly(port: int, path: Path, over: Event) -> None:
    """Send slowly, read slowly, upload, send too many parts and download, each again and again, until *over*."""
    held: list[socket.socket] = []
    url = f"http://127.0.0.1:{port}"
    # Read to its end, then refused for its name: a job would take a core, which is not what is measured
    upload = path.read_bytes() * 4
    bodies = itertools.cycle(MANY_PARTS.values())

    def send_slowly() -> None:
        if len(held) < 300:
            held.extend(connect(port, post_head("/regenerate", 10_000) + b"{") for _ in range(20))

    def read_slowly() -> None:
        head = b"GET /mappings/kitchen HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
        if len(held) < 300:
            held.extend(connect(port, head, receive_buffer=2048) for _ in range(5))

    def send_upload() -> None:
        files = {"file": ("a.unknown", upload)}
        httpx.post(f"{url}/jobs", data={"target_domain": "kitchen"}, files=files, timeout=60)

    def send_many_parts() -> None:
        body = next(bodies)
        with contextlib.closing(connect(port, post_head("/regenerate", len(body)) + body)) as client:
            client.recv(1000)

    def download() -> None:
        httpx.get(f"{url}/mappings/kitchen", headers={"Accept": "text/csv"}, timeout=60)

    def repeat(act: Callable[[], None]) -> None:
        while not over.is_set():
            with contextlib.suppress(httpx.HTTPError, OSError):
                act()
            over.wait(1.0)

    acting = [
        threading.Thread(target=repeat, args=(act,))
        for act in (send_slowly, read_slowly, send_upload, send_many_parts, download)
    ]
    for thread in acting:
        thread.start()
    for thread in acting:
        thread.join()
    for client in held:
        client.close()


def kill_model(cluster: Cluster) -> None:
    """Kill -9 of a process of the API's: its model's, or what starts those."""
    for child in children(process_id(cluster)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def disturb(
    cluster: Cluster, path: Path, kills: Sequence[str], source: random.Random, right: Outcome, findings: Findings
) -> None:
    """A job while something that it needs is killed; it must end as the undisturbed one did."""
    acts: dict[str, Callable[[], None]] = {
        "api": cluster.restart_api,
        "model": lambda: kill_model(cluster),
        "worker": lambda: cluster.restart_worker(0),
        "redis": cluster.restart_redis,
        "postgres": cluster.restart_postgres,
    }
    job_id = cluster.submit(path, "kitchen")
    for name in kills:
        time.sleep(source.uniform(0.2, 2.0))
        acts[name]()
        findings.kills[name] += 1
    cluster.wait(job_id, JOB_SECONDS)
    found = cluster.outcome(job_id)
    findings.num_jobs += 1
    if found != right:
        findings.wrong.append(f"job {job_id} {found.state}: not as the undisturbed one")
    deadline = time.monotonic() + 60
    while cluster.client.get("/readyz").status_code != 200:
        if time.monotonic() > deadline:
            findings.wrong.append("the service was not ready a minute after the last kill")
            return
        time.sleep(0.2)


def soak(cluster: Cluster, path: Path, *, minutes: float, seed: int, part_seconds: float) -> Findings:
    """Cycles until the time is over, at least one."""
    findings, source = Findings(), random.Random(seed)
    half, over = (time.monotonic() + 60 * part for part in (minutes / 2, minutes))
    right = undisturbed(cluster, path, "kitchen", seconds=JOB_SECONDS)
    assert right.state == "succeeded"
    requests = Requests(path, f"http://127.0.0.1:{cluster.port}")
    requests.learn()
    plan: list[tuple[str, ...]] = []
    with Watch(cluster) as watch:
        while not findings.num_jobs or time.monotonic() < over:
            requests.ask(WARM_SECONDS, findings, [], may_fail=False)
            with watch.at_rest():
                requests.ask(part_seconds, findings, findings.alone, may_fail=False)
            with Hostility(cluster, path):
                requests.ask(part_seconds, findings, findings.beside, may_fail=False)
            asking = threading.Thread(
                target=requests.ask, args=(10.0, findings, findings.disturbed), kwargs={"may_fail": True}
            )
            asking.start()
            kinds = KILLED_FIRST if time.monotonic() < half else KILLED_THEN
            plan = plan or source.sample(kinds, len(kinds))
            disturb(cluster, path, plan.pop(), source, right, findings)
            asking.join()
            findings.processes = watch.report()
            report_progress(findings, seconds_left=over - time.monotonic())
    return findings


def report_progress(findings: Findings, *, seconds_left: float) -> None:
    """A line after every cycle: what each kind of process takes by now."""
    found = {name: [one["megabytes"][1], one["descriptors"][1]] for name, one in findings.processes.items()}
    line = {"minutes_left": round(seconds_left / 60, 1), "jobs": findings.num_jobs, "wrong": len(findings.wrong)}
    print(json.dumps({**line, "megabytes_and_descriptors": found}), flush=True)  # noqa: T201


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if len(seconds) < 2:
        return {"p50": math.nan, "p99": math.nan, "n": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1), "n": len(seconds)}


def main() -> int:
    """Soak; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--sequences", type=int, default=3000, help="of every job")
    parser.add_argument("--part-seconds", type=float, default=20, help="of each timed part of a cycle")
    arguments = parser.parse_args()
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=arguments.sequences)
        with Cluster(folder / "soak", bundle, path.parent, num_workers=1) as cluster:
            found = soak(
                cluster, path, minutes=arguments.minutes, seed=arguments.seed, part_seconds=arguments.part_seconds
            )
    alone, beside = percentiles(found.alone), percentiles(found.beside)
    not_flat = [name for name, process in found.processes.items() if not process["is_flat"]]
    ratios = {name: round(beside[name] / alone[name], 2) for name in ("p50", "p99")}
    report = {
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "num_wrong": len(found.wrong),
        "wrong": found.wrong[:20],
        "jobs": found.num_jobs,
        "answers": found.num_answers,
        "kills": dict(found.kills),
        "alone_ms": alone,
        "beside_ms": beside,
        "ratio_p50": ratios["p50"],
        "ratio_p99": ratios["p99"],
        "while_killed_ms": percentiles(found.disturbed),
        "processes": found.processes,
        "not_flat": not_flat,
        "holds": {
            "no wrong answer, no lost or doubled job": not found.wrong,
            "memory and descriptors flat": not not_flat,
            f"at most {MOST_TIMES} times as long beside hostile clients": max(ratios.values()) <= MOST_TIMES,
        },
    }
    print(json.dumps(report))  # noqa: T201
    return 0 if all(report["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

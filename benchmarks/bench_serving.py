"""
POST /regenerate on a real server process at 1, 8 and 64 concurrent clients, next to batched decoding in this process.

    python -m benchmarks.bench_serving
    python -m benchmarks.bench_serving --clients 1 8 64 --requests 256 --rounds 3

The last line is JSON. 32,000 items, four domains, random weights; every request holds one sequence of 43 items on
average, every client waits for its answer before it asks again, and every answer is compared with the one that this
process computed for that sequence, so an answer given to the wrong client is counted as wrong.

wall       sequences per second, server, clients and decoding on the same cores; in-process (the same sequences, as many
           in a call as there are clients at most) and server rounds alternate
processor  milliseconds of processor time per sequence, of the server's process and of decoding in this one: what
           serving adds, whatever else the machine does
overload   many more requests at once than the queue admits: how many are refused with 429 and Retry-After, that no
           admitted one is answered wrongly, and that the next requests are all answered
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import TAESAR, machine, random_bundle, random_sequences, rounded
from models.bundle import save_bundle
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerator
from models.decoding.rules import RULES, Rule
from models.vocabulary import Vocabulary

NUM_ITEMS, NUM_DOMAINS = 32_000, 4
POOL = 128
QUEUE = 128
OVERLOAD = 4 * QUEUE
START_SECONDS = 120
HOST = "127.0.0.1"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Exchange:
    """One request's body and the items that its answer must hold."""

    body: bytes
    user_id: str
    expected: list[str]


@dataclass(frozen=True)
class Answered:
    """What a request got."""

    status: int
    seconds: float
    right: bool
    retry_after: bool


def exchanges(
    regenerator: Regenerator, vocabulary: Vocabulary, sequences: list[TokenArray], target: str
) -> list[Exchange]:
    """A pool of requests with this process's own answers."""
    results = regenerator.regenerate(sequences, target)
    pool = []
    for index, (sequence, result) in enumerate(zip(sequences, results, strict=True)):
        items = [dict(zip(("domain", "item_id"), vocabulary.external_id(int(t)), strict=True)) for t in sequence]
        user_id = f"user-{index}"
        body = json.dumps({"target_domain": target, "sequences": [{"user_id": user_id, "items": items}]}).encode()
        pool.append(Exchange(body, user_id, vocabulary.item_ids_of(result.token_ids)))
    return pool


@contextlib.contextmanager
def server(bundle: Path, data: Path, threads: int, rule: Rule) -> Iterator[tuple[int, int]]:
    """(port, process id) of a `taesar serve` that is ready."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TAESAR_BUNDLE": str(bundle),
        "TAESAR_DATA": str(data),
        "TAESAR_HOST": HOST,
        "TAESAR_PORT": str(port),
        "TAESAR_RULE": rule,
        "TAESAR_LOG_LEVEL": "error",
        "TAESAR_MAX_QUEUED_SEQUENCES": str(QUEUE),
        "OMP_NUM_THREADS": str(threads),
    }
    process = subprocess.Popen([*TAESAR, "serve"], env=environment, stdout=sys.stderr)
    try:
        _await_start(process, port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def _await_start(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: exit status {process.poll()}")


async def ask(port: int, pool: list[Exchange], num_clients: int, num_requests: int) -> list[Answered]:
    """*num_requests* requests by *num_clients* clients, each on a connection of its own."""
    waiting = iter(range(num_requests))
    answered: list[Answered] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            for index in waiting:
                answered.append(await _exchange(reader, writer, pool[index % len(pool)]))
        finally:
            writer.close()
            await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return answered


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange) -> Answered:
    start = time.perf_counter()
    head = f"POST /regenerate HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(exchange.body)}\r\n\r\n".encode() + exchange.body)
    head_lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head_lines[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    status = int(head_lines[0].split()[1])
    right = True
    if status == 200:
        (sequence,) = json.loads(body)["sequences"]
        right = sequence["user_id"] == exchange.user_id and sequence["items"] == exchange.expected
    return Answered(status, time.perf_counter() - start, right, "retry-after" in headers)


def processor_seconds(process_id: int) -> float:
    """Processor time so far of a process and of all that descend from it and live, all threads."""
    parent_of: dict[int, int] = {}
    seconds_of: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended between the two looks
            fields = stat.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
            parent_of[int(stat.parent.name)] = int(fields[1])
            seconds_of[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    family = {process_id}
    while grown := {child for child, parent in parent_of.items() if parent in family} - family:
        family |= grown
    return sum(seconds_of[member] for member in family)


def bench(clients: list[int], num_requests: int, rounds: int, threads: int, rule: Rule) -> dict[str, Any]:
    """Throughput, latencies and the overload."""
    bundle = random_bundle(NUM_ITEMS, NUM_DOMAINS)
    target = bundle.vocabulary.domains[0]
    regenerator = Regenerator(bundle, rule)
    sequences = random_sequences(POOL, NUM_ITEMS)
    pool = exchanges(regenerator, bundle.vocabulary, sequences, target)
    in_process: list[tuple[float, float]] = []
    runs: dict[int, list[tuple[float, float, list[Answered]]]] = {count: [] for count in clients}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "bundle"
        networks = {"base": bundle.base, "experts": bundle.experts}
        save_bundle(directory, vocabulary=bundle.vocabulary, **networks, provenance={"weights": "random"})
        with server(directory, Path(folder) / "data", threads, rule) as (port, process_id):
            asyncio.run(ask(port, pool, 8, 32))  # warm
            for _ in range(rounds):
                in_process.append(_timed_in_process(regenerator, sequences, target, max(clients)))
                for count in clients:
                    start, cpu = time.perf_counter(), processor_seconds(process_id)
                    answered = asyncio.run(ask(port, pool, count, num_requests))
                    seconds = time.perf_counter() - start
                    runs[count].append((seconds, processor_seconds(process_id) - cpu, answered))
            flood = asyncio.run(ask(port, pool, OVERLOAD, OVERLOAD))
            after = asyncio.run(ask(port, pool, 8, 64))
    batched = statistics.median(POOL / seconds for seconds, _ in in_process)
    batched_cpu = statistics.median(1e3 * cpu / POOL for _, cpu in in_process)
    rows = [_summary(count, runs[count], num_requests, batched, batched_cpu) for count in clients]
    statuses = Counter(answer.status for answer in flood)
    return {
        "benchmark": "serving",
        "rule": rule,
        "machine": machine(),
        "vocabulary": NUM_ITEMS,
        "domains": NUM_DOMAINS,
        "in_process": {"sequences_per_second": batched, "processor_ms_per_sequence": batched_cpu},
        "clients": rows,
        "overload": {
            "requests_at_once": OVERLOAD,
            "queue": QUEUE,
            "statuses": {str(status): number for status, number in sorted(statuses.items())},
            "refused_with_retry_after": sum(answer.retry_after for answer in flood if answer.status == 429),
            "wrong_answers": sum(not answer.right for answer in flood),
            "answered_afterwards": sum(answer.status == 200 and answer.right for answer in after) / len(after),
        },
    }


def _timed_in_process(
    regenerator: Regenerator, sequences: list[TokenArray], target: str, batch: int
) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(sequences), batch):
        regenerator.regenerate(sequences[first : first + batch], target)
    return time.perf_counter() - start, time.process_time() - cpu


def _summary(
    count: int, runs: list[tuple[float, float, list[Answered]]], num_requests: int, batched: float, batched_cpu: float
) -> dict[str, Any]:
    latencies = np.asarray([answer.seconds for _, _, answered in runs for answer in answered])
    throughput = statistics.median(num_requests / seconds for seconds, _, _ in runs)
    processor = statistics.median(1e3 * cpu / num_requests for _, cpu, _ in runs)
    return {
        "clients": count,
        "sequences_per_second": throughput,
        "share_of_in_process": throughput / batched,
        "p50_ms": 1e3 * float(np.quantile(latencies, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(latencies, 0.99)),
        "processor_ms_per_sequence": processor,
        "processor_share_of_in_process": batched_cpu / processor,
        "failed": sum(answer.status != 200 for _, _, answered in runs for answer in answered),
        "wrong_answers": sum(not answer.right for _, _, answered in runs for answer in answered),
    }


def main() -> None:
    """Run; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 8, 64))
    parser.add_argument(
        "--requests",
        type=int,
        default=256,
        help="per round and number of clients; multiples of 128 ask every sequence as often",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, torch.get_num_threads() - 1),
        help="of the networks, here and in the server; by default one core is left to HTTP and the clients",
    )
    parser.add_argument(
        "--rule", choices=RULES, default="paper", help="paper by default: it is what batched decoding is measured with"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = rounded(
        bench(list(arguments.clients), arguments.requests, arguments.rounds, arguments.threads, arguments.rule)
    )
    for row in result["clients"]:
        print(row)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

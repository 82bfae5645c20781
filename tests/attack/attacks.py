"""The attacks: each a function that says what went wrong, or None when the service did right."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.attack.served import (
    Bystander,
    connect,
    is_alive,
    is_closed,
    log_bytes,
    log_lines,
    megabytes,
    num_descriptors,
    post_head,
    process_id,
    served,
    status_of,
)
from tests.command_line import COMMAND
from tests.services import eventually

MEGABYTE = 1024 * 1024
FULL = 8 * MEGABYTE - 100
SOON = 15.0  # seconds in which others are answered on a busy machine; the attacks once cost a minute, or for ever


@dataclass(frozen=True)
class Target:
    """What is attacked: a folder to work in, a bundle, and a large input."""

    folder: Path
    bundle: Path
    input: Path

    def served(self, name: str, **settings: object) -> contextlib.AbstractContextManager:
        """A service of its own for the attack *name*."""
        return served(self.folder / name, self.bundle, self.input.parent, **settings)


def filled(unit: bytes, start: bytes = b'{"target_domain":"kitchen","sequences":[', end: bytes = b"]}") -> bytes:
    """As many of *unit* as a full body holds."""
    return start + b",".join([unit] * ((FULL - len(start)) // (len(unit) + 1))) + end


UNKNOWN_KEYS = b"{" + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}"
CRUMBS = (
    b"POST /regenerate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 1_000_000
)
MANY_PARTS = {
    "empty sequences": filled(b'{"items":[]}'),
    "sequences with user ids": filled(b'{"user_id":"a","items":[]}'),
    "one sequence of short items": filled(
        b'{"item_id":"a","domain":"b"}', b'{"target_domain":"kitchen","sequences":[{"items":[', b"]}]}"
    ),
    "one key each unknown": filled(b'{"a":0}'),
    "unknown keys": UNKNOWN_KEYS,
    "nested": b"[" * FULL,
}


def half_sent_requests(target: Target) -> str | None:
    """Four hundred half-sent requests, twice the connections there may be, while a job runs."""
    with target.served("half", max_connections=200, slow_client_seconds=5) as cluster:
        job_id = cluster.submit(target.input, "kitchen")
        half = [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", post_head("/regenerate", 100) + b"{"]
        held = [connect(cluster.port, half[n % 2]) for n in range(400)]
        answers = [httpx.get(f"http://127.0.0.1:{cluster.port}/healthz", timeout=SOON).status_code for _ in range(5)]
        descriptors = num_descriptors(process_id(cluster))
        time.sleep(12)
        left = sum(not is_closed(client) for client in held)
        job = cluster.wait(job_id, 300)
        if answers != [200] * 5:
            return f"new clients were answered {answers}"
        if descriptors > 350:
            return f"{descriptors} descriptors were open"
        if left:
            return f"{left} half-sent requests were still held after 12 s"
        if job["state"] != "succeeded":
            return f"the job {job['state']}: {job['reason']}"
        return f"the log has {log_bytes(cluster)} bytes" if log_bytes(cluster) > MEGABYTE else None


def held_bodies(target: Target) -> str | None:
    """Sixty clients that hold unfinished bodies of 8 MiB."""
    with target.served("bodies") as cluster:
        before = megabytes(process_id(cluster))
        body = b" " * (FULL - 1000)
        held = [connect(cluster.port) for _ in range(60)]
        senders = [
            threading.Thread(target=_send_quietly, args=(client, post_head("/regenerate", FULL) + body))
            for client in held
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(30)
        grown = megabytes(process_id(cluster)) - before
        time.sleep(2)
        headers = {"Content-Type": "application/json"}
        valid = _request_of(target).ljust(4 * MEGABYTE)
        url = f"http://127.0.0.1:{cluster.port}/regenerate"
        answer = httpx.post(url, content=valid, headers=headers, timeout=60)
        for client in held:
            client.close()
        eventually(lambda: megabytes(process_id(cluster)) - before < 60)  # what came is given back
        if grown > 120:  # 64 MiB of bodies, and what 60 connections buffer
            return f"{grown:.0f} MB more were held"
        return None if answer.status_code == 200 else f"another client was answered {answer.text[:200]}"


def many_parts(target: Target) -> str | None:
    """Full bodies of too many parts, one after the other and six at once."""
    with target.served("parts") as cluster:
        before = megabytes(process_id(cluster), "VmHWM")
        with Bystander(cluster.port) as bystander:
            for name, body in MANY_PARTS.items():
                status = _post(cluster.port, "/regenerate", body)
                if status not in (413, 422):
                    return f"{name} was answered {status}"
            for path in ("/jobs", "/models/x/canary"):
                if (status := _post(cluster.port, path, UNKNOWN_KEYS)) != 413:
                    return f"unknown keys to {path} were answered {status}"
            with contextlib.closing(connect(cluster.port, CRUMBS)) as client:
                if (status := status_of(client)) != 400:
                    return f"a body in chunks of a byte was answered {status}"
            together = [
                threading.Thread(target=_post, args=(cluster.port, "/regenerate", MANY_PARTS["empty sequences"]))
                for _ in range(6)
            ]
            for one in together:
                one.start()
            for one in together:
                one.join()
        grown = megabytes(process_id(cluster), "VmHWM") - before
        if bystander.failures or bystander.slowest > SOON / 5:
            return f"a bystander waited {bystander.slowest:.1f} s, {dict(bystander.failures)}"
        return f"memory grew by {grown:.0f} MB" if grown > 150 else None


def unread_downloads(target: Target) -> str | None:
    """Sixty clients that ask for the whole dictionary and do not read it."""
    with target.served("unread") as cluster:
        job = cluster.wait(cluster.submit(target.input, "kitchen"), 300)
        head = b"GET /mappings/kitchen HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
        held = [connect(cluster.port, head, receive_buffer=2048) for _ in range(60)]
        time.sleep(3)
        client = httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}", timeout=SOON)
        paths = ("/jobs", "/readyz", "/mappings/kitchen", f"/jobs/{job['job_id']}")
        answers = {path: client.get(path).status_code for path in paths}
        again = cluster.submit(target.input, "kitchen")
        state = cluster.wait(again, 300)["state"]
        for one in held:
            one.close()
        if set(answers.values()) != {200}:
            return f"others were answered {answers}"
        return None if state == "succeeded" else f"another job {state}"


def keys_that_are_none(target: Target) -> str | None:
    """Keys that are empty, misspelt or missing where others than this machine would be let in."""
    for environment in (
        {"TAESAR_API_KEYS": ""},
        {"TAESAR_API_KEYS": " , ,"},
        {"TAESAR_API_KEY": "secret"},
        {"TAESAR_API_KEYS_FILE": "/dev/null"},
        {"TAESAR_HOST": "0.0.0.0"},
    ):
        settings = {"TAESAR_BUNDLE": str(target.bundle), "TAESAR_DATA": str(target.folder / "keys"), "TAESAR_PORT": "0"}
        program = [*COMMAND, "serve"]
        ended = subprocess.run(
            program, env=os.environ | settings | environment, capture_output=True, text=True, timeout=120
        )
        if ended.returncode != 2 or len(ended.stderr.splitlines()) != 1:
            return f"{environment}: ended {ended.returncode} with {len(ended.stderr.splitlines())} lines"
        if "secret" in ended.stderr:
            return f"{environment}: the key is told"
    return None


def foreign_pages(target: Target) -> str | None:
    """A web page in the operator's browser, by its own name (rebound) and by ours."""
    with target.served("pages") as cluster:
        client = httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}", timeout=30)
        version = client.get("/models").json()["active"]
        evil = {"Origin": "https://evil.example"}
        for headers in (evil, {"Host": "rebound.evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            file = {"file": ("a.ndjson", b"{}\n")}
            found = {
                "jobs": client.post("/jobs", data={"target_domain": "kitchen"}, files=file, headers=headers),
                "activate": client.post(
                    f"/models/{version}/activate", headers={**headers, "Content-Type": "text/plain"}
                ),
            }
            wrong = {name: answer.status_code for name, answer in found.items() if answer.status_code != 403}
            if wrong:
                return f"{headers}: {wrong}"
        if (status := client.get("/jobs", headers={"Host": "rebound.evil.example"}).status_code) != 403:
            return f"GET /jobs by another name: {status}"
        plain = client.post("/regenerate", content=_request_of(target), headers={"Content-Type": "text/plain"})
        return None if plain.status_code == 415 else f"JSON as text/plain: {plain.status_code}"


def damaged_parquet(target: Target) -> str | None:
    """Four hundred small Parquet uploads, each with one wrong byte in its footer."""
    sink = io.BytesIO()
    table = pa.table({"user_id": ["u"], "item_id": ["x"], "domain": ["food"]})
    pq.write_table(table, sink, compression="snappy", write_statistics=False)
    whole = sink.getvalue()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    source = random.Random(1)
    with target.served("parquet") as cluster, httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}") as client:
        for _ in range(400):
            damaged = bytearray(whole)
            damaged[source.randrange(footer, len(whole))] ^= 1 << source.randrange(8)
            try:
                answer = client.post(
                    "/jobs",
                    data={"target_domain": "kitchen"},
                    files={"file": ("a.parquet", bytes(damaged))},
                    timeout=60,
                )
            except httpx.TransportError as error:
                return f"{type(error).__name__}; the process is {'alive' if is_alive(cluster) else 'dead'}"
            if answer.status_code not in (202, 413, 415, 422, 429):
                return f"answered {answer.status_code}: {answer.text[:200]}"
        return None if is_alive(cluster) else "the process ended"


def swapped_links(target: Target) -> str | None:
    """A file of an input root that is swapped for a link out of it all the time."""
    folder = target.folder / "links"
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "in" / "good.csv").write_text("user_id,item_id,domain\nu1,x,kitchen\n")
    (folder / "out" / "foreign.csv").write_text("TOP SECRET FIRST LINE,of another folder\nx,y\n")
    over = threading.Event()

    def swap() -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            link = folder / "in" / "link"
            link.symlink_to(folder / ("in/good.csv" if turn % 2 else "out/foreign.csv"))
            link.rename(folder / "in" / "x.csv")

    with served(folder / "service", target.bundle, folder / "in") as cluster:
        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}", timeout=30) as client:
                for _ in range(600):
                    body = {"target_domain": "kitchen", "source_uri": f"file://{folder}/in/x.csv"}
                    answer = client.post("/jobs", json=body)
                    if "SECRET" in answer.text:
                        return f"the foreign file is told with {answer.status_code}"
                    if answer.status_code >= 500:
                        return f"answered {answer.status_code}"
                    if answer.status_code == 202:
                        client.delete(f"/jobs/{answer.json()['job_id']}?remove=true")
        finally:
            over.set()
            swapping.join()
        told = any("SECRET" in json.dumps(line) for line in log_lines(cluster))
        return "the foreign file is told in the log" if told else None


def gzip_bombs(target: Target) -> str | None:
    """Uploads that are small and expand to newlines, to nothing, or to an endless name."""
    bombs = {
        "newlines": gzip.compress(b"\n" * (400 * MEGABYTE), 1),
        "empty members": gzip.compress(b"") * 200_000,
        "endless name": b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n" * (8 * MEGABYTE),
    }
    with target.served("gzip") as cluster, Bystander(cluster.port) as bystander:
        for name, bomb in bombs.items():
            began = time.monotonic()
            answer = httpx.post(
                f"http://127.0.0.1:{cluster.port}/jobs",
                data={"target_domain": "kitchen"},
                files={"file": ("a.ndjson.gz", bomb)},
                timeout=120,
            )
            seconds = time.monotonic() - began
            if answer.status_code not in (202, 413, 422) or seconds > 15:
                return f"{name}: {answer.status_code} after {seconds:.1f} s"
        return None if bystander.slowest < SOON else f"a bystander waited {bystander.slowest:.1f} s"


def ended_in_flight(target: Target) -> str | None:
    """SIGTERM while eight requests are computed: those that were read are answered."""
    with target.served("flight") as cluster:
        body = _request_of(target, num_sequences=16, explain=True)
        found: list[int | str] = []

        def ask(go: threading.Event) -> None:
            client = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
            try:
                client.request("GET", "/healthz")
                client.getresponse().read()
                client.request("POST", "/regenerate", body, {"Content-Type": "application/json"})
                go.set()
                found.append(client.getresponse().status)
            except OSError as error:
                found.append(type(error).__name__)
            finally:
                client.close()

        sent = [threading.Event() for _ in range(8)]
        asking = [threading.Thread(target=ask, args=(go,)) for go in sent]
        for one in asking:
            one.start()
        for go in sent:
            go.wait(30)
        time.sleep(0.3)
        os.kill(process_id(cluster), signal.SIGTERM)
        for one in asking:
            one.join()
        return None if found == [200] * 8 else f"answers: {found}"


ATTACKS: dict[str, Callable[[Target], str | None]] = {
    attack.__name__: attack
    for attack in (
        half_sent_requests,
        held_bodies,
        many_parts,
        unread_downloads,
        keys_that_are_none,
        foreign_pages,
        damaged_parquet,
        swapped_links,
        gzip_bombs,
        ended_in_flight,
    )
}


def _send_quietly(client: object, content: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(content)  # type: ignore[attr-defined]


def _post(port: int, path: str, body: bytes) -> int | None:
    with contextlib.closing(connect(port, post_head(path, len(body)) + body)) as client:
        return status_of(client)


def _request_of(target: Target, *, num_sequences: int = 1, explain: bool = False) -> bytes:
    with target.input.open(encoding="utf-8") as lines:
        sequences = [json.loads(line) for line in itertools.islice(lines, num_sequences)]
    return json.dumps({"target_domain": "kitchen", "explain": explain, "sequences": sequences}).encode()

"""
``make fuzz``: mutated bodies, uploads, URIs, headers and bundles against a running service; the last line is JSON.

Case n of a seed is always the same, so that a failure can be repeated by --seed, --first n and --cases 1, and a long
run be cut into pieces.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import io
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from tests.attack.served import is_alive, log_lines, megabytes, num_descriptors, process_id, served
from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen
from tests.services import reachable_folder

KEY = "fuzz-key-that-nobody-may-read"
CLIENTS = 4
SHOWN_EVERY = 2_000
# The documented ones (docs/reference.md); 400 is of the server itself, for what is no HTTP
EXPECTED = frozenset({200, 202, 204, 304, 308, 400, 401, 404, 405, 406, 409, 410, 413, 415, 422, 429, 403})
BUSY = frozenset({"receiving-full", "store-unavailable", "shutting-down", "files-unavailable", "model-process-died"})
TOKENS = (
    *(b"\x00", b"\xff\xfe", b"\\ud800", b"1e999", b"-0", b"NaN", b"null", b"true", b"[" * 64, b"{" * 9, b'"', b"\\"),
    *(b",", b":", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"9" * 400, b"../" * 5, b"\r\n", b'{"a":' * 20, b"'; --"),
    *(b"%00", b"\xe2\x80\xae"),
)
SEQUENCE = {"user_id": "u", "items": [{"item_id": "x", "domain": "food"}, {"item_id": "y", "domain": "kitchen"}]}
REQUEST = {"target_domain": "kitchen", "explain": True, "on_unknown": "skip", "sequences": [SEQUENCE, SEQUENCE]}
JOB = {"target_domain": "kitchen", "source_uri": "file:///in/x.csv", "format": "csv", "on_unknown": "skip"}
VALUES: tuple[object, ...] = (None, True, 0, -1, 1e308, 2**70, "", "x" * 5000, [], {}, [[]], {"": {}}, "\x00", "=1")
PATHS = (
    *("/regenerate", "/jobs", "/jobs/{}", "/jobs/{}/events", "/jobs/{}/result", "/jobs/{}/errors", "/mappings/{}"),
    *("/models", "/models/{}/activate", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/{}"),
)
QUERIES = (
    *("limit", "cursor", "state", "format", "source_domain", "source_item", "target_item", "job_id", "rule"),
    *("model_version", "remove", "view", "x"),
)
HEADERS = (
    *("Accept", "If-None-Match", "Idempotency-Key", "Content-Type", "X-Request-ID", "Authorization", "Origin", "Host"),
    *("Cookie", "Range", "Accept-Encoding", "Transfer-Encoding", "Expect", "Content-Length", "Upgrade", "Te"),
)
PARTS = ("x", "kitchen", "019a", "%00", "..%2f..", "a" * 3000, "%zz", "\x7f")
HEADER_VALUES = (b"text/csv", b'W/"1-2", "x"', b"application/json; charset=utf-7", b"*", b"chunked", b"bytes=0-5")


@dataclass(frozen=True)
class Case:
    """One request."""

    method: str
    target: str
    headers: tuple[tuple[str, bytes], ...]
    body: bytes = b""


@dataclass
class Tally:
    """What came of the cases so far."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)


def mutated(content: bytes, source: random.Random) -> bytes:
    """*content* with up to eight changes."""
    changed = bytearray(content)
    for _ in range(source.randint(1, 8)):
        place = source.randrange(len(changed) + 1)
        kind = source.randrange(5)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            del changed[place : place + source.randint(1, 20)]
        elif kind == 2:
            changed[place:place] = source.choice(TOKENS)
        elif kind == 3:
            changed[place:place] = changed[place : place + source.randint(1, 40)] * source.randint(1, 30)
        else:
            changed[place : place + 4] = source.randbytes(source.randint(0, 8))
    return bytes(changed)


def rebuilt(value: object, source: random.Random) -> object:
    """*value* with one part of it replaced."""
    if isinstance(value, dict) and value and source.random() < 0.8:
        name = source.choice(list(value))
        return {**value, source.choice([name, name, "x"]): rebuilt(value[name], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        place = source.randrange(len(value))
        return [*value[:place], rebuilt(value[place], source), *value[place + 1 :]] * source.choice([1, 1, 1, 50])
    return source.choice(VALUES)


def json_case(source: random.Random) -> Case:
    """A mutated body of one of the two routes that take JSON."""
    path, value = source.choice([("/regenerate", REQUEST), ("/jobs", JOB)])
    body = json.dumps(rebuilt(value, source)).encode() if source.random() < 0.5 else json.dumps(value).encode()
    if source.random() < 0.7:
        body = mutated(body, source)
    return Case("POST", path, (("Content-Type", b"application/json"), *_key()), body)


def uri_case(source: random.Random) -> Case:
    """A path and a query of random parts."""
    part = source.choice(
        ["x", "kitchen", "019a", quote(source.randbytes(6)), "%00", "..%2f..", "a" * 3000, "%zz", "\x7f"]
    )
    target = source.choice(PATHS).replace("{}", part if source.random() < 0.7 else quote(mutated(b"kitchen", source)))
    names = source.sample(QUERIES, source.randint(0, 3))
    values = [quote(mutated(source.choice([b"10", b"csv", b"food", b"WyJhIl0"]), source), safe="") for _ in names]
    query = "&".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    method = source.choice(["GET", "GET", "GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "TRACE"])
    return Case(method, target + ("?" + query if query else ""), _key())


def header_case(source: random.Random) -> Case:
    """Random headers on a plain request."""
    found = [(name, _header_value(source)) for name in source.sample(HEADERS, source.randint(1, 4))]
    keys = () if any(name == "Authorization" for name, _ in found) else _key()
    path = source.choice(["/jobs", "/mappings/kitchen", "/models", "/docs"])
    return Case(source.choice(["GET", "HEAD", "POST"]), path, (*keys, *found))


def upload_case(source: random.Random) -> Case:
    """A form with a small damaged file."""
    name, content = source.choice(UPLOADS)
    if source.random() < 0.9:
        content = mutated(content, source)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="target_domain"\r\n\r\nkitchen\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="'
        + name
        + b'"\r\n\r\n'
        + content
        + b"\r\n--b--\r\n"
    )
    if source.random() < 0.3:
        form = mutated(form, source)
    return Case("POST", "/jobs", (("Content-Type", b"multipart/form-data; boundary=b"), *_key()), form)


def case_of(seed: int, number: int) -> Case:
    """Case *number* of *seed*."""
    source = random.Random(f"{seed}-{number}")
    kinds: list[Callable[[random.Random], Case]] = [json_case, uri_case, header_case, upload_case]
    return source.choices(kinds, weights=[45, 30, 22, 3])[0](source)


def fuzz(cluster: Cluster, *, seed: int, first: int, cases: int) -> Tally:
    """Send the cases by several clients and judge every answer."""
    tally, numbers, changing = Tally(), iter(range(first, first + cases)), threading.Lock()

    def work() -> None:
        connection: http.client.HTTPConnection | None = None
        while True:
            with changing:
                number = next(numbers, None)
            if number is None:
                break
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
            case = case_of(seed, number)
            status, content, keeps = _answer(connection, case)
            if not keeps:
                connection.close()
                connection = None
            with changing:
                tally.statuses[str(status)] += 1
                if not tally.statuses.total() % SHOWN_EVERY:
                    print(f"{tally.statuses.total():,} of {cases:,} cases, {len(tally.wrong)} wrong", flush=True)  # noqa: T201
                if (reason := judge(cluster, status, content)) is not None:
                    tally.wrong.append(f"case {number}: {case.method} {case.target[:80]}: {reason}")
        if connection is not None:
            connection.close()

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return tally


def told_in_log(cluster: Cluster) -> list[str]:
    """What the log should not say."""
    wrong: list[str] = []
    for line in log_lines(cluster):
        text = json.dumps(line)
        if KEY in text:
            wrong.append(f"the log tells the key: {text[:200]}")
        if line.get("event") == "unhandled_error" or "Exception in ASGI" in str(line.get("event")):
            wrong.append(f"the log has an error that nobody handled: {text[-300:]}")
    return wrong


def main() -> int:
    """Fuzz; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--bundles", type=int, default=1000, help="spoilt bundles that are activated besides")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    from tests.attack.bundle_fuzz import fuzz_bundles  # it uses what is here

    began = time.monotonic()
    with reachable_folder() as folder:
        bundle, path = food_kitchen(folder, num_sequences=10)
        root = folder / "bundles"
        root.mkdir()
        settings = {"api_keys": KEY, "slow_client_seconds": 2, "key_requests_per_second": 0, "bundle_root": root}
        with served(folder / "service", bundle, path.parent, **settings) as cluster:
            before = num_descriptors(process_id(cluster))
            tally = fuzz(cluster, seed=arguments.seed, first=arguments.first, cases=arguments.cases)
            numbers = {"seed": arguments.seed, "first": arguments.first, "cases": arguments.bundles}
            of_bundles = fuzz_bundles(cluster, bundle, root, **numbers)
            wrong = [*tally.wrong, *of_bundles.wrong, *told_in_log(cluster)]
            time.sleep(6)
            alive = is_alive(cluster)
            report = {
                "cases": arguments.cases,
                "seed": arguments.seed,
                "first": arguments.first,
                "statuses": dict(sorted(tally.statuses.items())),
                "bundles": arguments.bundles,
                "statuses_of_bundles": dict(sorted(of_bundles.statuses.items())),
                "alive": alive,
                "descriptors": [before, num_descriptors(process_id(cluster))] if alive else None,
                "peak_megabytes": round(megabytes(process_id(cluster), "VmHWM")) if alive else None,
                "num_wrong": len(wrong),
                "wrong": wrong[:20],
                "seconds": round(time.monotonic() - began, 1),
            }
    print(json.dumps(report))  # noqa: T201
    return 0 if alive and not wrong else 1


def _key() -> tuple[tuple[str, bytes], ...]:
    return (("Authorization", f"Bearer {KEY}".encode()),)


def _header_value(source: random.Random) -> bytes:
    base = source.choice(
        [b"text/csv", b'W/"1-2", "x"', b"application/json; charset=utf-7", b"*", b"chunked", b"bytes=0-5"]
    )
    value = mutated(base, source) if source.random() < 0.8 else base
    if source.random() < 0.9:  # else what is no header at all
        value = value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    return value[:2000]


def _answer(connection: http.client.HTTPConnection, case: Case) -> tuple[int | None, bytes, bool]:
    """(status, content, whether the connection goes on); no status where the service closed it instead."""
    lines = [f"{case.method} {case.target} HTTP/1.1".encode("latin-1", "replace").replace(b"\x7f", b"%7f")]
    names = {name for name, _ in case.headers}
    lines += [] if "Host" in names else [b"Host: localhost"]
    lines += [name.encode() + b": " + value for name, value in case.headers]
    lines += [] if "Content-Length" in names else [b"Content-Length: " + str(len(case.body)).encode()]
    try:
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(20)
        connection.sock.sendall(b"\r\n".join([*lines, b"", case.body]))
        answer = http.client.HTTPResponse(connection.sock, method=case.method)
        answer.begin()
        while answer.status == 100:
            answer.begin()
        content = answer.read(1 << 20)
        whole = answer.isclosed() and "Expect" not in names and "Transfer-Encoding" not in names
        return answer.status, content, whole and "Content-Length" not in names and not answer.will_close
    except (OSError, http.client.HTTPException):
        return None, b"", False


def judge(cluster: Cluster, status: int | None, content: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    if KEY.encode() in content:
        return "the answer tells the key"
    if not is_alive(cluster):
        return "the process ended"
    if status is None or status in EXPECTED:
        return None
    if status == 503:
        with contextlib.suppress(ValueError):
            if json.loads(content)["type"].removeprefix("urn:taesar:problem:") in BUSY:
                return None
    return f"{status}: {content[:200]!r}"


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"user_id": ["u", "v"], "item_id": ["x", "y"], "domain": ["food", "kitchen"]}), sink)
    return sink.getvalue()


UPLOADS = (
    (b"a.csv", b"user_id,item_id,domain\nu,x,food\nu,y,kitchen\n"),
    (b"a.ndjson", json.dumps(SEQUENCE).encode() + b"\n"),
    (b"a.inter", b"user_id:token\titem_id:token\tdomain:token\nu\tx\tfood\n"),
    (b"a.parquet", _parquet()),
)


if __name__ == "__main__":
    sys.exit(main())

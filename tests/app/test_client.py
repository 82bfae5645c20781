"""The Python client against a real service: limits, full queues and restarts are its business, not its user's."""

import json
import socket
import subprocess
import sys
import threading
import time

import httpx
import pyarrow.parquet as pq
import pytest
import uvicorn

from app.access.key_file import ALL_SCOPES, AccessKey, KeyScope, add_key, hash_of
from app.client import CallError, DamagedDownloadError, JobFailedError, Patience, TaesarClient, split_sequences
from app.http.application import create_app
from app.settings import Settings
from tests.services import free_port

SEQUENCES = [
    {
        "user_id": f"u{n}",
        "items": [{"item_id": f"b{n:02d}", "domain": "books"}, {"item_id": "k01", "domain": "kitchen"}],
    }
    for n in range(11)
]


@pytest.fixture(scope="module")
def serve(bundle, tmp_path_factory):
    """A function settings -> address of a running service; all end with the module."""
    servers = []

    def start(**settings):
        folder = tmp_path_factory.mktemp("client")
        defaults = {"bundle": bundle.directory, "device": "cpu", "data": folder / "data"}
        server = uvicorn.Server(uvicorn.Config(create_app(Settings(**defaults | settings)), port=0, log_config=None))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        deadline = time.monotonic() + 90
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, _ in servers:
        server.should_exit = True
    for _, thread in servers:
        thread.join(30)


@pytest.fixture(scope="module")
def small(serve):
    """A service whose limits are so small that they are met."""
    return serve(max_sequences_per_request=3, max_items_per_sequence=5, max_items_per_request=8)


@pytest.fixture(scope="module")
def large(serve):
    """The same bundle with default limits, to compare with."""
    return serve()


@pytest.fixture
def upload(tmp_path):
    path = tmp_path / "mixed.ndjson"
    path.write_text("".join(json.dumps(sequence) + "\n" for sequence in SEQUENCES))
    return path


def test_what_is_over_the_limits_is_sent_in_parts_with_the_same_answers(small, large):
    """The client knows the usual limits; what this service finds too large it halves."""
    with TaesarClient(small) as client, TaesarClient(large) as other:
        expected = other.regenerate(SEQUENCES, "kitchen", explain=True)

        assert client.regenerate(SEQUENCES, "kitchen", explain=True) == expected
        assert [answer["user_id"] for answer in expected] == [one["user_id"] for one in SEQUENCES]
        with TaesarClient(small, max_sequences=2) as careful:
            assert careful.regenerate(SEQUENCES, "kitchen", explain=True) == expected


def test_a_sequence_that_is_too_long_alone_is_an_error_that_says_so(small):
    long = {"items": [{"item_id": "b01", "domain": "books"}] * 6}
    with TaesarClient(small) as client, pytest.raises(CallError, match="sequence 0 has 6 items") as caught:
        client.regenerate([*SEQUENCES[:2], long], "kitchen")
    assert (caught.value.status, caught.value.problem["title"]) == (413, "Request too large")


def test_parts_keep_the_order_and_the_bounds():
    lengths = [1, 2, 3, 9, 1, 1, 1, 1]
    parts = list(split_sequences([{"items": [0] * n} for n in lengths], max_sequences=3, max_items=5))

    assert [[len(one["items"]) for one in part] for part in parts] == [[1, 2], [3], [9], [1, 1, 1], [1]]


def test_a_job_is_submitted_followed_and_downloaded(large, upload, tmp_path):
    with TaesarClient(large) as client:
        job = client.submit("kitchen", file=upload, prefix_items=False)
        shown = list(client.follow(job["job_id"], poll_seconds=0.05))
        parquet = client.download(job["job_id"], tmp_path / "out.parquet")
        ndjson = client.download(job["job_id"], tmp_path / "out.ndjson", result_format="ndjson")
        answers = client.regenerate(SEQUENCES, "kitchen")

        assert shown[-1] == client.wait(job["job_id"])
        assert next(client.jobs(state="succeeded"))["job_id"] == job["job_id"]
        assert client.bad_rows(job["job_id"]) == []
        assert sum(line["count"] for line in client.mappings("kitchen", limit=1)) > 0
    rows = [json.loads(line) for line in ndjson.read_text().splitlines()]
    assert [row["items"] for row in rows] == [answer["items"] for answer in answers]
    assert pq.read_table(parquet).column("items").to_pylist() == [row["items"] for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed.ndjson", "out.ndjson", "out.parquet"]


def test_the_same_key_submits_once_and_bad_rows_are_told(large, tmp_path):
    path = tmp_path / "mixed.ndjson"
    path.write_text("".join(json.dumps(one) + "\n" for one in SEQUENCES * 4) + "{broken\n")
    with TaesarClient(large) as client:
        first = client.submit("kitchen", file=path, key="nightly-2026-11-29")
        again = client.submit("kitchen", file=path, key="nightly-2026-11-29")
        client.wait(first["job_id"], poll_seconds=0.05)

        assert again["job_id"] == first["job_id"]
        assert [row["line"] for row in client.bad_rows(first["job_id"])] == [45]


def test_a_job_that_fails_or_is_cancelled_is_an_error_with_the_job(large, tmp_path):
    path = tmp_path / "mixed.ndjson"
    path.write_text(json.dumps(SEQUENCES[0]) + "\n" + "{broken\n" * 20)
    with TaesarClient(large) as client:
        job = client.submit("kitchen", file=path)

        with pytest.raises(JobFailedError, match="is failed") as caught:
            client.wait(job["job_id"], poll_seconds=0.05)
        assert caught.value.job["job_id"] == job["job_id"]
        with pytest.raises(CallError, match="409"):
            client.download(job["job_id"], tmp_path / "out")
        client.remove(job["job_id"])
        with pytest.raises(CallError, match="404"):
            client.job(job["job_id"])


def test_a_refusal_for_asking_too_often_is_waited_out(serve, tmp_path):
    """A real 429 of a real service, whose Retry-After is kept."""
    add_key(tmp_path / "keys", AccessKey("shop", ALL_SCOPES, hash_of(b"secret")))
    url = serve(api_keys_file=tmp_path / "keys", key_requests_per_second=0.3)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        time.sleep(seconds)

    with TaesarClient(url, "secret", patience=Patience(first_seconds=0.01), sleep=sleep) as client:
        found = [client.models()["active"] for _ in range(2)]
    assert len(set(found)) == 1
    assert len(waits) >= 1
    assert min(waits) >= 1


def test_a_service_without_a_model_is_waited_for(serve, bundle):
    """A real 503, until somebody activates a model."""
    url = serve(bundle=None, bundle_root=bundle.directory.parent)

    def activate_instead_of_sleeping(_):
        with TaesarClient(url) as other:
            other.activate(bundle.version)

    with TaesarClient(url, sleep=activate_instead_of_sleeping) as client:
        assert len(client.regenerate(SEQUENCES, "kitchen")) == len(SEQUENCES)


def test_what_is_no_matter_of_time_is_not_tried_again(large):
    waits = []
    with TaesarClient(large, sleep=waits.append) as client:
        with pytest.raises(CallError, match="404"):
            client.regenerate(SEQUENCES, "garden")
        with pytest.raises(CallError, match="422"):
            client.regenerate(SEQUENCES, "kitchen", colour="red")
    assert waits == []


def test_a_key_that_may_not_is_told_so_at_once(serve, tmp_path):
    add_key(tmp_path / "keys", AccessKey("shop", frozenset({KeyScope.JOBS}), hash_of(b"secret")))
    url = serve(api_keys_file=tmp_path / "keys")

    with TaesarClient(url, "secret") as client, pytest.raises(CallError, match="lacks the scope regenerate"):
        client.regenerate(SEQUENCES, "kitchen")
    with TaesarClient(url) as client, pytest.raises(CallError, match="401"):
        client.models()


def test_a_service_that_does_not_answer_is_tried_as_often_as_said():
    waits = []
    with TaesarClient(f"http://127.0.0.1:{free_port()}", patience=Patience(4), sleep=waits.append) as client:
        with pytest.raises(CallError, match="does not answer"):
            client.models()
        with pytest.raises(CallError):
            client.cancel("0" * 32)
    assert len(waits) == 3


class Breaking(threading.Thread):
    """A server that sends *answers*, one a connection, and closes: what breaks off is a real connection."""

    def __init__(self, *answers):
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.start()

    def run(self):
        with self._socket:
            for answer in self._answers:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PARQUET = b"PAR1 all of it PAR1"
WHOLE = CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(PARQUET), PARQUET)


def test_a_download_that_breaks_off_is_asked_for_again(tmp_path):
    half = CHUNKED + b"%x\r\n%s" % (len(PARQUET), PARQUET[:9])
    server = Breaking(half, b"HTTP/1.1 503 Gone\r\nContent-Length: 0\r\n\r\n", WHOLE)
    with TaesarClient(server.url, sleep=lambda _: None) as client:
        assert client.download("1", tmp_path / "out").read_bytes() == PARQUET


def test_what_never_comes_whole_leaves_no_file_and_what_was_there(tmp_path):
    (tmp_path / "out").write_bytes(b"of yesterday")
    half = CHUNKED + b"%x\r\n%s" % (len(PARQUET), PARQUET[:9])
    short = CHUNKED + b"9\r\n%s\r\n0\r\n\r\n" % PARQUET[:9]
    for answers in ([half, half], [short]):
        server = Breaking(*answers)
        client = TaesarClient(server.url, patience=Patience(attempts=2), sleep=lambda _: None)
        with client, pytest.raises(DamagedDownloadError):
            client.download("1", tmp_path / "out")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of yesterday"]


def test_waits_grow_with_a_random_part_and_never_undercut_what_was_asked_for():
    patience = Patience(first_seconds=1)
    asked = httpx.Response(429, headers={"Retry-After": "30"})

    for attempt, longest in ((1, 1), (2, 2), (5, 16), (20, 60)):
        waits = [patience.wait_seconds(attempt, None) for _ in range(200)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 100
    assert all(30 <= patience.wait_seconds(1, asked) <= 30.5 for _ in range(200))


def test_the_client_needs_httpx_alone():
    """Importing it loads nothing of the service, whose packages a machine that only calls it does not have."""
    code = "import sys, app.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()

    assert {"torch", "fastapi", "pydantic", "numpy", "polars"}.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith(("app.", "models"))] == ["app.client"]

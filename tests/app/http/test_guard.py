"""Connections of a real server: who sends or reads too slowly is cut off, and a newcomer always gets in."""

import contextlib
import http.client
import json
import socket
import threading
import time

import httpx
import pytest

from app.http.application import create_app
from app.main import Server
from app.settings import Settings
from tests.services import eventually

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
BODY_HEAD = (
    b"POST /regenerate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture
def listening(bundle, tmp_path):
    """A function settings -> port of a real server in a thread."""
    with contextlib.ExitStack() as stack:

        def start(**settings):
            chosen = Settings(bundle=bundle.directory, device="cpu", data=tmp_path, port=0, **settings)
            server = Server(create_app(chosen), chosen)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            eventually(lambda: server.started)

            def stop():
                server.should_exit = True
                thread.join(20)
                assert not thread.is_alive()

            stack.callback(stop)
            return server.servers[0].sockets[0].getsockname()[1]

        yield start


@pytest.fixture
def connect():
    """A function (port, what to send) -> socket, which is closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect(port, content=b"", *, receive_buffer=None):
            client = stack.enter_context(socket.socket())
            if receive_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):  # it may have been refused half way
                client.sendall(content)
            return client

        yield connect


def rest_of(client):
    """Everything until the server closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            content += part
    return content


@pytest.mark.parametrize(
    "begun",
    [HALF_HEAD, BODY_HEAD % 100 + b"{", BODY_HEAD % 2_000_000 + b" " * 500_000],
    ids=["head", "body", "fast at first"],
)
def test_half_a_request_is_closed(listening, connect, begun):
    port = listening(slow_client_seconds=1)

    assert rest_of(connect(port, begun)) == b""


def test_a_connection_that_sends_nothing_is_closed(listening, connect):
    port = listening(slow_client_seconds=1)

    assert rest_of(connect(port)) == b""


def test_a_connection_that_was_answered_may_rest_between_two_requests(listening, connect):
    """Load balancers keep connections for a minute, and one that we close first may lose the request on its way."""
    port = listening(slow_client_seconds=1)
    client = http.client.HTTPConnection("127.0.0.1", port)
    statuses, sockets = [], []
    for seconds in (3.5, 0):
        client.request("GET", "/healthz")
        answer = client.getresponse()
        answer.read()
        statuses.append(answer.status)
        sockets.append(client.sock)
        time.sleep(seconds)
    client.close()

    assert statuses == [200, 200]
    assert sockets[0] is sockets[1] is not None


def test_a_connection_that_rests_too_long_is_closed(listening, connect):
    port = listening(keep_alive_seconds=1)
    client = connect(port, GET)

    assert rest_of(client).startswith(b"HTTP/1.1 200 ")


def test_half_of_a_second_request_is_closed(listening, connect):
    port = listening(slow_client_seconds=1)
    client = connect(port, GET)
    first = client.recv(65536)
    client.sendall(HALF_HEAD)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1" not in rest_of(client)  # of the first answer perhaps, its head had come alone


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(GET + HALF_HEAD, b"200", id="half of another came along"),
        pytest.param(BODY_HEAD.replace(b"/json", b"/xml") % 100 + b"{", b"415", id="its body never ends"),
    ],
)
def test_what_was_answered_but_not_sent_to_its_end_does_not_rest(listening, connect, sent, status):
    answer = rest_of(connect(listening(slow_client_seconds=1), sent))

    assert answer.split(b" ")[1] == status
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_trickles_is_cut_off_although_each_byte_comes_soon(listening, connect):
    port = listening(slow_client_seconds=1, min_bytes_per_second=1000)
    client = connect(port, BODY_HEAD % 100_000)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() < began + 15:
            client.sendall(b" ")
            time.sleep(0.05)

    assert time.monotonic() < began + 15


def test_a_body_that_gets_on_may_take_many_spans(listening, connect, payload):
    port = listening(slow_client_seconds=1, min_bytes_per_second=10)
    body = json.dumps(payload("b01 k02")).encode().ljust(400)
    client = connect(port, BODY_HEAD % len(body))
    for start in range(0, len(body), 20):
        client.sendall(body[start : start + 20])
        time.sleep(0.2)

    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_does_not_read_is_cut_off(listening, connect, payload):
    port = listening(slow_client_seconds=1, max_sequences_per_request=3000, max_queued_sequences=3000)
    body = json.dumps(payload(*["b01 f02 " * 5] * 3000, explain=True)).encode()
    client = connect(port, BODY_HEAD % len(body) + body, receive_buffer=4096)
    client.settimeout(60)
    client.recv(1, socket.MSG_PEEK)
    time.sleep(6)  # the answer, megabytes, waits for its reader; the kernel's buffers hold less
    answer = rest_of(client)
    head, _, content = answer.partition(b"\r\n\r\n")
    length = int(dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])[b"content-length"])

    # Left to itself the system takes megabytes for each such client
    assert len(content) < 500_000 < length


def test_a_newcomer_gets_in_however_many_hold_half_a_request(listening, connect, payload):
    """Of all who have brought nothing the oldest makes room; who is being answered stays."""
    port = listening(max_connections=16)
    kept = http.client.HTTPConnection("127.0.0.1", port)
    kept.request("GET", "/healthz")
    first = kept.getresponse()
    first.read()
    half = [connect(port, HALF_HEAD if n % 2 else BODY_HEAD % 100 + b"{") for n in range(60)]
    answer = httpx.post(f"http://127.0.0.1:{port}/regenerate", json=payload("b01 k02"))
    kept.request("GET", "/healthz")
    again = kept.getresponse()
    again.read()
    kept.close()
    closed = [client for client in half[:40] if rest_of(client) == b""]

    assert answer.status_code == 200
    assert (first.status, again.status) == (200, 200)
    assert len(closed) == 40


def test_bodies_under_way_share_one_bound_and_the_slowest_gives_way(listening, connect, payload):
    megabyte = 1024 * 1024
    port = listening(max_receiving_bytes=8 * megabyte)
    slow = [connect(port, BODY_HEAD % (2 * megabyte) + b" " * megabyte) for _ in range(7)]
    time.sleep(2.5)  # now they are known to be slow
    body = json.dumps(payload("b01 k02")).encode().ljust(4 * megabyte)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"http://127.0.0.1:{port}/regenerate", content=body, headers=headers, timeout=20)
    for client in slow:
        client.settimeout(0.2)
    refused = []
    for client in slow:
        with contextlib.suppress(TimeoutError):
            refused.append(client.recv(100))

    assert answer.status_code == 200
    assert 3 <= len(refused) <= 4
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)


@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""])
def test_a_client_that_sends_all_of_a_refused_body_before_it_reads_gets_the_answer(listening, connect, close):
    port = listening(max_body_bytes=16 * 1024 * 1024)
    body = b'{"target_domain":"kitchen","sequences":[' + b'{"items":[]},' * 600_000
    head = (BODY_HEAD % len(body)).replace(b"Host:", close + b"Host:")
    client = connect(port)
    client.sendall(head + body)

    assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def chunked(content, size):
    parts = (content[start : start + size] for start in range(0, len(content), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


CHUNKED_HEAD = (
    b"POST /regenerate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("size", "status"),
    [pytest.param(1, b"400", id="a byte each"), pytest.param(40, b"200", id="a line of a log each")],
)
def test_a_body_in_chunks_of_next_to_nothing_is_refused(listening, connect, payload, size, status):
    """Each chunk is an event of its own, on the loop that everybody shares."""
    body = json.dumps(payload("b01 k02")).encode().ljust(200_000)
    client = connect(listening(), CHUNKED_HEAD + chunked(body, size))

    assert client.recv(100).split(b" ")[1] == status


def test_a_body_that_is_typed_is_read(listening, connect, payload):
    """However small its parts are: it is read, as long as there are not many."""
    body = chunked(json.dumps(payload("b01 k02")).encode(), 1)
    client = connect(listening(), CHUNKED_HEAD)
    for start in range(0, len(body), 60):
        client.sendall(body[start : start + 60])
        time.sleep(0.001)

    assert client.recv(100).split(b" ")[1] == b"200"


def test_what_is_no_http_in_the_middle_of_a_body_has_one_answer(listening, connect, caplog):
    """The application, whose answer it would have been, does not fail over it."""
    client = connect(listening(), CHUNKED_HEAD.replace(b"/regenerate", b"/models") + b"zz\r\n")
    answer = rest_of(client)

    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert [record.message for record in caplog.records if "Exception in ASGI" in record.message] == []

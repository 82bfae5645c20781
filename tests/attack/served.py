"""A service to attack: its process, what it uses, and clients that behave badly."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.chaos.cluster import Cluster

KILOBYTES_PER_MEGABYTE = 1024


@contextlib.contextmanager
def served(folder: Path, bundle: Path, inputs: Path, **settings: object) -> Iterator[Cluster]:
    """One ready ``taesar serve`` that works on jobs itself, with these settings."""
    chosen = {f"TAESAR_{name.upper()}": str(value) for name, value in settings.items()}
    with Cluster(folder, bundle, inputs, num_workers=0, settings=chosen) as cluster:
        yield cluster


def process_id(cluster: Cluster) -> int:
    """Of the API."""
    return cluster.apis[0].pid


def is_alive(cluster: Cluster) -> bool:
    """Whether the API's process is still the one that was started."""
    return cluster.apis[0].poll() is None


def megabytes(process: int, what: str = "VmRSS") -> float:
    """Memory of a process now; its peak by "VmHWM"."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / KILOBYTES_PER_MEGABYTE
    raise ValueError(what)


def num_descriptors(process: int) -> int:
    """Open files and connections of a process."""
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def children(process: int) -> list[int]:
    """Processes that *process* started: the model's among them."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def connect(port: int, content: bytes = b"", *, receive_buffer: int | None = None) -> socket.socket:
    """A connection over which *content* was sent, as far as the service took it."""
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    with contextlib.suppress(OSError):
        client.sendall(content)
    return client


def post_head(path: str, length: int) -> bytes:
    """The head of a JSON request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def status_of(client: socket.socket) -> int | None:
    """The status of the answer that comes over *client*; None when there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(client.recv(65536).split(b" ", 2)[1])
    return None


def is_closed(client: socket.socket) -> bool:
    """Whether the service has closed the connection."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class Bystander:
    """Somebody who asks for /healthz all the time, and how long each answer took."""

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self.failures: collections.Counter[str] = collections.Counter()
        self._url = f"http://127.0.0.1:{port}/healthz"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def slowest(self) -> float:
        """Seconds."""
        return max(self.seconds, default=float("inf"))

    def _ask(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                answer = httpx.get(self._url, timeout=60, trust_env=False)
                if answer.status_code != 200:
                    self.failures[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                self.failures[type(error).__name__] += 1
            self.seconds.append(time.monotonic() - began)
            time.sleep(0.02)


def log_lines(cluster: Cluster) -> list[dict[str, object]]:
    """What the service wrote, line by line; what is no JSON under "text"."""
    lines: list[dict[str, object]] = []
    for line in (cluster.folder / "taesar.log").read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            lines.append({"text": line})
    return lines


def log_bytes(cluster: Cluster) -> int:
    """How much the service wrote."""
    return os.path.getsize(cluster.folder / "taesar.log")  # noqa: PTH202

"""``taesar serve`` in a process of its own, for a browser to look at: screenshots and measurements."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.command_line import COMMAND
from tests.services import free_port

READY_SECONDS = 180


@contextlib.contextmanager
def page_server(bundle: Path, *, data: Path, reports: Path | None = None) -> Iterator[str]:
    """The address of a server of *bundle* without keys; it ends with the block."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAESAR_")}
    environment |= {"TAESAR_DATA": str(data), "TAESAR_DEVICE": "cpu"}
    if reports is not None:
        environment["TAESAR_REPORTS"] = str(reports)
    command = [*COMMAND, "serve", "--bundle", str(bundle), "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    address = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/readyz", trust_env=False).is_success:
                    break
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)

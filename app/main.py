"""The process that serves: uvicorn around the application, from the first request to the last."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from app.http.application import Application, create_app
from app.http.guard import BACKLOG, ConnectionGuard, ConnectionLimits, quieten_accepting
from app.runtime.logs import configure_logging, logger
from app.runtime.memory import return_large_blocks, settle_heap
from app.runtime.shutdown import SPARE_SECONDS, Shutdown, end_within
from app.runtime.tracing import configure_tracing, stop_tracing
from app.settings import Settings
from app.storage.private import make_private_folder
from models.bundle import read_version

log = logger(__name__)


LOOK_TICKS = 10  # of a tenth of a second
# After the signal to stop: who has connected and sent by then is read before nobody is listened to any more
LAST_CALL_SECONDS = 0.25
# What the system takes of an answer for a client that does not read; left to itself it takes megabytes of each
SEND_BUFFER_BYTES = 128 * 1024
# A request passes from thread to thread, and waits for each turn so long while another thread computes: beside
# downloads of a dictionary its p99 was 47 ms with Python's 5 ms, and 28 with this
SWITCH_SECONDS = 0.0005


class Server(uvicorn.Server):
    """
    uvicorn's server, whose connections are guarded, and which says when it begins to stop: the lifespan ends only after
    every answer has. After a signal its process ends in time, whatever its threads are stuck in.

    Args:
        app: to serve.
        settings: where to listen, and the bounds on connections.
    """

    def __init__(self, app: Application, settings: Settings) -> None:
        self._guard = ConnectionGuard(ConnectionLimits.of(settings))
        self._shutdown: Shutdown = app.state.shutdown
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=self._guard.new_connection,  # type: ignore[arg-type]  # it is called like the class it stands for
                ws="none",
                backlog=BACKLOG,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=settings.shutdown_seconds,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        quieten_accepting(asyncio.get_running_loop())
        await super().startup(sockets)
        for listening in self.servers:
            for one in listening.sockets:  # what is accepted by it is so, too
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections; whether to stop."""
        if counter % LOOK_TICKS == 0:
            self._guard.look(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; at a second, stop at once."""
        if not self.should_exit:
            end_within((self.config.timeout_graceful_shutdown or 0) + SPARE_SECONDS)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Read what has been sent, stop listening, end what follows along, wait for the other answers."""
        self._shutdown.begin()
        await asyncio.sleep(LAST_CALL_SECONDS)
        await super().shutdown(sockets)


def serve(settings: Settings) -> None:
    """
    Serve until SIGTERM or SIGINT, then finish what was accepted and return.

    One process for HTTP and one for each loaded model, which uses every core; a second server would hold a second copy
    of the networks.

    Raises:
        ExposedError: without keys, on an address that others reach.
        BundleError: the first bundle cannot be loaded; nothing was served.
        TracingMissingError: traces are asked for, and what sends them is not installed.
        OSError: the address cannot be listened on, or another server works on the jobs of TAESAR_DATA.
    """
    configure_logging(settings.log_level)
    return_large_blocks()
    if settings.bundle is not None:
        read_version(settings.bundle)  # before anything is started: a wrong folder is the commonest mistake
    settings.refuse_exposure()
    if not settings.asks_for_keys():
        log.warning("authentication_off", reason="no API key is set")
    configure_tracing(settings.otlp_endpoint, "api")
    app = create_app(settings)
    server = Server(app, settings)
    settle_heap()
    sys.setswitchinterval(SWITCH_SECONDS)
    keeps_own_jobs = settings.redis_url is None and settings.database_url is None
    try:
        with lock_folder(settings.data) if keeps_own_jobs else contextlib.nullcontext():
            server.run()
    except SystemExit as error:
        if app.state.startup_error is None:  # uvicorn has logged the system's reason
            raise OSError(
                f"{settings.host}:{settings.port} cannot be listened on; --port names another port"
            ) from error
    stop_tracing()
    if isinstance(app.state.startup_error, Exception):
        # What uvicorn only logs and turns into an exit code is told to the caller, who can say it in a line
        raise app.state.startup_error


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """
    Keep *folder* for this process until the block ends or the process does, however it does.

    Without Redis a server takes every unfinished job in its database for its own: two of them would do each job twice.

    Raises:
        OSError: another process holds it.
    """
    make_private_folder(folder)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"another `taesar serve` works on the jobs of {folder}; TAESAR_DATA names another folder, and with "
                "TAESAR_REDIS_URL and TAESAR_DATABASE_URL many processes share the work"
            ) from error
        yield

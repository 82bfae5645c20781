"""
Real Redis and PostgreSQL for tests, benchmarks and ``make chaos``: each server is started by us, on a free port, in a
folder of its own, and can be killed and started again on the same data.

Where a server's program is missing: a local run skips with the reason, a run under CI fails (``require``).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import redis

from tests.silent_skips import is_ci

START_SECONDS = 60


class ServiceMissingError(Exception):
    """A server's program is not installed."""


def require(error: Exception) -> None:
    """Skip the test that needs a program that is missing; under CI fail instead, so that no suite passes without it."""
    if is_ci():
        pytest.fail(f"{error} (CI must run .ci/install-tools)", pytrace=False)
    pytest.skip(str(error))


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Wait until *condition* holds; an AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that another user can reach; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="taesar-services-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@dataclass
class RedisServer:
    """A redis-server with an append-only file in *folder*."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For TAESAR_REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it on the data that is there; returns when it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise ServiceMissingError("redis-server is not installed")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "no"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis(port=self.port) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


@dataclass
class PostgresServer:
    """
    A PostgreSQL cluster in *folder*.

    It refuses to run as root, so root starts it as the user postgres, who must be able to reach *folder*: pytest's own
    folders are for their owner only (``reachable_folder``).
    """

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """For TAESAR_DATABASE_URL."""
        return f"postgresql://taesar@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it on the data that is there, or on a new cluster; returns when it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._create(data)
        command = [_postgres_program("postgres"), "-D", str(data), "-p", str(self.port), "-k", str(self.folder)]
        # Without fsync a killed server loses nothing either: only the machine's own end would take what it wrote.
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=400", "-c", "fsync=off"]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_as_postgres())
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            assert self.process.poll() is None, (self.folder / "postgres.log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)

    def create_database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def kill(self) -> None:
        """
        kill -9 of every process, as a power cut would.

        The postmaster's children leave its shared memory by themselves when it dies; they are killed too.
        """
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()
        self.process = None
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Neither answering nor refusing inside the block: every process is stopped, connections stay open."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        processes = [self.process.pid, *map(int, children)]
        self._signal(processes, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(processes, signal.SIGCONT)

    @staticmethod
    def _signal(processes: list[int], number: int) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def stop(self) -> None:
        """End it at once, if it runs; what it has not written stays in its log for the next start."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
            self.process = None

    def _create(self, data: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        command = [_postgres_program("initdb"), "-D", str(data), "-U", "taesar", "--auth=trust", "--encoding=UTF8"]
        command += ["--locale=C.UTF-8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, **_as_postgres())


def _postgres_program(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise ServiceMissingError(f"PostgreSQL ({name}) is not installed")
    return str(versions[-1])


def _as_postgres() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    owner = pwd.getpwnam("postgres")
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

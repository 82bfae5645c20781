"""The service as processes: API, workers, Redis and PostgreSQL, each of which can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.command_line import COMMAND
from tests.services import PostgresServer, RedisServer, free_port

START_SECONDS = 300
TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Outcome:
    """Everything that must not depend on what was killed."""

    state: str
    counts: dict[str, int]
    result: bytes
    mapping: bytes


@dataclass
class Cluster:
    """
    A service under *folder*.

    Args:
        folder: that any user can reach.
        bundle: the model.
        inputs: folder that jobs may read.
        num_workers: worker processes; with 0 the API works by itself, on SQLite (embedded mode).
        num_apis: replicas of the API, each with a client of its own; ``client`` is the first one's.
        settings: further TAESAR_ settings.
    """

    folder: Path
    bundle: Path
    inputs: Path
    num_workers: int = 3
    num_apis: int = 1
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = [free_port() for _ in range(self.num_apis)]
        self.port = self.ports[0]
        self.redis = RedisServer(self.folder / "redis")
        self.postgres = PostgresServer(self.folder / "postgres")
        self.apis: dict[int, subprocess.Popen[bytes]] = {}
        self.workers: list[subprocess.Popen[bytes]] = []
        self.clients = [httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) for port in self.ports]
        self.client = self.clients[0]

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.num_workers:
                self.redis.start()
                self.postgres.start()
                self._taesar("migrate").wait()
            for index in range(self.num_apis):
                self.start_api(index)
            self.workers = [self._taesar("worker") for _ in range(self.num_workers)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.workers, *self.apis.values()]:
            process.kill()
            process.wait()
        self.redis.stop()
        self.postgres.stop()
        for client in self.clients:
            client.close()

    def start_api(self, index: int = 0) -> None:
        """Start a replica of the API; returns when it is alive."""
        self.apis[index] = self._taesar("serve", TAESAR_PORT=str(self.ports[index]))
        self._until_answered("/healthz", index)

    def kill_api(self, index: int = 0) -> None:
        """kill -9."""
        self.apis[index].kill()
        self.apis[index].wait()

    def restart_api(self, index: int = 0) -> None:
        """kill -9, and start again."""
        self.kill_api(index)
        self.start_api(index)

    def restart_worker(self, index: int) -> None:
        """kill -9, and start again."""
        self.workers[index].kill()
        self.workers[index].wait()
        self.workers[index] = self._taesar("worker")

    def restart_redis(self) -> None:
        """kill -9, and start again on its append-only file."""
        self.redis.kill()
        self.redis.start()

    def restart_postgres(self) -> None:
        """kill -9 of all its processes, and start again: it recovers from its log."""
        self.postgres.kill()
        self.postgres.start()

    def submit(self, path: Path, target: str) -> str:
        """Submit a job; its id."""
        answer = self.client.post("/jobs", json={"target_domain": target, "source_uri": f"file://{path}"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as the API tells it; None of the restarts may make it a 404."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = self.client.get(f"/jobs/{job_id}")
                assert answer.status_code in (200, 503), answer.text
                if answer.status_code == 200:
                    found: dict[str, Any] = answer.json()
                    return found
            assert time.monotonic() < deadline, "the API does not answer"
            time.sleep(0.05)

    def wait(self, job_id: str, seconds: float) -> dict[str, Any]:
        """The job, once it has ended."""
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] not in TERMINAL:
            assert time.monotonic() < deadline, f"not ended after {seconds:g} s: {job}"
            time.sleep(0.1)
        return job

    def outcome(self, job_id: str) -> Outcome:
        """What an ended job left behind."""
        job = self.job(job_id)
        mapping = self.client.get(
            f"/mappings/{job['target_domain']}",
            params={"job_id": job_id},
            headers={"Accept": "application/x-ndjson"},
        )
        result = self.client.get(f"/jobs/{job_id}/result", params={"format": "parquet"})
        return Outcome(job["state"], job["counts"], result.content, mapping.content)

    def log_tail(self) -> str:
        """The end of what the processes wrote."""
        return (self.folder / "taesar.log").read_text(errors="replace")[-4000:]

    def _taesar(self, command: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = dict(os.environ) | {
            "TAESAR_BUNDLE": str(self.bundle),
            "TAESAR_DEVICE": "cpu",
            "TAESAR_DATA": str(self.folder / "data"),
            "TAESAR_INPUT_ROOTS": f"file://{self.inputs}",
            "OMP_NUM_THREADS": "1",
        }
        if self.num_workers:
            environment |= {"TAESAR_DATABASE_URL": self.postgres.url(), "TAESAR_REDIS_URL": self.redis.url}
        with (self.folder / "taesar.log").open("ab") as log:
            program = [*COMMAND, command]
            return subprocess.Popen(program, env=environment | self.settings | variables, stdout=log, stderr=log)

    def _until_answered(self, path: str, index: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.clients[index].get(path).status_code == 200:
                    return
            assert self.apis[index].poll() is None, self.log_tail()
            assert time.monotonic() < deadline, "the API does not start"
            time.sleep(0.1)

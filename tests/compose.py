"""
docker-compose.yml without Docker: read as Compose reads it, its services started as processes of this machine.

Commands, environment, start order and health checks are the file's own. What a container would have to itself is
given from outside: host names become ports of 127.0.0.1, volumes and secrets become folders and files. PostgreSQL is
``tests.services``', since making its cluster is its image's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import psycopg
import yaml
from psycopg import sql

from tests.services import PostgresServer, ServiceMissingError, free_port

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
SAMPLE = ROOT / "examples" / "food-kitchen-sample.csv.gz"

IMAGE_USER = 10001
HEALTHY_SECONDS = 180
DONE_SECONDS = 600
STOP_SECONDS = 40

# ${NAME}, ${NAME:-default}, ${NAME-default}, ${NAME:+replacement}; $$ is a dollar sign
# A default may hold another variable, as Compose allows, but not one that holds a third.
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-+])((?:[^{}]|\{[^{}]*\})*))?\})")


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """*text* with Compose's variables filled in."""

    def value(match: re.Match[str]) -> str:
        dollar, name, operator, other = match.groups()
        if dollar:
            return "$"
        given = variables.get(name)
        if operator in (":-", "-"):
            use_given = bool(given) if operator == ":-" else given is not None
            return str(given) if use_given else interpolate(other, variables)
        if operator == ":+":
            return other if given else ""
        return given or ""

    return _VARIABLE.sub(value, text)


def defaults_of(text: str) -> list[tuple[str, str]]:
    """(variable, its default) of every variable of *text* that has one."""
    found = [match for match in _VARIABLE.finditer(text) if match[3] in (":-", "-")]
    inside = [pair for match in found for pair in defaults_of(match[4])]
    return [(match[2], interpolate(match[4], {})) for match in found] + inside


def variables_of(text: str) -> set[str]:
    """Names of the variables that *text* asks for."""
    found = list(_VARIABLE.finditer(text))
    inside = {name for match in found for name in variables_of(match[4] or "")}
    return {match[2] for match in found if match[2]} | inside


@dataclass(frozen=True)
class Mount:
    """What a container sees at the path *inside*: the volume or the host's path *outside*."""

    inside: str
    outside: str
    read_only: bool


@dataclass(frozen=True)
class Service:
    """
    One service of the file, variables filled in.

    Args:
        dependencies: service -> the condition under which this one starts.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str]
    dependencies: dict[str, str]
    health: tuple[str, ...]
    mounts: tuple[Mount, ...]
    profiles: tuple[str, ...]

    def outside(self, inside: str) -> str:
        """What is mounted at a path of the container."""
        return next(mount.outside for mount in self.mounts if mount.inside == inside)


def read_compose(variables: Mapping[str, str], path: Path = COMPOSE) -> dict[str, Service]:
    """Every service of the file; *variables* are those of the environment and of .env."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    filled = _filled(document, variables)
    files = {name: secret["file"] for name, secret in filled["secrets"].items()}
    return {name: _service(name, entry, files) for name, entry in filled["services"].items()}


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return interpolate(node, variables) if isinstance(node, str) else node


def _service(name: str, entry: dict[str, Any], secret_files: Mapping[str, str]) -> Service:
    mounts = []
    for volume in entry.get("volumes", []):
        source, target = volume.removesuffix(":ro").rsplit(":", 1)
        mounts.append(Mount(target, source, volume.endswith(":ro")))
    for secret in entry.get("secrets", []):
        mounts.append(Mount(f"/run/secrets/{secret}", secret_files[secret], read_only=True))
    check = entry.get("healthcheck", {}).get("test", ["CMD"])
    assert check[0] == "CMD", f"{name}: a health check without a shell is expected"
    return Service(
        name=name,
        image=entry["image"],
        command=tuple(entry.get("command", ())),
        environment=dict(entry.get("environment", {})),
        dependencies={other: rule["condition"] for other, rule in entry.get("depends_on", {}).items()},
        health=tuple(check[1:]),
        mounts=tuple(mounts),
        profiles=tuple(entry.get("profiles", ())),
    )


def start_order(services: Mapping[str, Service]) -> list[str]:
    """Names, each after all that it depends on."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{name} depends on itself"
        for other in services[name].dependencies:
            visit(other, (*above, name))
        if name not in order:
            order.append(name)

    for name in services:
        visit(name, ())
    return order


def image_environment() -> dict[str, str]:
    """What the Dockerfile's last stage puts into the environment."""
    last_stage = DOCKERFILE.read_text(encoding="utf-8").rsplit("\nFROM ", 1)[1].replace("\\\n", " ")
    lines = [line for line in last_stage.splitlines() if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split()[1:])


@dataclass(frozen=True)
class Run:
    """A command of this machine, and its whole environment."""

    arguments: list[str]
    environment: dict[str, str]


class Containers(Protocol):
    """How a command of our image is run."""

    def command(self, arguments: Sequence[str], environment: Mapping[str, str], mounts: Sequence[Mount]) -> Run:
        """What starts *arguments*, whose first is a program of the image; *mounts* name paths of this machine."""
        ...


@dataclass(frozen=True)
class HostProcesses:
    """
    Our image's commands as plain processes: this checkout, this interpreter.

    Args:
        sample: what stands for the sample that the image holds.
    """

    sample: Path = SAMPLE

    def command(self, arguments: Sequence[str], environment: Mapping[str, str], mounts: Sequence[Mount]) -> Run:
        """See ``Containers``; where the environment names a path inside, it names the one outside instead."""
        places = {mount.inside: mount.outside for mount in mounts}
        inside = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
        # A whole path, or the beginning of one, also in a URI: file:///input
        path = re.compile(rf"(?:(?<=://)|(?<![\w/]))(?:{inside})(?!\w)")
        values = {
            name: path.sub(lambda match: places[match[0]], value)
            for name, value in {**image_environment(), **environment}.items()
        }
        values["SAMPLE"] = str(self.sample)
        values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        inherited = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "HOME") if name in os.environ}
        return Run([str(ROOT / "deploy" / arguments[0]), *arguments[1:]], {**inherited, **values})


@dataclass(frozen=True)
class ImageProcesses:
    """
    Our image's commands in its own root file system, closed as the file closes its containers; needs to be root.

    Each has its own view of the mounts, as by `docker run --read-only`: what the image brought cannot be written, and
    /tmp is memory. It runs as the image's user and can never be another one.

    Args:
        root: where the image's root file system is mounted.
    """

    root: Path

    def command(self, arguments: Sequence[str], environment: Mapping[str, str], mounts: Sequence[Mount]) -> Run:
        """See ``Containers``."""
        root = shlex.quote(str(self.root))
        steps = ["set -e", f"mount --bind {root} {root}", f"mount --rbind /dev {root}/dev"]
        steps += [f"mount --rbind /proc {root}/proc", f"mount -t tmpfs -o size=64m,mode=1777 tmpfs {root}/tmp"]
        for mount in mounts:
            inside, outside = f"{root}{shlex.quote(mount.inside)}", shlex.quote(mount.outside)
            # Where it goes must be there; Docker makes it likewise
            make = "mkdir -p" if Path(mount.outside).is_dir() else f"mkdir -p {root}/run/secrets && touch"
            steps += [f"{make} {inside}", f"mount --bind {outside} {inside}"]
            steps += [f"mount -o remount,bind,ro {inside}"] if mount.read_only else []
        steps += [f"mount -o remount,bind,ro {root}"]
        user = ["setpriv", f"--reuid={IMAGE_USER}", f"--regid={IMAGE_USER}", "--clear-groups", "--no-new-privs"]
        values = [f"{name}={value}" for name, value in {**image_environment(), **environment}.items()]
        inner = [
            "chroot",
            str(self.root),
            *user,
            "--bounding-set=-all",
            "env",
            "-i",
            "-C",
            "/data",
            *values,
            *arguments,
        ]
        steps += [f"exec {shlex.join(inner)}"]
        return Run(["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(steps)], dict(os.environ))


@dataclass
class Topology:
    """
    The services that run without a profile, once each.

    Args:
        services: of ``read_compose``.
        containers: how our image's commands run.
        folder: of volumes and logs; another user must be able to reach it.
        replicas: service -> how many; one where it is missing.
    """

    services: dict[str, Service]
    containers: Containers
    folder: Path
    replicas: Mapping[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    processes: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    postgres: PostgresServer | None = None

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.ports['api']}"

    def up(self) -> None:
        """Start every service without a profile, each when its dependencies are as far as it asks."""
        self.services = {name: service for name, service in self.services.items() if not service.profiles}
        self.ports = {name: free_port() for name in ("api", "redis", "postgres")}
        for name in start_order(self.services):
            for other, condition in self.services[name].dependencies.items():
                self._wait(other, condition)
            self._start(name)

    def down(self) -> None:
        """End everything, the last started first; what does not end by SIGTERM is killed."""
        for name in reversed(self.started):
            for process in self.processes.get(name, []):
                if process.poll() is None:
                    process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self.postgres is not None:
            self.postgres.stop()

    def healthy(self, name: str) -> str | None:
        """None when the service's own health check passes, else what it said."""
        run = self._run(name, self.services[name].health)
        done = subprocess.run(run.arguments, env=run.environment, capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else f"{name}: exit {done.returncode}: {done.stdout}{done.stderr}"

    def wait_healthy(self, name: str, seconds: float = HEALTHY_SECONDS) -> None:
        """Return when the health check passes; fail with what it says and the service's log."""
        deadline = time.monotonic() + seconds
        while (reason := self.healthy(name)) is not None:
            assert all(process.poll() is None for process in self.processes.get(name, [])), self.log(name)
            assert time.monotonic() < deadline, f"{reason}\n{self.log(name)}"
            time.sleep(0.3)

    def volume(self, name: str) -> Path:
        """Where a volume's files lie; made as Docker makes one, owned by the image's user."""
        place = self.folder / "volumes" / name
        if not place.exists():
            place.mkdir(parents=True)
            if os.geteuid() == 0:
                os.chown(place, IMAGE_USER, IMAGE_USER)
        return place

    def log(self, name: str) -> str:
        """What the service has written."""
        return f"--- {name}\n{self._log_path(name).read_text(errors='replace')}"

    def _wait(self, name: str, condition: str) -> None:
        if condition == "service_healthy":
            self.wait_healthy(name)
        elif condition == "service_completed_successfully":
            (process,) = self.processes[name]
            assert process.wait(DONE_SECONDS) == 0, self.log(name)
        else:
            raise AssertionError(f"unknown condition {condition}")

    def _start(self, name: str) -> None:
        self.started.append(name)
        if name == "postgres":
            self.postgres = _postgres_of(self.services[name], self.folder / "postgres", self.ports["postgres"])
            return
        service = self.services[name]
        # The entry point of the image goes before the command, as a container would put it
        entry = () if name == "redis" else ("taesar-start",)
        run = self._run(name, (*entry, *service.command))
        with self._log_path(name).open("ab") as log:
            self.processes[name] = [
                subprocess.Popen(run.arguments, env=run.environment, stdout=log, stderr=log, cwd=self.folder)
                for _ in range(self.replicas.get(name, 1))
            ]

    def _run(self, name: str, arguments: Sequence[str]) -> Run:
        """*arguments* of the file for this service, as a command of this machine."""
        if name in ("redis", "postgres"):
            return self._server_command(name, arguments)
        environment = {key: self._address(value) for key, value in self.services[name].environment.items()}
        mounts = [replace(mount, outside=str(self._place(mount.outside))) for mount in self.services[name].mounts]
        return self.containers.command(arguments, environment, mounts)

    def _server_command(self, name: str, arguments: Sequence[str]) -> Run:
        if shutil.which(arguments[0], path=_server_path()) is None:
            raise ServiceMissingError(f"{arguments[0]} is not installed")
        environment = {**self.services[name].environment, "PATH": _server_path()}
        environment["PGPORT"] = str(self.ports["postgres"])
        program, *rest = arguments
        port = str(self.ports["redis"])
        if program == "redis-server":
            rest += ["--port", port, "--bind", "127.0.0.1", "--dir", str(self.volume("redis"))]
        if program == "redis-cli":  # its options come before its command
            rest = ["-p", port, *rest]
        return Run([program, *rest], environment)

    def _address(self, value: str) -> str:
        for host, port in (("redis", 6379), ("postgres", 5432)):
            value = re.sub(rf"\b{host}:{port}\b", f"127.0.0.1:{self.ports[host]}", value)
        if value == "9000":  # of every worker: 0 lets the system choose
            return "0"
        return str(self.ports["api"]) if value == "8000" else value

    def _place(self, source: str) -> Path:
        return Path(source).resolve() if source.startswith(("/", ".")) else self.volume(source)

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@contextlib.contextmanager
def running(topology: Topology) -> Iterator[Topology]:
    """*topology* up, and down at the end."""
    try:
        topology.up()
        yield topology
    finally:
        topology.down()


def _postgres_of(service: Service, folder: Path, port: int) -> PostgresServer:
    """A server with the user, the database and the password that the file asks for; the password is demanded."""
    environment = service.environment
    server = PostgresServer(folder, port)
    server.start()
    user, database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
    password = environment["POSTGRES_PASSWORD"] or Path(service.outside("/run/secrets/postgres_password")).read_text()
    server.create_database(database)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        literal = sql.Literal(password.strip())
        connection.execute(sql.SQL("ALTER USER {} PASSWORD {}").format(sql.Identifier(user), literal))
        (folder / "data" / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8")
        connection.execute("SELECT pg_reload_conf()")
    return server


def _server_path() -> str:
    newest_last = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    return os.pathsep.join([os.environ["PATH"], *map(str, reversed(newest_last))])


@dataclass(frozen=True)
class Answers:
    """The same sequences rewritten by a request and by a job, and the job's record."""

    online: list[dict[str, Any]]
    bulk: list[dict[str, Any]]
    job: dict[str, Any]


def rewrite_both_ways(client: httpx.Client, sequences: list[dict[str, Any]], target: str) -> Answers:
    """POST /regenerate, and the same as an uploaded job, to a running service; every answer must be a success."""
    answer = client.post("/regenerate", json={"target_domain": target, "sequences": sequences}).raise_for_status()
    lines = "".join(f"{json.dumps(sequence)}\n" for sequence in sequences)
    submitted = client.post("/jobs", data={"target_domain": target}, files={"file": ("mixed.ndjson", lines)})
    location = submitted.raise_for_status().headers["Location"]
    deadline = time.monotonic() + DONE_SECONDS
    while (job := client.get(location).raise_for_status().json())["finished_at"] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["state"] == "succeeded", job
    result = client.get(f"{location}/result", headers={"Accept": "application/x-ndjson"}).raise_for_status()
    return Answers(answer.json()["sequences"], [json.loads(line) for line in result.text.splitlines()], job)

"""
The topology of docker-compose.yml as plain processes: its commands, environment, start order and health checks, with
a real Redis and a PostgreSQL that demands the password.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from app.access.key_file import ALL_SCOPES, AccessKey, add_key, hash_of
from tests.compose import HostProcesses, Topology, read_compose, rewrite_both_ways, running
from tests.conftest import DOMAINS, write_interactions
from tests.services import ServiceMissingError, reachable_folder, require

SEQUENCES = [
    {
        "user_id": f"new-{user}",
        "items": [
            {"item_id": f"{domain}-{(user + step) % 20:02d}", "domain": domain}
            for step, domain in enumerate((*DOMAINS, *DOMAINS, *DOMAINS))
        ],
    }
    for user in range(12)
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def topology(folder: Path, variables: Mapping[str, str], **arguments) -> Topology:
    sample = write_interactions(folder / "interactions.csv")
    return Topology(read_compose(variables), HostProcesses(sample), folder, **arguments)


def test_with_nothing_configured_it_trains_first_then_serves_and_works_on_jobs(folder):
    """The health checks say yes while everything runs, and say why not when a part is gone."""
    try:
        with running(topology(folder, {})) as up, httpx.Client(base_url=up.url, timeout=60, trust_env=False) as client:
            up.wait_healthy("api")
            up.wait_healthy("worker")
            (model,) = client.get("/models").raise_for_status().json()["loaded"]
            answers = rewrite_both_ways(client, SEQUENCES, "kitchen")
            mapping = client.get("/mappings/kitchen").raise_for_status().json()

            assert up.started.index("postgres") < up.started.index("migrate") < up.started.index("api")
            assert {domain["name"] for domain in model["domains"]} == set(DOMAINS)
            assert [row["user_id"] for row in answers.bulk] == [row["user_id"] for row in SEQUENCES]
            assert answers.bulk == answers.online
            assert answers.job["counts"]["replaced"] + answers.job["counts"]["deleted"] > 0
            assert mapping["mappings"]

            (redis,) = up.processes["redis"]
            redis.kill()
            redis.wait()

            assert "127.0.0.1" in (up.healthy("worker") or "")
            assert "queue" in (up.healthy("api") or "")
        assert [process.returncode for process in up.processes["worker"]] == [0]
    except ServiceMissingError as error:
        require(error)


def test_with_a_bundle_and_secrets_as_files_it_serves_that_bundle_to_who_has_a_key(folder, bundle):
    """Two workers; no password and no key stands in the environment of a process that Compose starts."""
    keys, password = folder / "keys", folder / "password"
    for name in ("first", "second"):
        add_key(keys, AccessKey(name, ALL_SCOPES, hash_of(f"{name}-key".encode())))
    password.write_text("it's a secret:@/\n", encoding="utf-8")
    variables = {
        "BUNDLE": str(bundle.directory),
        "API_KEYS_FILE": str(keys),
        "POSTGRES_PASSWORD": "",
        "POSTGRES_PASSWORD_FILE": str(password),
    }
    try:
        with (
            running(topology(folder, variables, replicas={"worker": 2})) as up,
            httpx.Client(base_url=up.url, timeout=60, trust_env=False) as client,
        ):
            up.wait_healthy("api")
            up.wait_healthy("worker")
            refused = client.get("/models")
            client.headers["Authorization"] = "Bearer second-key"
            (model,) = client.get("/models").raise_for_status().json()["loaded"]
            answers = rewrite_both_ways(client, SEQUENCES, "books")

            assert refused.status_code == 401
            assert model["version"] == bundle.version
            assert answers.bulk == answers.online
        assert [process.returncode for process in up.processes["worker"]] == [0, 0]
        given = [value for service in up.services.values() for value in service.environment.values()]
        assert not any("secret" in value and not value.startswith("/run/secrets/") for value in given)
    except ServiceMissingError as error:
        require(error)

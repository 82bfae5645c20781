"""
The image itself, without a Docker engine: its processes run in its root file system as its user, in the topology of
docker-compose.yml, and answer the demo's request. ``make image-test`` builds the image and says where it is.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest

from tests.compose import (
    IMAGE_USER,
    SAMPLE,
    ImageProcesses,
    Topology,
    image_environment,
    read_compose,
    rewrite_both_ways,
)
from tests.compose import running as up_and_down
from tests.services import reachable_folder

BUILDAH = tuple(shlex.split(os.environ.get("TAESAR_TEST_BUILDAH", "")))
IMAGE = os.environ.get("TAESAR_TEST_IMAGE", "")
NUM_USERS = 40

pytestmark = [
    pytest.mark.skipif(not IMAGE, reason="no image: `make image-test` builds it and runs this"),
    pytest.mark.timeout(1800),
]


def buildah(*arguments: str) -> str:
    return subprocess.run([*BUILDAH, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def image_root() -> Iterator[Path]:
    """Where the root file system of a container of the image is mounted."""
    name = buildah("from", "--pull-never", IMAGE)
    yield Path(buildah("mount", name))
    buildah("umount", name)
    buildah("rm", name)


@pytest.fixture(scope="module")
def topology(image_root) -> Iterator[Topology]:
    """Everything up with nothing configured: trained on the bundled sample, two workers."""
    with reachable_folder() as folder:
        containers = ImageProcesses(image_root)
        with up_and_down(Topology(read_compose({}), containers, folder, replicas={"worker": 2})) as topology:
            topology.wait_healthy("api")
            topology.wait_healthy("worker")
            yield topology
        # Ended by SIGTERM, in order
        assert "worker_stopped" in topology.log("worker")
        assert "Application shutdown complete." in topology.log("api")


def demo_sequences() -> list[dict]:
    """Histories of the sample as the demo sends them, oldest item first."""
    table = pl.read_csv(SAMPLE, schema_overrides={"user": pl.String, "item": pl.String}).sort("timestamp")
    users = table["user"].unique().sort()[:NUM_USERS]
    items = {user: table.filter(pl.col("user") == user).select(item_id="item", domain="domain") for user in users}
    return [{"user_id": user, "items": history.to_dicts()} for user, history in items.items()]


def test_it_answers_the_demos_request_and_does_the_same_as_a_job(topology):
    with httpx.Client(base_url=topology.url, timeout=120, trust_env=False) as client:
        answers = rewrite_both_ways(client, demo_sequences(), "kitchen")
        mapping = client.get("/mappings/kitchen").raise_for_status().json()
        request = {"target_domain": "kitchen", "explain": True, "sequences": demo_sequences()[:1]}
        (explained,) = client.post("/regenerate", json=request).raise_for_status().json()["sequences"]

    assert answers.bulk == answers.online
    assert len(answers.online) == NUM_USERS
    assert sum(row["kept"] for row in answers.online) > 0
    assert sum(row["replaced"] for row in answers.online) > 0
    assert len(explained["steps"]) == explained["replaced"] + explained["deleted"]
    assert sum(line["count"] for line in mapping["mappings"]) > 0


def test_its_processes_are_not_root_and_see_only_its_files(topology):
    workers = [process.pid for process in topology.processes["worker"]]
    owners = [Path(f"/proc/{pid}").stat().st_uid for pid in workers]
    roots = [Path(f"/proc/{pid}/root").readlink() for pid in workers]

    assert owners == [IMAGE_USER, IMAGE_USER]
    assert all(root != Path("/") for root in roots)


def test_its_processes_write_where_the_file_lets_them_and_nowhere_else(topology):
    """The root file system is read-only to anybody, not to this user alone."""
    pids = [process.pid for name in ("api", "worker") for process in topology.processes[name]]
    mounts = [mounts_of(pid) for pid in pids]
    written = {path for found in mounts for path, options in found.items() if "rw" in options}

    assert all("ro" in found["/"] for found in mounts)
    assert {path for path in written if not path.startswith(("/dev", "/proc"))} == {
        "/tmp",
        "/data",
        "/bundles",
        "/scratch",
    }


def mounts_of(pid: int) -> dict[str, set[str]]:
    """What a process sees mounted, and how; of two at one place the later, which is what it sees."""
    lines = Path(f"/proc/{pid}/mounts").read_text(encoding="utf-8").splitlines()
    return {fields[1]: set(fields[3].split(",")) for fields in map(str.split, lines)}


def test_the_inner_loop_of_decoding_is_compiled_for_this_processor(topology):
    """Once, in the volume that the containers share."""
    libraries = list(topology.volume("data").glob(".cache/taesar/*.so"))

    assert len(libraries) == 1


def test_the_image_is_configured_as_compose_and_its_readers_expect():
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]

    assert config["User"] == f"{IMAGE_USER}:{IMAGE_USER}"
    assert config["Entrypoint"] == ["taesar-start"]
    assert config["Cmd"] == ["serve"]
    assert dict(pair.split("=", 1) for pair in config["Env"]) == image_environment()


def test_the_image_holds_no_trace_of_the_build(image_root):
    """Neither pip nor its configuration, nor tests and documents of this repository."""
    programs = {path.name for path in (image_root / "opt/taesar/bin").iterdir()}

    assert "taesar" in programs
    assert "pip" not in programs
    assert not (image_root / "etc/pip.conf").exists()
    assert not (image_root / "build").exists()

"""
``make chaos-activations``: a hundred activations under load over two API replicas and a worker; the last line is JSON.

Clients ask both replicas all the time; every answer must be one version's, whole. After every activation both replicas
must say the same within 5 s, and after a kill of one as well. The worker must have loaded what was activated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from models.bundle import describe_bundle
from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen, random_bundle
from tests.services import eventually, reachable_folder

AGREE_SECONDS = 5.0
SEQUENCES = 4
TARGET = "kitchen"


@dataclass
class Switched:
    """What came out: how often each version answered, what was wrong, and how long replicas disagreed at most."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    activations: int = 0
    longest_disagreement: float = 0.0
    after_restart: list[str] = field(default_factory=list)
    worker_followed: bool = False


def make_place(folder: Path, *, num_versions: int = 3) -> tuple[Path, Path, Path]:
    """(the first bundle, the folder of all, an input) under *folder*."""
    first, path = food_kitchen(folder, num_sequences=50, width=16)
    vocabulary = describe_bundle(first).vocabulary
    for seed in range(2, num_versions + 1):
        random_bundle(folder / "bundles" / f"seed-{seed}", vocabulary, 16, seed=seed)
    return first, folder / "bundles", path


def switch_under_load(cluster: Cluster, path: Path, *, activations: int, num_clients: int, seed: int) -> Switched:
    """Activate one version after the other, now and then two at once, while *num_clients* ask; see the module."""
    source = random.Random(seed)
    models = cluster.client.get("/models").json()
    versions = [models["active"], *models["available"]]
    body = _body(path)
    expected = _answers_of_all(cluster, versions, body)
    found = Switched()
    stop = threading.Event()
    urls = [str(client.base_url) for client in cluster.clients]
    clients = [
        threading.Thread(target=_ask, args=(urls[number % len(urls)], body, expected, found, stop))
        for number in range(num_clients)
    ]
    for client in clients:
        client.start()
    try:
        while found.activations < activations:
            _activate_somewhere(cluster, source, versions, found)
            found.longest_disagreement = max(found.longest_disagreement, _seconds_until_agreed(cluster))
    finally:
        stop.set()
        for client in clients:
            client.join()
    cluster.restart_api(len(cluster.clients) - 1)
    found.after_restart = _active(cluster)
    found.worker_followed = _worker_followed(cluster, found.after_restart[0])
    return found


def _body(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()[:SEQUENCES]
    return {"target_domain": TARGET, "explain": True, "sequences": [json.loads(line) for line in lines]}


def _answers_of_all(cluster: Cluster, versions: Sequence[str], body: dict[str, Any]) -> dict[str, Any]:
    answers = {}
    for version in versions:
        cluster.client.post(f"/models/{version}/activate").raise_for_status()
        answers[version] = cluster.client.post("/regenerate", json=body).raise_for_status().json()
    assert len({json.dumps(answer["sequences"]) for answer in answers.values()}) == len(versions)
    return answers


def _ask(url: str, body: dict[str, Any], expected: dict[str, Any], found: Switched, stop: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        while not stop.is_set():
            try:
                answer = client.post("/regenerate", json=body)
            except httpx.TransportError as error:
                found.wrong.append(f"{url}: {error!r}")
                continue
            if answer.status_code != 200:
                found.wrong.append(f"{url}: {answer.status_code} {answer.text}")
                continue
            version = answer.json()["model_version"]
            if answer.json() != expected[version]:
                found.wrong.append(f"{url}: an answer of {version} that is not its own")
            found.answers[version] += 1


def _activate_somewhere(cluster: Cluster, source: random.Random, versions: Sequence[str], found: Switched) -> None:
    """One activation, or one on every replica at the same moment."""
    at = source.sample(cluster.clients, source.choice([1, len(cluster.clients)]))

    def activate(client: httpx.Client, version: str) -> None:
        answer = httpx.post(client.base_url.join(f"models/{version}/activate"), timeout=60)
        if answer.status_code != 200:
            found.wrong.append(f"activation: {answer.status_code} {answer.text}")

    together = [threading.Thread(target=activate, args=(client, source.choice(versions))) for client in at]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    found.activations += len(together)


def _active(cluster: Cluster) -> list[str]:
    # New connections: between two looks the server may close one that is idle, just as it is used again.
    urls = [client.base_url.join("models") for client in cluster.clients]
    return [httpx.get(url, timeout=60).json()["active"] for url in urls]


def _seconds_until_agreed(cluster: Cluster) -> float:
    began = time.monotonic()
    while len(set(_active(cluster))) > 1:
        if time.monotonic() - began > 6 * AGREE_SECONDS:
            break
        time.sleep(0.05)
    return time.monotonic() - began


def _worker_followed(cluster: Cluster, version: str) -> bool:
    def is_loaded() -> bool:
        lines = (cluster.folder / "taesar.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return any('"model_loaded"' in line and version in line for line in lines)

    try:
        eventually(is_loaded, seconds=6 * AGREE_SECONDS)
    except AssertionError:
        return False
    return True


def main() -> int:
    """Switch; 1 when something that must hold did not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--activations", type=int, default=100)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    with reachable_folder() as folder:
        bundle, root, path = make_place(folder)
        settings = {"TAESAR_BUNDLE_ROOT": str(root)}
        places = {"num_workers": 1, "num_apis": 2, "settings": settings}
        with Cluster(folder / "cluster", bundle, path.parent, **places) as cluster:
            began = time.monotonic()
            found = switch_under_load(
                cluster,
                path,
                activations=arguments.activations,
                num_clients=arguments.clients,
                seed=arguments.seed,
            )
    agreed = found.longest_disagreement <= AGREE_SECONDS and len(set(found.after_restart)) == 1
    is_right = not found.wrong and agreed and found.worker_followed and len(found.answers) > 1
    print(  # noqa: T201
        json.dumps(
            {
                "activations": found.activations,
                "answers": sum(found.answers.values()),
                "versions": len(found.answers),
                "wrong": found.wrong[:10],
                "longest_disagreement_seconds": round(found.longest_disagreement, 2),
                "agree_after_restart": len(set(found.after_restart)) == 1,
                "worker_followed": found.worker_followed,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

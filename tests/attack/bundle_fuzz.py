"""Mutated bundles in the folder that POST /models/{version}/activate may load from."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import httpx

from models.bundle import read_version
from models.errors import BundleError
from tests.attack.fuzz import KEY, Tally, judge, mutated, rebuilt
from tests.chaos.cluster import Cluster

MANIFEST = "manifest.json"


def spoil(folder: Path, source: random.Random) -> None:
    """Change one file of the bundle *folder*; half the time the manifest is made to agree with it."""
    path = folder / source.choice([MANIFEST, MANIFEST, *sorted(file.name for file in folder.iterdir())])
    kind = source.randrange(10)
    if path.name == MANIFEST and kind < 6:
        path.write_text(json.dumps(rebuilt(json.loads(path.read_text()), source)))
        return
    content = path.read_bytes()
    if kind < 8:
        # Headers are at the beginning, footers at the end: there a change tells most
        part = source.choice([slice(0, 400), slice(max(0, len(content) - 400), None)])
        path.write_bytes(content[: part.start] + mutated(content[part], source) + content[part.stop or len(content) :])
    else:
        path.unlink()
        source.choice(
            [
                lambda: None,
                path.mkdir,
                lambda: os.mkfifo(path),
                lambda: path.symlink_to("/etc/passwd"),
                lambda: path.symlink_to(path),
            ]
        )()
        return
    if path.name != MANIFEST and source.random() < 0.5:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(manifest))


def fuzz_bundles(cluster: Cluster, bundle: Path, root: Path, *, seed: int, first: int, cases: int) -> Tally:
    """Put a spoilt copy of *bundle* into *root*, list the models and activate it, so many times."""
    tally = Tally()
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{cluster.port}", timeout=120, headers=headers) as client:
        for number in range(first, first + cases):
            shutil.copytree(bundle, root / ".hidden")
            spoil(root / ".hidden", random.Random(f"{seed}-bundle-{number}"))
            (root / ".hidden").rename(root / "spoilt")
            asked = [client.get("/models")]
            try:
                version = read_version(root / "spoilt")
            except (BundleError, OSError):
                version = None
            if version is not None:
                asked.append(client.post(f"/models/{version}/activate"))
            for answer in asked:
                tally.statuses[str(answer.status_code)] += 1
                if (reason := judge(cluster, answer.status_code, answer.content)) is not None:
                    tally.wrong.append(f"bundle {number}: {answer.request.url.path}: {reason}")
            shutil.rmtree(root / "spoilt")
    return tally

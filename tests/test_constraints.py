"""constraints.txt pins every package that `pip install -e '.[dev]'` brings, and those pins are what runs here."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}


def installed_closure() -> dict[str, str]:
    """Every package that ours needs, extras followed, with its version; a build's own mark (+cpu) left out."""
    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [("taesar", ("dev",))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = distribution(name)
        found[canonicalize_name(name)] = Version(package.version).public
        for requirement in map(Requirement, package.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))
    del found["taesar"]
    return found


def test_every_package_is_pinned_to_the_version_that_is_tested() -> None:
    """torch's CUDA libraries are the exception: each torch wheel pins its own."""
    closure = {
        name: version
        for name, version in installed_closure().items()
        if not name.startswith(("nvidia-", "cuda-")) and name != "triton"
    }
    pinned = pins()

    assert {"torch", "polars", "fastapi", "pytest"} <= closure.keys()
    assert {name: pinned.get(name) for name in closure} == closure

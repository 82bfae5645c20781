"""constraints.txt pins every package that `pip install -e '.[dev]'` brings, on every Python that we support."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The oldest one, Debian 12's, and its successors: markers of requirements ask for the whole version.
PYTHONS = ("3.11.0", "3.11.2", "3.11.3", "3.12.0", "3.13.0")


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}


def own_requirements() -> list[Requirement]:
    """Ours, extras included; read from the source, since what is installed may be of an earlier edit."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts]


def applies(requirement: Requirement, python: str, extras: tuple[str, ...]) -> bool:
    versions = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**versions, "extra": extra}) for extra in ("", *extras))


def requirements_on(python: str) -> dict[str, list[Requirement]]:
    """
    Every package that ours needs on *python*, extras followed, with what is asked of its version.

    Without torch's CUDA libraries, of which each torch wheel pins its own. What a package that is not installed here
    needs is unknown.
    """
    found: dict[str, list[Requirement]] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [requirement for requirement in own_requirements() if applies(requirement, python, ())]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        if name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue
        found.setdefault(name, []).append(requirement)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        waiting += [further for further in needed if applies(further, python, extras)]
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_is_pinned_to_a_version_that_all_who_need_it_accept(python) -> None:
    needed, pinned = requirements_on(python), pins()

    assert {"torch", "polars", "fastapi", "pytest"} <= needed.keys()
    assert [name for name in sorted(needed) if name not in pinned] == []
    assert [
        str(requirement)
        for name, requirements in needed.items()
        for requirement in requirements
        if not requirement.specifier.contains(pinned[name], prereleases=True)
    ] == []


def test_what_only_an_older_python_needs_is_pinned_too() -> None:
    """redis needs async-timeout before Python 3.11.3, and no newer Python would show that its pin is missing."""
    assert "async-timeout" in requirements_on("3.11.2")
    assert "async-timeout" not in requirements_on("3.13.0")


def test_what_runs_here_is_what_is_pinned() -> None:
    """A build's own mark (+cpu) left out."""
    running: dict[str, str] = {}
    for name in {name for python in PYTHONS for name in requirements_on(python)}:
        try:
            running[name] = Version(distribution(name).version).public
        except PackageNotFoundError:
            continue
    pinned = pins()

    assert {"torch", "polars", "fastapi", "pytest"} <= running.keys()
    assert {name: pinned.get(name) for name in running} == running


def test_no_dependency_may_be_older_than_what_is_tested() -> None:
    """A floor below that would be a promise that nobody keeps: typer has Literal since 0.19, not since 0.15."""
    pinned = pins()
    for requirement in own_requirements():
        [floor] = [part for part in requirement.specifier if part.operator == ">="]
        tested = Version(pinned[canonicalize_name(requirement.name)])

        assert Version(floor.version).release[:2] == tested.release[:2], f"{requirement}: {tested} is tested"
        assert Version(floor.version) <= tested

"""The faults of ``explained.toml``, which are not tried: what no test can notice, each by name and with its reason."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.changes import Change, changes_of

KINDS = {
    "equivalent": "no program can tell the two apart",
    "gpu": "the line runs, or decides, on a GPU only",
    "interleaving": "only two threads or processes that meet between two statements show it",
    "speed": "the answer is the same, later",
}


@dataclass(frozen=True)
class Explained:
    """The kind of every explained fault, by module, scope and change."""

    kinds: dict[tuple[str, str, str], str]

    def kind(self, path: str, change: Change) -> str | None:
        """Why the fault is not tried; None when it is."""
        return self.kinds.get((path, change.scope, str(change)))

    def among(self, path: str, changes: Iterable[Change]) -> list[Change]:
        """Those of the module's *changes* that are explained."""
        return [change for change in changes if self.kind(path, change) is not None]

    def not_among(self, path: str, changes: Iterable[Change]) -> list[Change]:
        """Those that are not."""
        return [change for change in changes if self.kind(path, change) is None]


def read_explained(root: Path) -> Explained:
    """
    The list, each entry of which names one fault of today's code.

    Raises:
        ValueError: an entry names none, or fewer than there are of that text in its scope, or a kind that there is not.
    """
    content = tomllib.loads((root / "tests/mutation/explained.toml").read_text(encoding="utf-8"))
    kinds: dict[tuple[str, str, str], str] = {}
    for group in content["explained"]:
        if group["kind"] not in KINDS or not group["reason"]:
            raise ValueError(f"explained.toml: {group} has no known kind, or no reason")
        there = [(change.scope, str(change)) for change in changes_of((root / group["module"]).read_bytes())]
        for change in group["changes"]:
            times = there.count((group["scope"], change))
            if times != group["changes"].count(change):
                raise ValueError(f"explained.toml: {group['module']} {group['scope']}: {change} is there {times} times")
            kinds[group["module"], group["scope"], change] = group["kind"]
    return Explained(kinds)

"""What is known of each fault, kept between runs: a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.mutation.changes import Change
from tests.mutation.modules import Module


class Records:
    """
    A file of JSON lines. A killed fault stays killed while its module is the same; survivors are tried again as soon
    as a test file of the module has changed.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self._known: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self._known[record["key"]] = record

    def killer(self, module: Module, change: Change) -> str | None:
        """What noticed the fault; None when nothing did or it was not tried with these tests."""
        record = self._known.get(self._key(module, change))
        return None if record is None else record["killer"]

    def is_known(self, module: Module, change: Change) -> bool:
        """Whether a run would tell nothing new."""
        record = self._known.get(self._key(module, change))
        return record is not None and (record["killer"] is not None or record["tests"] == self._digest(*module.tests))

    def add(self, module: Module, change: Change, killer: str | None) -> None:
        """Remember at once: the process may be ended at any time."""
        self._write({"key": self._key(module, change), "killer": killer, "tests": self._digest(*module.tests)})

    def clean_run(self, module: Module) -> dict[str, Any] | None:
        """What the clean run of these very files gave."""
        record = self._known.get(self._clean_key(module))
        return None if record is None else record["clean"]

    def add_clean_run(self, module: Module, clean: dict[str, Any]) -> None:
        """Remember the clean run."""
        self._write({"key": self._clean_key(module), "clean": clean})

    def _write(self, record: dict[str, Any]) -> None:
        self._known[record["key"]] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _key(self, module: Module, change: Change) -> str:
        return f"{module.path} {self._digest(module.path)} {change.start} {change.end} {change.after}"

    def _clean_key(self, module: Module) -> str:
        return f"clean {module.path} {self._digest(module.path, *module.tests)}"

    def _digest(self, *paths: str) -> str:
        return hashlib.sha256(b"\0".join((self._root / path).read_bytes() for path in paths)).hexdigest()[:16]

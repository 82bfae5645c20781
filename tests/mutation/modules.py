"""Which modules are put to the test, and the tests that shall notice: the narrowest that state their promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """
    A module and the tests that speak of it.

    Args:
        path: of the module, from the repository's root.
        tests: files, from the repository's root; the examples in the module's own docstrings are among them.
    """

    path: str
    tests: tuple[str, ...]

    @property
    def shared_tests(self) -> tuple[str, ...]:
        """Its tests but for its own examples."""
        return self.tests[1:]


_DECODING = (
    "tests/models/decoding/test_anticipate.py",
    "tests/models/decoding/test_contrastive.py",
    "tests/models/decoding/test_golden.py",
    "tests/models/decoding/test_regenerator.py",
    "tests/models/decoding/test_tuning_kept.py",
    "tests/models/decoding/test_rules.py",
    "tests/models/decoding/test_windows.py",
)
_STORES = (
    "tests/app/access/test_audit.py",
    "tests/app/jobs/test_attempts.py",
    "tests/app/jobs/test_retries.py",
    "tests/app/jobs/test_row_locks.py",
    "tests/app/jobs/test_stores.py",
    "tests/app/jobs/test_turns.py",
)
_JOBS = (
    "tests/app/jobs/test_interrupted_jobs.py",
    "tests/app/jobs/test_job_files.py",
    "tests/app/jobs/test_jobs.py",
    "tests/app/jobs/test_presence.py",
    "tests/app/jobs/test_retries.py",
)
_PREPARATION = (
    "tests/models/data/test_preparation.py",
    "tests/models/data/test_preparation_inputs.py",
    "tests/models/data/test_preparation_properties.py",
    "tests/models/data/test_prepared_folders.py",
    "tests/models/data/test_splits.py",
    "tests/models/data/test_extension.py",
)

_TABLE = (
    Module("models/ranking_metrics.py", ("tests/models/test_ranking_metrics.py",)),
    Module("models/data/preparation.py", _PREPARATION),
    Module("models/decoding/*.py", _DECODING),
    Module(
        "models/network/two_readings.py",
        ("tests/models/network/test_two_readings.py", "tests/models/decoding/test_tuning_kept.py"),
    ),
    Module("app/serving/batching.py", ("tests/app/serving/test_batching.py",)),
    Module("app/mappings/mapping_store.py", ("tests/app/jobs/test_mappings.py",)),
    Module("app/jobs/job_store.py", _STORES),
    Module("app/jobs/records.py", _STORES),
    Module("app/jobs/chunks.py", _STORES),
    Module("app/jobs/retries.py", _STORES),
    Module("app/jobs/turns.py", _STORES),
    Module("app/jobs/runner.py", _JOBS),
)


def chosen(root: Path, words: list[str]) -> list[Module]:
    """The table's modules whose path holds one of *words*; all of them without any. Folders are spelled out."""
    single = [
        Module(name, (name, *entry.tests))
        for entry in _TABLE
        for path in sorted(root.glob(entry.path))
        if path.read_text(encoding="utf-8").strip()
        for name in (str(path.relative_to(root)),)
    ]
    return [module for module in single if not words or any(word in module.path for word in words)]

"""
Put small faults into chosen modules, one at a time, and see whether a test fails: ``make mutants``.

    make mutants                                      every module of the table in ``modules``, all their faults
    make mutants ARGS='--per-module 40'               a seeded sample of each
    make mutants ARGS='--per-module 40 batching'      of the modules whose path holds the word
    make mutants ARGS='--list batching'               only say what the faults are
    make mutants ARGS='--explained'                   try the faults of ``explained.toml``: is each still unnoticed?

Faults that no test can notice here, each by name and with its reason, stand in ``explained.toml``: they are not tried,
and counted apart. Progress comes fault by fault, survivors at the end with place and change; the last line is JSON, and
the exit status is 1 when fewer than 95 % of the faults tried were noticed (``--at-least``). What is known stays
in ``build/mutants.jsonl``: a run that was ended goes on where it stopped, and after a change of tests only survivors
are tried again (``--fresh`` forgets). One process at a time; a fault that takes longer than 10 s and five times what
its tests took in the clean run counts as noticed (time in line for a processor apart).

Why our own (weighed in November 2026): mutmut 3.8 leaves out decorated functions and everything at a module's top, so
no property and none of the mapping store's SQL would be touched, and its faults are chosen inside the process, which
jobs' worker processes do not see. cosmic-ray 8.7 starts a process for every fault and always runs the whole test
command: 4 to 6 s of imports a fault here, ours needs well under one, since it forks after the imports and runs
only tests that reach the line. Neither removes a statement or a condition of a query, where most of our survivors were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.mutation.changes import Change, changes_of
from tests.mutation.explained import Explained, read_explained
from tests.mutation.modules import Module, chosen
from tests.mutation.records import Records
from tests.mutation.workbench import CleanRun, Workbench, as_json, workbench

ROOT = Path(__file__).resolve().parents[2]
SPARE_SECONDS = 10


def main(arguments: list[str]) -> int:
    """0 when at least *--at-least* percent of the faults tried were noticed; with *--explained*, when none was."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder and the tests under way go, too
    modules = chosen(ROOT, options.words)
    explained = read_explained(ROOT)
    samples = {module: _sample(module, options.per_module, options.seed) for module in modules}
    if options.explained:
        samples = {module: explained.among(module.path, _all_changes(module)) for module in modules}
    if options.list:
        for module, changes in samples.items():
            for change in changes:
                print(_line(module, change))
        return 0
    kept = ROOT / "build" / "mutants.jsonl"
    if options.fresh:
        kept.unlink(missing_ok=True)
    started = time.monotonic()
    if options.explained:
        survivors, tried = _try_all(kept, samples)
        print(f"\n{tried - len(survivors)} of {tried} explained faults were noticed: take those out of the list")
        return int(len(survivors) < tried)
    left = {module: explained.not_among(module.path, changes) for module, changes in samples.items()}
    survivors, tried = _try_all(kept, left)
    print("\nsurvivors:", *(survivors or ["none"]), sep="\n")
    percent = 100 * (tried - len(survivors)) / max(tried, 1)
    counts = {"modules": len(modules), "faults": tried, "survived": len(survivors), "killed_percent": round(percent, 1)}
    counts |= {"explained": _count_kinds(explained, samples), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(counts))
    return int(percent < options.at_least)


def _try_all(kept: Path, samples: dict[Module, list[Change]]) -> tuple[list[str], int]:
    """Try the faults; the survivors as lines to print, and how many were tried."""
    survivors: list[str] = []
    started = time.monotonic()
    with workbench(ROOT) as bench:
        records = Records(kept, bench.folder)
        print(f"imports ready after {time.monotonic() - started:.1f} s", flush=True)
        for module, changes in samples.items():
            alike = [other for other in samples if other.shared_tests == module.shared_tests]
            survivors += _try_module(bench, records, module, changes, alike)
    return survivors, sum(map(len, samples.values()))


def _count_kinds(explained: Explained, samples: dict[Module, list[Change]]) -> dict[str, int]:
    """How many of the faults drawn are explained, by kind."""
    kinds = [explained.kind(module.path, change) for module, changes in samples.items() for change in changes]
    return dict(sorted(Counter(kind for kind in kinds if kind is not None).items()))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description="Put faults into modules; see that tests notice.")
    parser.add_argument("words", nargs="*", help="modules whose path holds one of these; all without any")
    parser.add_argument("--per-module", type=int, default=None, help="size of the sample of each module's faults")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--at-least", type=float, default=95.0, help="percent that must be noticed, or the exit is 1")
    parser.add_argument(
        "--explained", action="store_true", help="try the explained faults alone; the exit is 1 when a test notices one"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--list", action="store_true", help="only list the faults")
    return parser.parse_args(arguments)


def _sample(module: Module, size: int | None, seed: int) -> list[Change]:
    changes = _all_changes(module)
    if size is None or size >= len(changes):
        return changes
    by_lot = sorted(changes, key=lambda change: _lot(f"{seed} {module.path} {change}"))
    return sorted(by_lot[:size], key=lambda change: change.start)


def _all_changes(module: Module) -> list[Change]:
    return changes_of((ROOT / module.path).read_bytes())


def _line(module: Module, change: Change) -> str:
    return f"{module.path}:{change.line} {change.scope}:  {change}"


def _lot(text: str) -> str:
    """A hash: other faults, that come or go, leave this one's lot as it is."""
    return hashlib.sha256(text.encode()).hexdigest()


def _try_module(
    bench: Workbench, records: Records, module: Module, changes: list[Change], alike: list[Module]
) -> list[str]:
    """Try the faults that are not known yet; the survivors among all, as lines to print."""
    unknown = [change for change in changes if not records.is_known(module, change)]
    if unknown:
        clean = _clean_run(bench, records, module, alike)
        for number, change in enumerate(unknown, start=1):
            started = time.monotonic()
            killer = _try(bench, module, change, clean)
            records.add(module, change, killer)
            verdict = "SURVIVED" if killer is None else f"killed by {killer.rpartition('::')[2]}"
            took = time.monotonic() - started
            print(f"[{number}/{len(unknown)}] {module.path}:{change.line} {verdict} ({took:.1f} s)", flush=True)
    found = [change for change in changes if records.killer(module, change) is None]
    print(f"{module.path}: {len(changes) - len(found)} of {len(changes)} faults noticed", flush=True)
    return [_line(module, change) for change in found]


def _clean_run(bench: Workbench, records: Records, module: Module, alike: list[Module]) -> CleanRun:
    """The module's clean run; modules *alike* in their tests are watched in one."""
    known = records.clean_run(module)
    if known is not None:
        return CleanRun(**known)
    print(f"{module.path}: its tests as they are, watched", flush=True)
    runs = dict(zip(alike, bench.run_clean(alike), strict=True))
    for other, clean in runs.items():
        records.add_clean_run(other, as_json(clean))
    return runs[module]


def _try(bench: Workbench, module: Module, change: Change, clean: CleanRun) -> str | None:
    """What noticed the fault, of the tests that reach its lines."""
    original = (bench.folder / module.path).read_bytes()
    last = change.line + original[change.start : change.end].count(b"\n")
    tests = clean.tests_of(change.line, last)
    if not tests:
        return None
    with bench.holding(module, change.apply(original)):
        limit = SPARE_SECONDS + 5 * sum(clean.seconds[test] for test in tests)
        return bench.first_failure(tests, limit_seconds=limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

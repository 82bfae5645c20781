"""
One day of Taesar: extend the dataset, refresh the bundle, ask the gate, publish, activate, regenerate, prune.

    python daily.py STATE INPUT... --targets kitchen,food [--service http://127.0.0.1:8000] [--day 2026-11-29]

INPUT is what is new since yesterday, or the whole log; the first day prepares and trains from it. Started again on the
same day, it goes on from where it stopped. It ends with 0; with 1 where the gate keeps the new bundle out, and then
yesterday's goes on serving; with another code where a step failed. docs/daily.md says more.

STATE holds datasets/DAY, bundles/DAY (TAESAR_BUNDLE_ROOT of the service), rejected/DAY, results/TARGET/DAY, and
current.json: what serves now. A key for the service comes from TAESAR_KEY.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import httpx

from app.cli.taesar import main as run_command

KEPT_OUT = 1
CURRENT = "current.json"
ACTIVATION_SECONDS = 300


def main() -> None:
    """One day, step by step."""
    options = read_options()
    state: Path = options.state
    folders = {name: state / name for name in ("datasets", "bundles", "rejected", "results", "work")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    current = read_current(state)
    dataset, bundle = folders["datasets"] / options.day, folders["bundles"] / options.day

    if not (dataset / "dataset.json").is_file():
        former = current.get("dataset")
        how = ("--extend", folders["datasets"] / former) if former else shlex.split(options.prepare)
        taesar("prepare", *options.inputs, "--out", dataset, *how)
        write_current(state, current | {"dataset": options.day})

    if not (bundle / "manifest.json").is_file():
        work, serving = folders["work"] / options.day, current.get("bundle")
        refresh = serving and not options.anew
        how = ("--init", folders["bundles"] / serving) if refresh else shlex.split(options.train)
        taesar("train", dataset, "--out", work, "--name", options.day, "--replace", *how)
        ask_gate(work, dataset, folders["bundles"] / serving if serving else None, folders["rejected"] / options.day)
        # Whole at once: the service must never see half a bundle
        work.rename(bundle)

    version = str(taesar("lineage", bundle)["bundle"]["version"])
    if options.service:
        activate(options.service, version)
    write_current(state, {"dataset": options.day, "bundle": options.day, "version": version})

    for target in options.targets.split(","):
        out = folders["results"] / target / options.day
        taesar(
            "regenerate", bundle, dataset, "--target", target, "--interactions", "all", "--out", out,
            *shlex.split(options.regenerate),
        )  # fmt: skip
    if os.environ.get("TAESAR_DATABASE_URL"):
        taesar("prune")
    forget(folders, options.targets.split(","), keep=options.keep, serving=options.day)
    say(f"day {options.day}: bundle {version} serves")


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="One day of Taesar.")
    parser.add_argument("state", type=Path, help="folder of everything")
    parser.add_argument("inputs", nargs="+", help="new interactions, as `taesar prepare` takes them")
    parser.add_argument("--targets", required=True, help="domains to regenerate for, separated by commas")
    parser.add_argument("--service", help="address of a running service, whose bundle root is STATE/bundles")
    parser.add_argument("--day", default=datetime.now(UTC).date().isoformat(), help="name of what this day makes")
    parser.add_argument("--keep", type=int, default=7, help="days to keep")
    parser.add_argument("--prepare", default="--overlap any", help="options of the first day's `taesar prepare`")
    parser.add_argument("--train", default="", help="options of a `taesar train` from nothing")
    parser.add_argument("--anew", action="store_true", help="train from nothing, as on the first day; once a week, say")
    parser.add_argument("--regenerate", default="", help="options of `taesar regenerate`, --export csv for one")
    return parser.parse_args()


def ask_gate(work: Path, dataset: Path, serving: Path | None, rejected: Path) -> None:
    """Go on if the gate lets the bundle through; else put it aside and end."""
    try:
        taesar("gate", work, dataset, *(("--previous", serving) if serving else ()))
    except StepError as error:
        if error.code != KEPT_OUT:
            raise
        shutil.rmtree(rejected, ignore_errors=True)
        work.rename(rejected)
        left = f"{serving.name} goes on serving" if serving else "nothing serves"
        stop(f"the gate kept the new bundle out, {left}. It lies in {rejected}, the reasons stand above.")


def activate(service: str, version: str) -> None:
    """Switch the running service to *version*."""
    key = os.environ.get("TAESAR_KEY")
    answer = httpx.post(
        f"{service}/models/{version}/activate",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=ACTIVATION_SECONDS,
    )
    if answer.is_error:
        stop(f"{service} does not activate bundle {version}: {answer.status_code} {answer.text}", code=2)


def forget(folders: dict[str, Path], targets: list[str], *, keep: int, serving: str) -> None:
    """Delete what is older than the last *keep* days, never what serves."""
    results = [folders["results"] / target for target in targets]
    for folder in (folders["datasets"], folders["bundles"], folders["rejected"], *results):
        days = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        for path in days[:-keep]:
            if path.name != serving:
                shutil.rmtree(path)


def taesar(*arguments: object) -> dict[str, Any]:
    """Run one command in this process, its lines on the error stream; what it answered."""
    sys.argv = ["taesar", *map(str, arguments), "--json"]
    say(shlex.join(sys.argv[:-1]))
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            run_command()
    except SystemExit as end:
        if end.code:
            raise StepError(str(arguments[0]), int(end.code)) from None
    return dict(json.loads(answer.getvalue()))


class StepError(Exception):
    """A command ended with another code than 0; what it said stands on the error stream."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"`taesar {command}` ended with exit code {code}; what it said stands above")
        self.code = code


def read_current(state: Path) -> dict[str, str]:
    """What serves now; nothing on the first day."""
    path = state / CURRENT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_current(state: Path, current: dict[str, str]) -> None:
    """Written whole or not at all."""
    partial = state / f".{CURRENT}"
    partial.write_text(json.dumps(current), encoding="utf-8")
    partial.replace(state / CURRENT)


def stop(reason: str, code: int = KEPT_OUT) -> NoReturn:
    """End with *reason*."""
    say(f"daily: {reason}")
    sys.exit(code)


def say(line: str) -> None:
    """One line on the error stream."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        main()
    except StepError as error:
        stop(str(error), code=2)

"""``taesar gate``: whether a refreshed bundle may take the last one's place."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import print_error, say, set_result

KEPT_OUT = 1


def gate(
    bundle: Annotated[Path, typer.Argument(help="The bundle that is to serve.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset that it was trained on.")],
    previous: Annotated[
        Path | None,
        typer.Option(help="The bundle that serves now, of a dataset that this one extends.", show_default="none"),
    ] = None,
) -> None:
    """
    Let a bundle through, with 0, or keep it out, with 1 and the reason: it ranks validation items worse, or harms.

    Worse is what lies below the last bundle for certain, on today's validation items; so is harm, to a Markov chain
    that trains and ranks as the bundle's guard allows. Seconds for small tables, minutes for large ones.
    """
    say(f"reading {bundle} and {dataset}")
    from models.bundle import load_bundle
    from models.check.gate import failures, judge_refresh
    from models.composite.folder import check_trained_on
    from models.data.dataset import load_dataset

    prepared, loaded = load_dataset(dataset), load_bundle(bundle)
    check_trained_on(loaded, prepared)
    findings = judge_refresh(prepared, loaded, None if previous is None else load_bundle(previous))
    for finding in findings:
        say(finding.sentence)
    reasons = list(failures(findings))
    set_result(version=loaded.version, passed=not reasons, findings=[dataclasses.asdict(one) for one in findings])
    if reasons:
        print_error(f"taesar: the gate keeps bundle {loaded.version} out: {'; '.join(reasons)}")
        set_result(error="; ".join(reasons))
        sys.exit(KEPT_OUT)
    say(f"the gate lets bundle {loaded.version} through")

"""`taesar regenerate`: a bundle and its dataset -> the composite dataset of one domain, and its mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.options import DeviceOption, DialOption, RuleOption, choices
from models.decoding.rules import DEFAULT_DIAL, DEFAULT_RULE, GUARDED_RULE
from models.exports.export_formats import FORMATS, describe_formats


def regenerate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `taesar train` wrote.")],
    dataset: Annotated[
        Path, typer.Argument(help="The dataset that it was trained on; with --interactions all, also a newer one.")
    ],
    target: Annotated[str, typer.Option(help="Domain whose items the result holds.")],
    out: Annotated[Path, typer.Option(resolve_path=True, help="Folder to write; an earlier result there is replaced.")],
    interactions: Annotated[
        Literal["training", "all"],
        typer.Option(
            help="training: without the last two of every user, which `taesar evaluate` needs unseen; all: for "
            "production, which loses none."
        ),
    ] = "training",
    export: Annotated[
        str | None,
        typer.Option(help=f"Write these, too; comma-separated, of: {describe_formats(FORMATS)}", show_default="none"),
    ] = None,
    prefixes: Annotated[
        bool,
        typer.Option(
            "--prefixes",
            help="With --export recbole: a row for every item that a sequence can predict, as RecBole itself learns to "
            "predict the last one only.",
        ),
    ] = False,
    rule: RuleOption = DEFAULT_RULE,
    dial: DialOption = DEFAULT_DIAL,
    previous: Annotated[
        Path | None,
        typer.Option(
            help="An earlier result of the same bundle and options: users whose sequence did not change are taken over "
            "from it.",
            show_default="what is in OUT",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: this process; ray: actors on this machine or on a cluster (pip install 'taesar[ray]'). The "
            "result is the same, byte for byte."
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="With --engine ray: a running cluster, auto or HOST:PORT, whose machines see BUNDLE, DATASET and OUT "
            "under the same names.",
            show_default="one of its own on this machine",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --engine ray: how many actors; each holds the bundle and has a GPU, or a core.",
            show_default="one for every GPU, else for every core",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """
    Rewrite every sequence for one domain; write the composite dataset and the mapping.

    The folder holds composite.parquet (sequences), interactions/ (every item that stays, with its time and where it
    comes from), TARGET.inter for RecBole, counts.parquet, mapping.parquet and summary.json; docs/files.md describes
    every column.
    """
    exports = () if export is None else choices("--export", export, FORMATS)
    if prefixes and "recbole" not in exports:
        raise typer.BadParameter("--prefixes is of --export recbole")
    if engine != "ray" and (address is not None or actors is not None):
        raise typer.BadParameter("--address and --actors are of --engine ray")
    say(f"reading {bundle} and {dataset}")
    from dataclasses import asdict

    from app.cli.counted_progress import CountedProgress
    from models.bundle import BundleDescription, describe_bundle, load_bundle
    from models.composite.engines import Engine, LocalEngine
    from models.composite.folder import CompositeProgress, write_composite
    from models.composite.ray_engine import RayEngine
    from models.data.dataset import describe_dataset
    from models.training.devices import resolve_device

    loaded: BundleDescription
    chosen: Engine
    if engine == "ray":
        chosen = RayEngine(address=address, actors=actors, device=device)
        loaded = describe_bundle(bundle.absolute())
    else:
        chosen = LocalEngine()
        loaded = load_bundle(bundle, device=resolve_device(device))
    with CountedProgress(console) as progress:
        summary = write_composite(
            describe_dataset(dataset.absolute()),
            loaded,
            target=target,
            rule=rule,
            dial=dial,
            out=out,
            interactions=interactions,
            exports=exports,
            prefixes=prefixes,
            previous=previous,
            engine=chosen,
            progress=CompositeProgress(
                on_users=lambda done, total: progress("regenerating sequences", done, total),
                on_files=lambda done, total: progress("writing files, passes", done, total),
                on_note=say,
            ),
        )
    if interactions == "training":
        say("the last two interactions of every user are held out; --interactions all takes them, too, for production")
    if not summary.has_times:
        say("the dataset is of an earlier version and has no times: timestamp is null; prepare its log again")
    unknown = f", {summary.unknown_kept:,} unknown ones kept" if summary.unknown_kept else ""
    unknown += f", {summary.unknown:,} unknown ones skipped" if summary.unknown else ""
    unknown += f", {summary.truncated:,} too old to be read" if summary.truncated else ""
    guard = loaded.tuning(target).guard
    if guard is not None and dial == "auto":
        say(guard.finding if rule == GUARDED_RULE else f"not kept to by rule {rule}: {guard.finding}")
    say(
        f"{summary.kept:,} interactions kept, {summary.replaced:,} replaced, {summary.deleted:,} deleted{unknown}; "
        f"{summary.original_rows:,} original and {summary.regenerated_rows:,} regenerated sequences written to {out}",
    )
    if summary.users_taken_over:
        say(f"{summary.users_taken_over:,} of {summary.users:,} users had not changed and were taken over")
    set_result(out=str(out), **asdict(summary))

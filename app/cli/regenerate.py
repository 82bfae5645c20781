"""`taesar regenerate`: a bundle and its dataset -> the composite dataset of one domain, and its mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import console, say
from app.cli.options import DeviceOption, RuleOption
from models.decoding.rules import DEFAULT_RULE


def regenerate(
    bundle: Annotated[Path, typer.Argument(help="Folder that `taesar train` wrote.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset that it was trained on.")],
    target: Annotated[str, typer.Option(help="Domain whose items the result holds.")],
    out: Annotated[Path, typer.Option(resolve_path=True, help="Folder to write; an earlier result there is replaced.")],
    rule: RuleOption = DEFAULT_RULE,
    device: DeviceOption = "auto",
) -> None:
    """
    Rewrite every training sequence for one domain; write the composite dataset and the mapping.

    The folder holds composite.parquet, TARGET.inter for RecBole, counts.parquet, mapping.parquet and summary.json.
    """
    from app.cli.progress import StageProgress
    from models.bundle import load_bundle
    from models.composite.folder import write_composite
    from models.data.dataset import load_dataset
    from models.training.devices import resolve_device

    prepared = load_dataset(dataset)
    loaded = load_bundle(bundle, device=resolve_device(device))
    with StageProgress(console) as progress:
        summary = write_composite(
            prepared,
            loaded,
            target=target,
            rule=rule,
            out=out,
            on_users=lambda done, total: progress(f"regenerating {total:,} sequences", done / total),
        )
    say(
        f"{summary.kept:,} interactions kept, {summary.replaced:,} replaced, {summary.deleted:,} deleted; "
        f"{summary.original_rows:,} original and {summary.regenerated_rows:,} regenerated sequences written to {out}",
    )

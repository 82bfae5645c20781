"""
The ``taesar`` command.

Torch, polars and FastAPI load inside the command that needs them, so that ``taesar --help`` answers at once. An option
that is not given leaves the default to its config in ``models``; the default that ``--help`` shows is that config's,
which a test compares. Folders to write are resolved here: they are replaced by renaming, which "." has no name for.
Everything raised on purpose ends in one line on the error stream and exit code 2.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.padding import Padding
from rich.table import Table

from app import commands_jobs
from app.commands_evaluate import evaluate
from app.commands_probe import probe
from app.commands_train import train
from app.options import DeviceOption, SettingsError, given, read_settings
from app.terminal import complain, console, say
from models.errors import ModelError
from models.rules import DEFAULT_RULE, Rule

if TYPE_CHECKING:
    from models.preparation import PreparationReport

USAGE_ERROR = 2
SHOWN_BAD_ROWS = 10


cli = typer.Typer(
    name="taesar",
    help="Regenerate mixed-domain interaction sequences into target-domain sequences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


RuleOption = Annotated[
    Rule,
    typer.Option(
        "--rule",
        "--recipe",
        help="anticipate: what the target expert expects after reading the source items, which helps recommenders "
        "most; paper: the paper's equations; without-*: the same without one part (source expert, global, "
        "local step); reference: the authors' released code, off-by-one included; reference-corrected: without it.",
    ),
]


@cli.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Interactions: .csv, .inter (.gz too), .parquet.")],
    out: Annotated[Path, typer.Option(resolve_path=True, help="Dataset folder to write.")],
    min_user_interactions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Drop users with fewer: 3 leave one to train on beside a validation and a test item.",
            show_default="3",
        ),
    ] = None,
    min_item_interactions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Drop items with fewer: an item met once or twice cannot be learned.", show_default="3"
        ),
    ] = None,
    user_threshold: Annotated[
        Literal["per_domain", "total"] | None,
        typer.Option(
            help="Count a user's rows in each domain, as the paper does, or in all together.", show_default="per_domain"
        ),
    ] = None,
    overlap: Annotated[
        Literal["all", "any"] | None,
        typer.Option(help="Keep users present in every domain, who link the domains, or in any.", show_default="all"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Latest interactions kept per user; the decoder's positions, 128 in the paper.",
            show_default="128",
        ),
    ] = None,
    ties: Annotated[
        Literal["hash", "input"] | None,
        typer.Option(
            help="Order rows of equal time by a seeded hash, as file order may carry the answer, or as in the input.",
            show_default="hash",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of ties and item numbers; any number, fixed so that a repetition is equal.",
            show_default="2025",
        ),
    ] = None,
    numbering: Annotated[
        Literal["shuffled", "first-appearance"] | None,
        typer.Option(
            help="Number items by a seeded hash, which says nothing of the sequences, or as the sequences name them, "
            "held-out items included: only to reproduce the released code and measure its leak, never otherwise.",
            show_default="shuffled",
        ),
    ] = None,
    numbering_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of shuffled item numbers alone, to renumber items and change nothing else.",
            show_default="the seed",
        ),
    ] = None,
    max_bad_row_share: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Refuse an input with more bad rows: one in a hundred says that it is not what it claims to be.",
            show_default="0.01",
        ),
    ] = None,
    user_column: Annotated[str | None, typer.Option(help="Name of the column.", show_default="user")] = None,
    item_column: Annotated[str | None, typer.Option(help="Name of the column.", show_default="item")] = None,
    domain_column: Annotated[str | None, typer.Option(help="Name of the column.", show_default="domain")] = None,
    timestamp_column: Annotated[
        str | None,
        typer.Option(help="Name of the column; numbers or dates of ISO 8601, oldest first.", show_default="timestamp"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is already there.")] = False,
) -> None:
    """
    Turn interactions into a dataset: thresholds, mixed sequences, vocabulary, splits, statistics.

    In .inter files the columns are named user_id and item_id unless told otherwise.
    """
    from app.progress import StageProgress
    from models.interactions import Columns
    from models.preparation import PreparationConfig
    from models.preparation import prepare as prepare_dataset

    if numbering == "first-appearance" and numbering_seed is not None:
        raise typer.BadParameter("--numbering-seed is of shuffled numbers; first appearance has none")
    config = given(
        PreparationConfig(columns=Columns(user_column, item_column, domain_column, timestamp_column)),
        min_user_interactions=min_user_interactions,
        min_item_interactions=min_item_interactions,
        user_threshold=user_threshold,
        overlap=overlap,
        max_length=max_length,
        ties=ties,
        seed=seed,
        numbering=numbering,
        numbering_seed=numbering_seed,
        max_bad_row_share=max_bad_row_share,
    )
    with StageProgress(console) as progress:
        report = prepare_dataset(source, out, config, overwrite=overwrite, progress=progress)
    _print_preparation(report, out)


cli.command()(train)


@cli.command()
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
    from app.progress import StageProgress
    from models.checkpoint import load_bundle
    from models.composite import write_composite
    from models.dataset import load_dataset
    from models.training import resolve_device

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


cli.command()(evaluate)
cli.command()(commands_jobs.worker)
cli.command()(commands_jobs.migrate)
cli.command()(commands_jobs.prune)
cli.command()(probe)


@cli.command()
def serve(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle folder to serve; without one the service waits for an activation.",
            show_default="TAESAR_BUNDLE, or none",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; local, so that exposing the service is a choice.", show_default="127.0.0.1"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes any free one.", show_default="8000"),
    ] = None,
    rule: Annotated[
        Rule | None,
        typer.Option("--rule", "--recipe", help="Decoding rule; see `taesar regenerate`.", show_default=DEFAULT_RULE),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where to compute; auto takes CUDA when there is one.", show_default="auto"),
    ] = None,
) -> None:
    """
    Answer POST /regenerate over HTTP until SIGTERM or Ctrl-C.

    Every setting is also read from the environment as TAESAR_<NAME>; an option goes before it. `taesar settings`
    lists them all.
    """
    from app.main import serve as serve_until_stopped

    serve_until_stopped(read_settings(bundle=bundle, host=host, port=port, rule=rule, device=device))


@cli.command()
def settings() -> None:
    """List every setting of the service: its variable, its default, and why."""
    from app.settings import Settings

    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, ()) else field.default
        say(f"TAESAR_{name.upper()}={default}", style="bold")
        console.print(Padding(field.description or "", (0, 0, 1, 4)))


@cli.command()
def version() -> None:
    """Print the version of Taesar."""
    say(importlib.metadata.version("taesar"))


def main() -> None:
    """Run the command; errors on purpose and of the file system become one line and exit code 2."""
    try:
        cli()
    except (ModelError, SettingsError, OSError) as error:
        complain(f"taesar: {error}")
        sys.exit(USAGE_ERROR)


def _print_preparation(report: PreparationReport, out: Path) -> None:
    """Where every row went, then what is left, per domain."""
    from models.preparation import BAD_ROWS

    without_overlap = report.removed.by_overlap + report.removed_after_cut.by_overlap
    left_out = {
        "bad": report.rows_bad,
        "duplicate": report.rows_duplicate,
        "below the item threshold": report.removed.by_item_threshold + report.removed_after_cut.by_item_threshold,
        "below the user threshold": report.removed.by_user_threshold + report.removed_after_cut.by_user_threshold,
        "of users without overlap": without_overlap,
        "beyond the maximum length": report.rows_cut,
    }
    parts = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
    say(f"{report.rows_read:,} rows read; left out: {parts or 'none'}")
    if 2 * without_overlap > report.rows_read:
        hint = "  most rows are of users without items of every domain; --overlap any keeps users of any"
        say(hint, style="yellow")
    for bad in report.bad_rows[:SHOWN_BAD_ROWS]:
        say(f"  {bad}", style="yellow")
    if report.rows_bad > SHOWN_BAD_ROWS:
        say(f"  ... every bad row: {out / BAD_ROWS}", style="yellow")
    table = Table("domain", box=None, pad_edge=False)
    for name in ("users", "items", "interactions", "mean length"):
        table.add_column(name, justify="right")
    for row in report.result.domains:
        table.add_row(row.domain, f"{row.users:,}", f"{row.items:,}", f"{row.interactions:,}", f"{row.mean_length:.2f}")
    total = report.result
    table.add_row(
        "together", f"{total.users:,}", f"{total.items:,}", f"{total.interactions:,}", f"{total.mean_length:.2f}"
    )
    console.print(table)
    say(f"dataset {report.fingerprint[:12]} written to {out}")

"""`taesar prepare`: interactions -> a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from app.cli.console import console, say, set_result
from app.cli.options import override

if TYPE_CHECKING:
    from models.data.preparation_report import PreparationReport

SHOWN_BAD_ROWS = 10


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
    overwrite: Annotated[
        bool, typer.Option("--replace", "--overwrite", help="Replace a dataset that is already there.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="What people call the dataset; its bundles are called so, too.", show_default="that of OUT"),
    ] = None,
) -> None:
    """
    Turn interactions into a dataset: thresholds, mixed sequences, vocabulary, splits, statistics.

    In .inter files the columns are named user_id and item_id unless told otherwise.
    """
    say(f"reading {source}")
    from app.cli.progress import StageProgress
    from models.data.preparation import PreparationConfig
    from models.data.preparation import prepare as prepare_dataset
    from models.data.reading import Columns

    if numbering == "first-appearance" and numbering_seed is not None:
        raise typer.BadParameter("--numbering-seed is of shuffled numbers; first appearance has none")
    config = override(
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
        report = prepare_dataset(source, out, config, overwrite=overwrite, progress=progress, name=name)
    _print_preparation(report, out)
    counted = dataclasses.asdict(report)
    counted["bad_rows"] = len(report.bad_rows)
    set_result(out=str(out), **counted)


def _print_preparation(report: PreparationReport, out: Path) -> None:
    """Where every row went, then what is left, per domain."""
    from models.data.preparation import BAD_ROWS

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

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
    from models.data.reading.preview import Preview

SHOWN_BAD_ROWS = 10


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Interactions: files, folders, globs or URLs, with DOMAIN= before them where no column, folder or "
            "file name says the domain. CSV with any separator, .inter, JSON lines, Parquet; text may be .gz or .zst.",
        ),
    ],
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
    split: Annotated[
        Literal["leave-one-out", "time"] | None,
        typer.Option(
            help="Hold out each user's last two items, as the paper does, or what comes after dates.",
            show_default="leave-one-out",
        ),
    ] = None,
    test_from: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="With --split time: test what comes from then on; ISO 8601, or a number of the log.",
            show_default="the last tenth of the interactions",
        ),
    ] = None,
    validation_from: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="With --split time: train on what came before, validate by what comes from then on.",
            show_default="as long before the test as it is long",
        ),
    ] = None,
    extend: Annotated[
        Path | None,
        typer.Option(
            help="Add the interactions to this dataset, by its configuration: its users, items and their numbers stay, "
            "and held-out items only move on. INPUT may be what is new, or the whole log.",
            show_default="none",
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
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="ROLE=NAME,...",
            help="Names of the columns: user=NAME,item=NAME,domain=NAME,time=NAME; places from 1 without a header.",
            show_default="the usual names",
        ),
    ] = None,
    user_column: Annotated[str | None, typer.Option(help="As --columns user=NAME.", show_default="found")] = None,
    item_column: Annotated[str | None, typer.Option(help="As --columns item=NAME.", show_default="found")] = None,
    domain_column: Annotated[str | None, typer.Option(help="As --columns domain=NAME.", show_default="found")] = None,
    timestamp_column: Annotated[
        str | None,
        typer.Option(help="As --columns time=NAME; numbers or dates of ISO 8601.", show_default="found"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Layout of a well-known log: amazon-2014, amazon-2018, amazon-2023, movielens or yelp."),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option("--format", help="csv, inter, ndjson or parquet.", show_default="by name and content"),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option("--header/--no-header", help="Whether the first line names the columns.", show_default="found"),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Between the fields of a line; :: is one, too.", show_default="found")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only rows for which this holds, as 'rating>=4'. May be repeated."),
    ] = None,
    prefix_items: Annotated[
        bool, typer.Option("--prefix-items", help="Put the domain before each item: for domains that number alike.")
    ] = False,
    time_unit: Annotated[
        Literal["seconds", "milliseconds", "microseconds", "nanoseconds"] | None,
        typer.Option(help="Of times that are numbers.", show_default="found, for each file"),
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(help="Of times that are neither numbers nor dates of ISO 8601, as '%d/%m/%Y %H:%M'."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of text, as latin-1 or cp1252.", show_default="UTF-8, or UTF-16 by its mark")
    ] = None,
    carry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of the input that comes along, as text, to the interactions of `taesar regenerate`. May be "
            "repeated.",
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on although the input looks like something else.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--replace", "--overwrite", help="Replace a dataset that is already there.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the command may take, as 1GB; what does not fit goes to the disk beside OUT, and the "
            "dataset is the same.",
            show_default="half of what is free",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What people call the dataset; its bundles are called so, too.", show_default="that of OUT"),
    ] = None,
) -> None:
    """
    Turn interactions into a dataset: thresholds, mixed sequences, vocabulary, splits, statistics.

    What was read is shown first: rows, users, items and times of each domain, and what is odd about them.
    """
    say(f"reading {', '.join(inputs)}")
    from app.cli.progress import StageProgress
    from models.data.out_of_core.preparation_choice import plan_preparation, prepare_as_planned
    from models.data.preparation import PreparationConfig
    from models.data.reading.layouts import Columns, Layout, parse_condition, parse_separator, with_columns
    from models.data.reading.layouts import preset as layout_of
    from models.exports.encoding import INTERACTION_COLUMNS
    from models.memory_sizes import parse_size

    if numbering == "first-appearance" and numbering_seed is not None:
        raise typer.BadParameter("--numbering-seed is of shuffled numbers; first appearance has none")
    if split != "time" and (test_from or validation_from):
        raise typer.BadParameter("--test-from and --validation-from are of --split time")
    kept = {
        "--min-user-interactions": min_user_interactions,
        "--min-item-interactions": min_item_interactions,
        "--user-threshold": user_threshold,
        "--overlap": overlap,
        "--max-length": max_length,
        "--ties": ties,
        "--seed": seed,
        "--numbering": numbering,
        "--numbering-seed": numbering_seed,
        "--split": split,
    }
    given = [option for option, value in kept.items() if value is not None]
    if extend is not None and given:
        raise typer.BadParameter(f"{', '.join(given)}: an extension keeps to the configuration of {extend}")
    for taken in (column for column in carry or () if column in INTERACTION_COLUMNS):
        raise typer.BadParameter(f"--carry {taken}: {taken!r} is a column of the result itself")
    layout = layout_of(preset) if preset else Layout()
    layout = override(
        layout,
        columns=Columns(user_column, item_column, domain_column, timestamp_column),
        input_format=input_format,
        header=header,
        separator=parse_separator(separator) if separator else None,
        time_format=time_format,
        encoding=encoding,
        carried=tuple(dict.fromkeys(carry)) if carry else None,
        where=tuple(map(parse_condition, where)) if where else None,
        prefix_items=prefix_items or None,
        time_unit=time_unit,
    )
    config = override(
        PreparationConfig(layout=with_columns(layout, columns) if columns else layout, anyway=anyway),
        min_user_interactions=min_user_interactions,
        min_item_interactions=min_item_interactions,
        user_threshold=user_threshold,
        overlap=overlap,
        max_length=max_length,
        ties=ties,
        seed=seed,
        numbering=numbering,
        numbering_seed=numbering_seed,
        split=split,
        test_from=test_from,
        validation_from=validation_from,
        max_bad_row_share=max_bad_row_share,
    )
    seen: list[Preview] = []

    def show(looks: Preview) -> None:
        seen.append(looks)
        print_preview(looks)

    allowed = None if memory is None else parse_size(memory)
    plan = plan_preparation(inputs, out, config, memory=allowed, extends=extend is not None)
    say(str(plan))
    with StageProgress(console) as progress:
        report = prepare_as_planned(
            plan, inputs, out, config, overwrite=overwrite, progress=progress, name=name, show=show, extend=extend
        )
    print_preparation(report, out)
    counted = dataclasses.asdict(report)
    counted["bad_rows"] = report.rows_bad
    set_result(out=str(out), **counted, warnings=seen[-1].warnings if seen else ())


def print_preview(looks: Preview) -> None:
    """What was read, per domain, before anything is made of it."""
    from models.data.reading.preview import moment

    table = Table("read", box=None, pad_edge=False)
    for name in ("rows", "users", "items", "share of users", "from", "to"):
        table.add_column(name, justify="right")
    for row in looks.domains:
        share = f"{row.user_share:.1%}"
        table.add_row(
            row.domain, f"{row.rows:,}", f"{row.users:,}", f"{row.items:,}", share, moment(row.first), moment(row.last)
        )
    console.print(table)
    say(f"{looks.rows:,} rows of {looks.users:,} users, {looks.shared_users:,} of them with rows in every domain")
    for note in looks.notes:
        say(f"  {note}")
    for warning in looks.warnings:
        say(f"  warning: {warning}", style="yellow")


def print_preparation(report: PreparationReport, out: Path) -> None:
    """Where every row went, then what is left, per domain."""
    from models.data.dataset_tables import BAD_ROWS

    without_overlap = report.removed.by_overlap + report.removed_after_cut.by_overlap
    left_out = {
        "bad": report.rows_bad,
        "that a condition excludes": report.rows_filtered,
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

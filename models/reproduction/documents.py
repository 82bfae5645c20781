"""
The files of a reproduction: each table and figure as Markdown, CSV and charts in the folder OUT.

    table-1.md
    table-2.md, table-2.csv, table-2.svg          every row, target and metric; gains over SASRec and the others, drawn
    rivals.md, rivals.csv                         served recommenders against whoever else reads mixed histories
    table-3.md, table-3.csv
    figure-4.csv, figure-4/*.svg and so on

Tables 2 and 3 and the rivals of ranking ``unseen`` lie beside those of ``all``: table-2-unseen.md and so on.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.decoding.rules import Rule
from models.files import replace_file
from models.report.charts import IntervalRow, interval_chart
from models.reproduction.figures import Figure, draw_figure, number_figure
from models.reproduction.paper_rows import TABLE_3
from models.reproduction.runs import (
    ADAPTED,
    Reproduction,
    describe_composite_of,
    evaluate_rows,
    evaluate_variant,
    prepare_bundle,
)
from models.reproduction.side_by_side import (
    MEAN,
    STATED,
    Value,
    as_markdown,
    as_rows,
    notes_of,
    rival_gains,
    rivals_as_markdown,
    rivals_as_rows,
    table_2,
    table_3,
)
from models.reproduction.sizes import measure_domains, sizes_as_markdown


def write_table_1(run: Reproduction) -> list[Path]:
    """How large the dataset is, domain by domain."""
    return [_write_text(run.out / "table-1.md", sizes_as_markdown(measure_domains(run.dataset)))]


def write_table_2(run: Reproduction, targets: Sequence[str], rule: Rule) -> list[Path]:
    """Every recommender with and without Taesar, and its rivals."""
    bundle = prepare_bundle(run, ADAPTED)
    reports = {target: evaluate_rows(run, bundle, target, rule) for target in targets}
    values, gains = table_2(reports), rival_gains(reports)
    notes = notes_of(reports.values())
    heading = f"on {run.dataset.directory.resolve().name}, rule {rule}, ranking {run.ranking}"
    return [
        _write_text(_table(run, "table-2.md"), as_markdown(values, title=f"Table 2 {heading}", notes=notes)),
        _write_csv(_table(run, "table-2.csv"), as_rows(values)),
        _write_text(_table(run, "table-2.svg"), draw_gains(values)),
        _write_text(
            _table(run, "rivals.md"),
            rivals_as_markdown(gains, title=f"Who reads the mixed history, {heading}", notes=notes),
        ),
        _write_csv(_table(run, "rivals.csv"), rivals_as_rows(gains)),
    ]


def write_table_3(run: Reproduction, targets: Sequence[str]) -> list[Path]:
    """The ablations: what SASRec makes of each one's composite."""
    # The adapted ones first: the others take the base from their run.
    ways = dict.fromkeys((ADAPTED, *(variant.experts for variant in TABLE_3)))
    bundles = {experts: prepare_bundle(run, experts) for experts in ways}
    reports = {
        target: {variant.name: evaluate_variant(run, bundles[variant.experts], target, variant) for variant in TABLE_3}
        for target in targets
    }
    values = table_3(reports)
    notes = notes_of(report for by_row in reports.values() for report in by_row.values())
    title = f"Table 3 on {run.dataset.directory.resolve().name}, ranking {run.ranking}"
    return [
        _write_text(_table(run, "table-3.md"), as_markdown(values, title=title, notes=notes)),
        _write_csv(_table(run, "table-3.csv"), as_rows(values)),
    ]


def write_figure(run: Reproduction, targets: Sequence[str], rule: Rule, figure: Figure) -> list[Path]:
    """Figure 4 or 5 of every target."""
    bundle = prepare_bundle(run, ADAPTED)
    reports = [describe_composite_of(run, bundle, target, rule) for target in targets]
    numbers = [row for report in reports for row in number_figure(figure, report)]
    folder = run.out / f"figure-{figure}"
    charts = [
        _write_text(folder / f"{name}.svg", svg) for report in reports for name, svg in draw_figure(figure, report)
    ]
    return [_write_csv(run.out / f"figure-{figure}.csv", numbers), *charts]


def draw_gains(values: Sequence[Value]) -> str:
    """A forest plot of what each recommender gains from the composite, on every target and over all."""
    rows = [
        IntervalRow(f"{value.base}, {value.target}", value.gain, "served" if "served" in value.row else "target-only")
        for value in sorted(values, key=lambda value: value.target != MEAN)
        if value.metric == STATED and value.gain is not None and "+ Taesar" in value.row
    ]
    return interval_chart(
        f"Gain in {STATED} from Taesar",
        rows,
        x_label="over the same recommender of original rows (hollow: the interval contains 0)",
        percent=True,
    )


def _table(run: Reproduction, name: str) -> Path:
    """Where a table that depends on the ranking goes."""
    path = run.out / name
    return path if run.ranking == "all" else path.with_stem(f"{path.stem}-{run.ranking}")


def _write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path

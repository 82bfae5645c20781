"""
The report of an evaluation: one content, three forms. ``report.json`` holds everything, ``report.md`` the tables,
``report.html`` the tables and charts in one file that needs nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from models.evaluation.bootstrap import Interval
from models.evaluation.leak_audit import LeakAudit
from models.evaluation.ranking import RankingName
from models.evaluation.statistics import SEGMENTS, Correspondence, ProjectedItems, RowStatistics
from models.evaluation.study import Provenance, Report
from models.evaluation.summary import GROUPS, MAIN, Comparison, Results, Score
from models.files import replace_file
from models.ranking_metrics import METRICS
from models.report import charts

NO_T_SNE = (
    "Items are drawn by principal components only. For t-SNE as well, as in the paper's figure 4, install "
    "taesar[plots] and run the command again: finished cells are read back."
)
SHOWN_COMPARISONS = ("HR@10", "NDCG@10")
BEFORE_AND_AFTER = "Training rows before and after"
TEMPLATES = Environment(
    loader=PackageLoader("models.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
CANDIDATES: Mapping[RankingName, str] = {
    "all": "the target's items",
    "unseen": "the target's items that the user had not had before",
}


@dataclass(frozen=True)
class Table:
    """A titled table with the sentence that says how to read it."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(report: Report, out: Path) -> None:
    """Write report.json, report.md and report.html into *out*."""
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "report.json": json.dumps(asdict(report), indent=1, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": html_page(report),
    }
    for name, text in written.items():
        with replace_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")


def markdown(report: Report) -> str:
    """The tables as Markdown."""
    parts = [f"# {_title(report)}\n", *(f"- {line}" for line in _facts(report.provenance)), "", _checks(report.results)]
    parts += [f"\n{line}" for line in _budgets(report.results)]
    for table in tables(report):
        parts += [
            f"\n## {table.title}\n",
            f"{table.note}\n",
            "| " + " | ".join(table.header) + " |",
            "|" + "---|" * len(table.header),
            *("| " + " | ".join(row) + " |" for row in table.rows),
        ]
    return "\n".join(parts) + "\n"


def html_page(report: Report) -> str:
    """Tables and charts in one page that loads nothing; every text is escaped."""
    return TEMPLATES.get_template("report.html").render(
        title=_title(report),
        facts=_facts(report.provenance),
        checks=_checks(report.results),
        broken=bool(report.results.broken_checks),
        warnings=_budgets(report.results),
        charts=drawings(report),
        notes=_notes(report.projections),
        tables=tables(report),
    )


def tables(report: Report) -> list[Table]:
    """Every table that has rows, in reading order."""
    every = [
        _score_table(report.results.scores, report.provenance.ranking),
        _comparison_table(report.results.comparisons),
        _group_table(report.results.scores),
        audit_table(report.audits),
        _run_table(report.results),
        _statistics_table(report.statistics),
        _correspondence_table(report.correspondences),
    ]
    return [table for table in every if table.rows]


def drawings(report: Report) -> list[str]:
    """Every chart that has data: results, intervals, figure 5, figure 4."""
    shown = result_drawings(report) + draw_rows(report.statistics)
    return shown + draw_correspondence(report.projections, report.provenance.target)


def result_drawings(report: Report) -> list[str]:
    """Results by recommender and arm, and the intervals of the differences between arms."""
    parts = []
    main = [score for score in report.results.scores if score.group == MAIN.name]
    recommenders = list(dict.fromkeys(score.recommender for score in main))
    arms = list(dict.fromkeys(score.arm for score in main))
    of = {(score.recommender, score.arm): score for score in main}
    for metric in SHOWN_COMPARISONS:
        series = [
            charts.Series(
                arm,
                [of[name, arm].means[metric] if (name, arm) in of else math.nan for name in recommenders],
                [of[name, arm].deviations[metric] if (name, arm) in of else 0.0 for name in recommenders],
            )
            for arm in arms
        ]
        parts.append(charts.bar_chart(f"{metric}, mean ± sd over seeds", recommenders, series, y_label=metric))
        compared = [
            charts.IntervalRow(f"{c.recommender}: {_difference(c)}", c.interval)
            for c in report.results.comparisons
            # Differences between recommenders are larger by far and would flatten those between arms.
            if c.metric == metric
            and c.group == MAIN.name
            and not c.without_leak_hits
            and c.recommender == c.baseline_recommender
        ]
        if compared:
            title = f"Difference in {metric}, 95 % interval"
            parts.append(charts.interval_chart(title, compared, x_label=f"difference in {metric}"))
    return parts


def draw_rows(statistics: Sequence[RowStatistics]) -> list[str]:
    """Figure 5: item frequency, popularity segments and row lengths, before and after; nothing without rows."""
    if not statistics:
        return []
    frequencies = [charts.Series(view.name, view.frequencies) for view in statistics]
    shares = [charts.Series(view.name, view.segment_shares) for view in statistics]
    lengths = [charts.Series(view.name, view.length_shares) for view in statistics]
    return [
        charts.line_chart("Item frequency", frequencies, x_label="rank", y_label="frequency (log2)", log_y=True),
        charts.bar_chart("Share of interactions", SEGMENTS, shares, y_label="share"),
        charts.line_chart("Row length", lengths, x_label="items per row (50: or more)", y_label="share of rows"),
    ]


def draw_correspondence(projections: Sequence[ProjectedItems], target: str) -> list[str]:
    """Figure 4: one chart a source domain and projection."""
    return [
        charts.scatter(
            f"{plane.source_domain} → {target}, base item vectors ({plane.method})",
            plane.source_points,
            plane.target_points,
            plane.links,
            names=(plane.source_domain, target),
        )
        for plane in projections
    ]


def _notes(projections: Sequence[ProjectedItems]) -> list[str]:
    """What the page lacks, and how to get it."""
    if projections and all(plane.method != "t-sne" for plane in projections):
        return [NO_T_SNE]
    return []


def _score_table(scores: Sequence[Score], ranking: RankingName) -> Table:
    return Table(
        "Ranking of the test items",
        f"Full ranking over {CANDIDATES[ranking]}, ties pessimistic; users with at least one target item in their "
        "history; mean ± standard deviation over seeds, where there are several.",
        ("recommender", "arm", "users", *METRICS),
        tuple(
            (
                score.recommender,
                score.arm,
                f"{score.users:,}",
                *(_mean_and_deviation(score.means[metric], score.deviations[metric]) for metric in METRICS),
            )
            for score in scores
            if score.group == MAIN.name
        ),
    )


def _mean_and_deviation(mean: float, deviation: float) -> str:
    """One seed has no deviation, which is not one of 0."""
    return f"{mean:.4f} ± {deviation:.4f}" if deviation else f"{mean:.4f}"


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    return Table(
        "Differences",
        "Paired by user, averaged over seeds, with a 95 % bootstrap interval over users. An interval that contains 0 "
        "shows no difference. Only a gain over `duplicated` is a gain from regeneration.",
        (
            "recommender",
            "difference",
            "metric",
            "target items",
            "users",
            "mean",
            "95 % interval",
            "relative",
            "per seed",
        ),
        tuple(
            (
                c.recommender,
                _difference(c) + (", leak hits left out" if c.without_leak_hits else ""),
                c.metric,
                c.group,
                f"{c.users:,}",
                f"{c.interval.mean:+.4f}",
                f"{c.interval.low:+.4f} to {c.interval.high:+.4f}" + (" *" if c.interval.excludes_zero else ""),
                "" if c.relative is None else _percent(c.relative),
                ", ".join(f"{difference:+.4f}" for difference in c.per_seed),
            )
            for c in comparisons
            if c.metric in SHOWN_COMPARISONS
        ),
    )


def _percent(relative: Interval) -> str:
    return f"{100 * relative.mean:+.1f} % ({100 * relative.low:+.1f} to {100 * relative.high:+.1f})"


def _group_table(scores: Sequence[Score]) -> Table:
    names = [group.name for group in GROUPS]
    sizes = {score.group: score.users for score in scores}
    ndcg = {(score.recommender, score.arm, score.group): score.means["NDCG@10"] for score in scores}
    runs = dict.fromkeys((score.recommender, score.arm) for score in scores)
    return Table(
        "NDCG@10 by target items in the history",
        "Users without any are ranked by popularity in the arm's rows (by the model itself in arm mixed, where other "
        "domains speak). Line `served` ranks what arm regenerated learned after regenerated histories.",
        ("recommender", "arm", *(f"{name} ({sizes.get(name, 0):,} users)" for name in names)),
        tuple((*run, *(f"{ndcg[*run, name]:.4f}" if (*run, name) in ndcg else "" for name in names)) for run in runs),
    )


def audit_table(audits: Sequence[LeakAudit]) -> Table:
    """The leak audit, a row for each held-out split."""
    return Table(
        "Leak audit",
        "Users whose own held-out item is among the items that regeneration added to their row, next to the count "
        "expected if regenerated rows were dealt to users at random, and to that of as many recommendations, unseen "
        "items, of a Markov chain that reads the same rows.",
        (
            "held-out item",
            "users with a regenerated row",
            "already in their history",
            "hits",
            "expected by chance",
            "of as many recommendations",
        ),
        tuple(
            (
                a.split,
                f"{a.users:,}",
                f"{a.repeats:,}",
                f"{a.hits:,}",
                f"{a.expected_by_chance:.2f}",
                f"{a.hits_of_recommendations:,}",
            )
            for a in audits
        ),
    )


def _run_table(results: Results) -> Table:
    return Table(
        "Training",
        "An epoch is the number of steps that one pass over the original rows takes; in arm mixed, over its own.",
        (
            "recommender",
            "arm",
            "seeds",
            "best epoch",
            "epochs",
            "steps per epoch",
            "validation NDCG@10",
            "weights",
            "s",
        ),
        tuple(
            (
                run.recommender,
                run.arm,
                _joined(run.seeds),
                _joined(run.best_epochs),
                _joined(run.epochs),
                str(run.steps_per_epoch),
                _joined("" if value is None else f"{value:.4f}" for value in run.validation_ndcg_at_10),
                f"{run.num_parameters:,}",
                f"{run.seconds:.1f}",
            )
            for run in results.runs
        ),
    )


def _statistics_table(statistics: Sequence[RowStatistics]) -> Table:
    return Table(
        BEFORE_AND_AFTER,
        "Segments are shares of the interactions that fall on the most frequent 10 %, the next 40 % and the last 50 % "
        "of all target items, ranked in each set of rows (in brackets: ranked in the original). The composite holds "
        "the original rows and the regenerated ones, so its counts are about twice the original's for that reason "
        "alone: compare with `duplicated`.",
        ("which rows", "rows", "interactions", "per row", *SEGMENTS, "Gini", "entropy", "coverage"),
        tuple(
            (
                view.name,
                f"{view.rows:,}",
                f"{view.interactions:,}",
                f"{view.interactions / max(1, view.rows):.1f}",
                *(
                    f"{own:.3f} ({fixed:.3f})"
                    for own, fixed in zip(view.segment_shares, view.fixed_segment_shares, strict=True)
                ),
                f"{view.gini:.3f}",
                f"{view.entropy:.3f}",
                f"{view.coverage:.3f}",
            )
            for view in statistics
        ),
    )


def _correspondence_table(correspondences: Sequence[Correspondence]) -> Table:
    return Table(
        "Mapping",
        "Each replaced source item with its most frequent target, by cosine in the base's item table; percentile 50 "
        "is chance. A top target share near 1 would mean that everything maps to one item.",
        (
            "source domain",
            "items replaced",
            "replacements",
            "distinct targets",
            "top target share",
            "mean cosine",
            "of random pairs",
            "median percentile",
        ),
        tuple(
            (
                c.source_domain,
                f"{c.mapped_items:,}",
                f"{c.replacements:,}",
                f"{c.distinct_targets:,}",
                f"{c.top_target_share:.3f}",
                f"{c.mean_cosine:.3f}",
                f"{c.mean_cosine_random:.3f}",
                f"{c.median_percentile:.1f}",
            )
            for c in correspondences
        ),
    )


def _difference(comparison: Comparison) -> str:
    if comparison.recommender != comparison.baseline_recommender:
        return f"{comparison.arm}, minus {comparison.baseline_recommender} ({comparison.baseline})"
    return f"{comparison.arm} - {comparison.baseline}"


def _title(report: Report) -> str:
    return f"Evaluation on {report.provenance.dataset}, target {report.provenance.target}"


def _facts(provenance: Provenance) -> list[str]:
    facts = [
        f"command: `{provenance.command}`",
        f"dataset fingerprint: {provenance.dataset_fingerprint}",
        provenance.split,
        f"cells: {provenance.cells_computed} computed, {provenance.cells_reused} read back",
        f"wall time of this run: {provenance.seconds:.1f} s",
        f"configuration: {json.dumps(provenance.configuration, sort_keys=True)}",
    ]
    if provenance.composite is not None:
        facts.append(f"composite: {json.dumps(provenance.composite, sort_keys=True)}")
    return facts


def _checks(results: Results) -> str:
    if not results.broken_checks:
        return "Consistency of HR, NDCG and MRR at 10 and 20: every cell passes."
    return "INCONSISTENT METRICS: " + "; ".join(results.broken_checks)


def _budgets(results: Results) -> list[str]:
    """A warning where rows were best at their last epoch, else nothing."""
    rows = [
        f"{run.recommender} on {run.arm} (seed {', '.join(map(str, run.seeds_cut_short))})"
        for run in results.runs
        if run.seeds_cut_short
    ]
    if not rows:
        return []
    return [
        f"NOT CONVERGED: best at the last epoch they were given: {'; '.join(rows)}. A comparison with such a row "
        'proves nothing: give more epochs, or schedule = "plateau", which finds its own length.'
    ]


def _joined(values: Any) -> str:
    return ", ".join(str(value) for value in values)

"""
The paper's tables from the reports of an evaluation: ours and the paper's numbers side by side.

A row of a reproduced table is compared by what it gains over its base, not by how high it is: the paper's data are
others. Means over targets take every target once; their intervals treat targets as independent, which they are but for
the bundle that they share, as a user is a test user of one target only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

from models.evaluation.bootstrap import Interval
from models.evaluation.study import Report
from models.evaluation.summary import MAIN, Comparison, Score
from models.ranking_metrics import METRICS
from models.reproduction.paper_numbers import OF_NO_RANKING, mean_gain, mean_score
from models.reproduction.paper_rows import PAPER_ROWS, SERVED, SINGLE_DOMAIN, TABLE_2, TABLE_3, TableRow, rivals_of

STATED = "NDCG@10"
MEAN = "mean over targets"


@dataclass(frozen=True)
class Value:
    """
    One number of a reproduced table.

    Args:
        table: 2 or 3.
        row: as it is printed.
        target: the domain, or ``MEAN``.
        metric: one of ``METRICS``.
        users: test users with a target item in their history.
        seeds: of the recommender.
        mean: over users and seeds.
        deviation: over seeds, of the mean over users; 0 with one seed, and for a mean over targets.
        base: the row that the gain is over; None for none.
        gain: relative, with its 95 % interval; None without a base, or where too few users hit for a ratio.
        paper: the mean over its four domains of what the paper prints; None where it has no such row.
        paper_gain: the mean over its domains of the relative gain over the same base.
    """

    table: int
    row: str
    target: str
    metric: str
    users: int
    seeds: int
    mean: float
    deviation: float
    base: str | None
    gain: Interval | None
    paper: float | None
    paper_gain: float | None


@dataclass(frozen=True)
class RivalGain:
    """What a served recommender gains over another reader of mixed histories, on one target or their mean."""

    served: str
    rival: str
    target: str
    metric: str
    gain: Interval


def table_2(reports: Mapping[str, Report]) -> list[Value]:
    """The numbers of table 2, by target's report."""
    values = [
        _value(2, row, target, metric, report)
        for target, report in reports.items()
        for row in TABLE_2
        for metric in METRICS
        if _score(report, row) is not None
    ]
    return values + _means(values)


def table_3(reports: Mapping[str, Mapping[str, Report]]) -> list[Value]:
    """The numbers of table 3, by target's reports by row; first what SASRec of the target's own rows reaches."""
    base = PAPER_ROWS[0]
    values = []
    for target, by_row in reports.items():
        first = next(iter(by_row.values()))
        values += [_value(3, base, target, metric, first) for metric in METRICS]
        for variant in TABLE_3:
            row = TableRow(variant.name, base.recommender, "regenerated", base.name, variant.paper)
            values += [_value(3, row, target, metric, by_row[variant.name]) for metric in METRICS]
    return values + _means(values)


def rival_gains(reports: Mapping[str, Report]) -> list[RivalGain]:
    """Each served recommender, alone and with the expert, against each model that reads the mixed history too."""
    gains = []
    for target, report in reports.items():
        for (recommender, printed), (line, name) in product(SINGLE_DOMAIN.items(), SERVED.items()):
            served = TableRow(name.format(printed), recommender, line)
            for rival, metric in product(rivals_of(recommender), METRICS):
                relative = _relative(report, served, rival.recommender, rival.line, metric)
                if relative is not None:
                    gains.append(RivalGain(served.name, rival.name, target, metric, relative))
    grouped: dict[tuple[str, str, str], list[Interval]] = {}
    for gain in gains:
        grouped.setdefault((gain.served, gain.rival, gain.metric), []).append(gain.gain)
    means = (
        RivalGain(served, rival, MEAN, metric, mean_interval(found))
        for (served, rival, metric), found in grouped.items()
        if len(found) > 1
    )
    return [*gains, *means]


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """
    The interval of the mean of independent estimates, each as normal as its own half-width says.

    >>> mean_interval([Interval(1.0, -2.0, 4.0), Interval(3.0, -1.0, 7.0)])
    Interval(mean=2.0, low=-0.5, high=4.5)
    """
    mean = sum(one.mean for one in intervals) / len(intervals)
    half = math.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in intervals)) / len(intervals)
    return Interval(mean, mean - half, mean + half)


def as_rows(values: Iterable[Value]) -> list[dict[str, str]]:
    """For a CSV file: fractions, an empty field for what there is not."""
    rows = []
    for value in values:
        gain = value.gain
        flat = asdict(value) | {
            "gain": None if gain is None else gain.mean,
            "gain_low": None if gain is None else gain.low,
            "gain_high": None if gain is None else gain.high,
        }
        rows.append({key: _field(one) for key, one in flat.items()})
    return rows


def rivals_as_rows(gains: Iterable[RivalGain]) -> list[dict[str, str]]:
    """For a CSV file: fractions."""
    return [
        {
            "served": one.served,
            "rival": one.rival,
            "target": one.target,
            "metric": one.metric,
            "gain": _field(one.gain.mean),
            "gain_low": _field(one.gain.low),
            "gain_high": _field(one.gain.high),
        }
        for one in gains
    ]


def as_markdown(values: Sequence[Value], *, title: str, notes: Sequence[str] = ()) -> str:
    """One block of six metrics a target, the mean over targets first, with the gain in NDCG@10 beside the paper's."""
    lines = [f"# {title}", "", *(f"- {note}" for note in notes)]
    targets = dict.fromkeys(value.target for value in values)
    for target in sorted(targets, key=lambda name: name != MEAN):
        own = [value for value in values if value.target == target]
        users = sum(v.users for v in own if v.row == own[0].row and v.metric == STATED)
        lines += ["", f"## {target} ({users:,} test users)", ""]
        lines.append("| | " + " | ".join(METRICS) + f" | gain in {STATED} | the paper's gain |")
        lines.append("|---" * (len(METRICS) + 3) + "|")
        for row in dict.fromkeys(value.row for value in own):
            by_metric = {value.metric: value for value in own if value.row == row}
            stated = by_metric[STATED]
            cells = [f"{by_metric[m].mean:.4f}" + _plus_minus(by_metric[m].deviation) for m in METRICS]
            paper = "" if stated.paper_gain is None else f"{100 * stated.paper_gain:+.0f} %"
            lines.append("| " + " | ".join([row, *cells, _percent(stated.gain), paper]) + " |")
    return "\n".join(lines) + "\n"


def rivals_as_markdown(gains: Sequence[RivalGain], *, title: str, notes: Sequence[str] = ()) -> str:
    """A column a rival, a row a target and served recommender: relative difference in NDCG@10 with its interval."""
    stated = [gain for gain in gains if gain.metric == STATED]
    rivals = list(dict.fromkeys(gain.rival for gain in stated))
    lines = [f"# {title}", "", *(f"- {note}" for note in notes), ""]
    lines.append("| target | served | " + " | ".join(f"over {rival}" for rival in rivals) + " |")
    lines.append("|---" * (len(rivals) + 2) + "|")
    found = {(gain.target, gain.served, gain.rival): gain.gain for gain in stated}
    targets = dict.fromkeys(gain.target for gain in stated)
    for target in sorted(targets, key=lambda name: name != MEAN):
        for served in dict.fromkeys(gain.served for gain in stated if gain.target == target):
            cells = [_percent(found.get((target, served, rival))) for rival in rivals]
            lines.append("| " + " | ".join([target, served, *cells]) + " |")
    return "\n".join(lines) + "\n"


def notes_of(reports: Iterable[Report]) -> list[str]:
    """How to read a reproduced table, and what in it proves nothing."""
    notes = [
        "± is the standard deviation over seeds; gains are relative, with 95 % bootstrap intervals over users, which "
        "know neither seeds nor bundles; an interval that contains 0 shows no difference.",
        "The paper's gains are means over its own domains, of other data. The rows that it prints for "
        f"{', '.join(OF_NO_RANKING)} cannot be metrics of one ranking: nothing here is calibrated to them.",
    ]
    short = [
        f"{report.provenance.target}: {run.recommender} on {run.arm}, seed {seed}"
        for report in reports
        for run in report.results.runs
        for seed in run.seeds_cut_short
    ]
    if short:
        notes.append("NOT CONVERGED, best at the last epoch, so they prove nothing: " + "; ".join(short) + ".")
    return notes


def _value(table: int, row: TableRow, target: str, metric: str, report: Report) -> Value:
    score = _score(report, row)
    assert score is not None, (row.name, target)
    base = next((one for one in TABLE_2 if one.name == row.base), None)
    printed = None if base is None else base.paper
    return Value(
        table=table,
        row=row.name,
        target=target,
        metric=metric,
        users=score.users,
        seeds=_num_seeds(report, row),
        mean=score.means[metric],
        deviation=score.deviations[metric],
        base=row.base,
        gain=None if base is None else _relative(report, row, base.recommender, base.line, metric),
        paper=None if row.paper is None else mean_score(row.paper, metric),
        paper_gain=None if row.paper is None or printed is None else mean_gain(row.paper, printed, metric),
    )


def _means(values: Sequence[Value]) -> list[Value]:
    """Every row's mean over targets, where there are several."""
    grouped: dict[tuple[str, str], list[Value]] = {}
    for value in values:
        grouped.setdefault((value.row, value.metric), []).append(value)
    means = []
    for group in grouped.values():
        gains = [value.gain for value in group if value.gain is not None]
        if len(group) > 1:
            means.append(
                replace(
                    group[0],
                    target=MEAN,
                    users=sum(value.users for value in group),
                    mean=sum(value.mean for value in group) / len(group),
                    deviation=0.0,
                    gain=mean_interval(gains) if len(gains) == len(group) else None,
                )
            )
    return means


def _score(report: Report, row: TableRow) -> Score | None:
    for score in report.results.scores:
        if (score.recommender, score.arm, score.group) == (row.recommender, row.line, MAIN.name):
            return score
    return None


def _relative(report: Report, row: TableRow, other: str, line: str, metric: str) -> Interval | None:
    """What *row* gains over *line* of the recommender *other*."""
    wanted = (row.recommender, row.line, other, line, metric, MAIN.name, False)
    for found in report.results.comparisons:
        if _identity(found) == wanted:
            return found.relative
    return None


def _identity(c: Comparison) -> tuple[str, str, str, str, str, str, bool]:
    return (c.recommender, c.arm, c.baseline_recommender, c.baseline, c.metric, c.group, c.without_leak_hits)


def _num_seeds(report: Report, row: TableRow) -> int:
    """Lines without a training of their own have the seeds of the recommender; the decoders have one."""
    return max((len(run.seeds) for run in report.results.runs if run.recommender == row.recommender), default=1)


def _plus_minus(deviation: float) -> str:
    return f" ± {deviation:.4f}" if deviation else ""


def _percent(gain: Interval | None) -> str:
    return "" if gain is None else f"{100 * gain.mean:+.0f} % [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]"


def _field(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

"""
Write the tables of docs/results-tables.md: python docs/write_results.py A/report.json ...

Prints Markdown: one table of NDCG@10 per data set, rule and ranking, its differences with intervals, their means per
recommender, HR@10 by how many target items users have and of those with few, all targets together, and commands; then
the leak audits of all composites. Every number stands in the reports; nothing is computed here but means over targets
and shares of the expert's lead.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Score = dict[str, Any]
LINES = ("original", "duplicated", "regenerated", "served", "mixed")
GAINS = (("regenerated", "original"), ("regenerated", "duplicated"), ("served", "original"), ("served", "duplicated"))
# How much of the target expert's lead over a recommender of original rows the composite, or serving as well, gives it.
CARRIED = ("regenerated carries", "served carries")
METRIC = "NDCG@10"
MAIN, COLD = "1 or more", "0-2"
# Of users, by target items in the history, as scores are reported; the first two together are COLD.
GROUPS = ("0", "1-2", "3-5", "6 or more")
COLD_PARTS = GROUPS[:2]
COUNTED = ("popularity", "markov")
AUDIT_HEADER = (
    "data",
    "rule",
    "target",
    "held-out item",
    "users",
    "hits",
    "expected by chance",
    "of as many recommendations",
)
COLD_HEADER = ("at most two target items", "served", "minus", "its HR@10", "users", "difference", "relative")


def main(paths: Sequence[str]) -> None:
    """Print the page's tables."""
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    for (name, rule, ranking), group in groupby(sorted(reports, key=_kind), key=_kind):
        members = list(group)
        gains = [f"{arm} - {baseline}" for arm, baseline in GAINS]
        parts = [
            f"### {name}, rule `{rule}`, ranking `{ranking}`\n",
            *table(["target", "recommender", "users", "seeds", *LINES, *CARRIED], _score_rows(members)),
            *table(["target", "recommender", *gains], _gain_rows(members)),
            *table(["recommender", "targets", *gains], _mean_rows(members)),
            *table(["items of the target", "recommender", "users", *LINES], _group_rows(members)),
            *table(COLD_HEADER, _cold_rows(members)),
            *(f"- `{report['provenance']['command']}`" for report in members),
        ]
        sys.stdout.write("\n".join(parts) + "\n\n")
    audits = table(AUDIT_HEADER, _audit_rows(sorted(reports, key=_kind)))
    if audits:
        sys.stdout.write("\n".join(["### Leak audits\n", *audits]))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; none where there are no rows."""
    # Reports of one target share what does not depend on the recommender.
    lines = dict.fromkeys("| " + " | ".join(row) + " |" for row in rows)
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *lines, ""] if lines else []


def _kind(report: dict[str, Any]) -> tuple[str, str, str]:
    provenance = report["provenance"]
    rule = "none" if provenance["composite"] is None else provenance["composite"]["rule"]
    # Reports that do not say were written when there was only one.
    return provenance["dataset"], rule, provenance.get("ranking", "all")


def _score_rows(reports: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    for report in reports:
        scores = {(s["recommender"], s["arm"]): s for s in report["results"]["scores"] if s["group"] == MAIN}
        seeds = {run["recommender"]: len(run["seeds"]) for run in report["results"]["runs"]}
        for recommender in dict.fromkeys(name for name, _ in scores):
            found = [scores.get((recommender, line)) for line in LINES]
            users = next(score["users"] for score in found if score is not None)
            # Counting has no part in what the expert learned.
            expert = None if recommender in COUNTED else scores.get(("target expert", "mixed"))
            own = [scores.get((recommender, line)) for line in ("original", "regenerated", "served")]
            yield [
                report["provenance"]["target"],
                recommender,
                f"{users:,}",
                str(seeds.get(recommender, 1)),
                *("" if score is None else f"{score['means'][METRIC]:.4f}" for score in found),
                *(_carried(own[0], score, expert) for score in own[1:]),
            ]


def _carried(original: Score | None, score: Score | None, expert: Score | None) -> str:
    """(score - original) / (expert - original); empty where the expert does not lead."""
    if original is None or score is None or expert is None:
        return ""
    base, here, above = (line["means"][METRIC] for line in (original, score, expert))
    return f"{100 * (here - base) / (above - base):.0f} %" if above > base else ""


def _gain_rows(reports: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    for report in reports:
        gains = _gains(report)
        for recommender in dict.fromkeys(name for name, *_ in gains):
            cells = [gains.get((recommender, *pair)) for pair in GAINS]
            yield [report["provenance"]["target"], recommender, *("" if c is None else _stated(c) for c in cells)]


def _mean_rows(reports: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    """
    Mean over targets of the relative difference; its interval from those of the targets, as if they were independent.

    A user is a test user of one target only, so they are, but for the weights that targets share through the bundle.
    """
    every: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for report in reports:
        target = report["provenance"]["target"]
        for line, comparison in _gains(report).items():
            if (target, *line) in every:
                raise SystemExit(f"two reports compare {line} on {target}: give one of them")
            every[target, *line] = comparison
    for recommender in dict.fromkeys(name for _, name, *_ in every):
        cells, most = [], 0
        for pair in GAINS:
            found = [c for (_, *line), c in every.items() if line == [recommender, *pair]]
            relatives = [c for c in found if c["relative"] is not None]
            if not relatives:
                cells.append("")
                continue
            most = max(most, len(relatives))
            mean = sum(c["relative"]["mean"] for c in relatives) / len(relatives)
            half = math.sqrt(sum(_half_width(c["relative"]) ** 2 for c in relatives)) / len(relatives)
            cells.append(f"{100 * mean:+.1f} % [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]")
        yield [recommender, str(most), *cells]


def _group_rows(reports: Sequence[dict[str, Any]]) -> Iterable[list[str]]:
    """HR@10 of every line over the users of a group, those of all targets together."""
    # Reports of one target share the lines of the decoders.
    scores = {
        (report["provenance"]["target"], s["group"], s["recommender"], s["arm"]): s
        for report in reports
        for s in report["results"]["scores"]
        if s["group"] in GROUPS
    }
    sums: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    for (_, group, recommender, line), s in scores.items():
        lines = sums.setdefault((group, recommender), {})
        users, hits = lines.get(line, (0, 0.0))
        lines[line] = (users + s["users"], hits + s["users"] * s["means"]["HR@10"])
    for (group, recommender), lines in sorted(sums.items(), key=lambda item: GROUPS.index(item[0][0])):
        most = max(users for users, _ in lines.values())
        # A line of some of the targets only is of other people.
        shown = {line: hits / users for line, (users, hits) in lines.items() if users == most}
        yield [group, recommender, f"{most:,}", *(f"{shown[line]:.4f}" if line in shown else "" for line in LINES)]


def _cold_rows(reports: Sequence[dict[str, Any]]) -> Iterable[list[str]]:
    """
    Users with few target items, those of all targets together: a user is a test user of one target only.

    The interval of the mean over users is put together from those of the targets.
    """
    found: dict[tuple[str, str, str], list[tuple[int, dict[str, Any], float, float]]] = {}
    for report in reports:
        means = _cold_means(report)
        for c in report["results"]["comparisons"]:
            if c["group"] == COLD and c["metric"] == "HR@10" and c["recommender"] not in COUNTED:
                others = (c["baseline_recommender"], c["baseline"])
                served, other = means[c["recommender"], c["arm"]], means[others]
                found.setdefault((c["recommender"], *others), []).append((c["users"], c["interval"], served, other))
    for (recommender, other, line), parts in found.items():
        users = sum(part[0] for part in parts)
        served, base = (sum(part[0] * part[place] for part in parts) / users for place in (2, 3))
        mean = sum(count * interval["mean"] for count, interval, *_ in parts) / users
        half = math.sqrt(sum((count * _half_width(i)) ** 2 for count, i, *_ in parts)) / users
        difference = f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
        relative = f"{100 * mean / base:+.0f} %" if base else ""
        yield [recommender, f"{served:.4f}", f"{other} ({line})", f"{base:.4f}", f"{users:,}", difference, relative]


def _cold_means(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """HR@10 of each line over users with at most two target items."""
    sums: dict[tuple[str, str], list[float]] = {}
    for s in report["results"]["scores"]:
        if s["group"] in COLD_PARTS:
            total = sums.setdefault((s["recommender"], s["arm"]), [0.0, 0.0])
            total[0] += s["users"] * s["means"]["HR@10"]
            total[1] += s["users"]
    return {line: hits / users for line, (hits, users) in sums.items()}


def _audit_rows(reports: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    for report in reports:
        name, rule, _ = _kind(report)
        for audit in report["audits"]:
            yield [
                name,
                rule,
                report["provenance"]["target"],
                audit["split"],
                f"{audit['users']:,}",
                f"{audit['hits']:,}",
                f"{audit['expected_by_chance']:.1f}",
                f"{audit['hits_of_recommendations']:,}",
            ]


def _gains(report: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Comparisons of lines of one recommender."""
    return {
        (c["recommender"], c["arm"], c["baseline"]): c
        for c in report["results"]["comparisons"]
        if c["metric"] == METRIC
        and c["group"] == MAIN
        and not c["without_leak_hits"]
        and c["recommender"] == c["baseline_recommender"]
        and c["recommender"] not in COUNTED
        and (c["arm"], c["baseline"]) in GAINS
    }


def _stated(comparison: dict[str, Any]) -> str:
    interval, relative = comparison["interval"], comparison["relative"]
    percent = "" if relative is None else f"{100 * relative['mean']:+.0f} %: "
    return f"{percent}{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"


def _half_width(interval: dict[str, float]) -> float:
    return (interval["high"] - interval["low"]) / 2


if __name__ == "__main__":
    main(sys.argv[1:])

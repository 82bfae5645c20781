"""
Write the raw numbers of docs/results.md as CSV: python docs/write_results.py FOLDER A/report.json B/report.json ...

FOLDER gets one file per kind of number (docs/data/README.md has their columns). Every number stands in the reports;
nothing is computed here but means over targets and shares of the expert's lead. ``make charts`` draws from the files.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Score = dict[str, Any]
Row = dict[str, str]
LINES = ("original", "duplicated", "regenerated", "served", "mixed")
GAINS = (("regenerated", "original"), ("regenerated", "duplicated"), ("served", "original"), ("served", "duplicated"))
METRIC = "NDCG@10"
MAIN, COLD = "1 or more", "0-2"
# Of users, by target items in the history, as scores are reported; the first two together are COLD.
GROUPS = ("0", "1-2", "3-5", "6 or more")
COLD_PARTS = GROUPS[:2]
COUNTED = ("popularity", "markov")
EXPERT = ("target expert", "mixed")


def main(folder: Path, paths: Sequence[str]) -> None:
    """Write the files into *folder*."""
    reports = sorted((json.loads(Path(path).read_text(encoding="utf-8")) for path in paths), key=_kind)
    groups = [(kind, list(members)) for kind, members in groupby(reports, key=_kind)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows_of, columns) in FILES.items():
        rows = [
            {**dict(zip(columns, kind, strict=False)), **row} for kind, members in groups for row in rows_of(members)
        ]
        # Reports of one target share what does not depend on the recommender, or on the ranking.
        write_csv(folder / f"{name}.csv", _without_repeats(rows))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row under the names of the columns; no file where there are no rows."""
    if not rows:
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _kind(report: dict[str, Any]) -> tuple[str, str, str]:
    provenance = report["provenance"]
    rule = "none" if provenance["composite"] is None else provenance["composite"]["rule"]
    # Reports that do not say were written when there was only one.
    return provenance["dataset"], rule, provenance.get("ranking", "all")


def _without_repeats(rows: Iterable[Row]) -> list[Row]:
    return list({tuple(row.items()): row for row in rows}.values())


def score_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """NDCG@10 of every line, and the share of the target expert's lead that it carries, in percent."""
    for report in reports:
        scores = {(s["recommender"], s["arm"]): s for s in report["results"]["scores"] if s["group"] == MAIN}
        seeds = {run["recommender"]: len(run["seeds"]) for run in report["results"]["runs"]}
        for recommender in dict.fromkeys(name for name, _ in scores):
            found = {line: scores.get((recommender, line)) for line in LINES}
            # Counting has no part in what the expert learned.
            expert = None if recommender in COUNTED else scores.get(EXPERT)
            yield {
                "target": report["provenance"]["target"],
                "recommender": recommender,
                "users": str(next(score["users"] for score in found.values() if score is not None)),
                "seeds": str(seeds.get(recommender, 1)),
                **{line: "" if score is None else f"{score['means'][METRIC]:.4f}" for line, score in found.items()},
                **{
                    f"{line}_carries_percent": _carried(found["original"], found[line], expert)
                    for line in ("regenerated", "served")
                },
            }


def _carried(original: Score | None, score: Score | None, expert: Score | None) -> str:
    """(score - original) / (expert - original); empty where the expert does not lead."""
    if original is None or score is None or expert is None:
        return ""
    base, here, above = (line["means"][METRIC] for line in (original, score, expert))
    return f"{100 * (here - base) / (above - base):.0f}" if above > base else ""


def difference_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Differences in NDCG@10 between lines of one recommender on one target, with 95 % intervals."""
    for report in reports:
        for (recommender, line, baseline), comparison in _gains(report).items():
            interval, relative = comparison["interval"], comparison["relative"]
            yield {
                "target": report["provenance"]["target"],
                "recommender": recommender,
                "line": line,
                "baseline": baseline,
                "relative_percent": "" if relative is None else f"{100 * relative['mean']:+.0f}",
                "difference": f"{interval['mean']:+.4f}",
                "low": f"{interval['low']:+.4f}",
                "high": f"{interval['high']:+.4f}",
            }


def mean_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
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
    for line in dict.fromkeys(tuple(line) for _, *line in every):
        relatives = [c["relative"] for (_, *own), c in every.items() if tuple(own) == line and c["relative"]]
        if relatives:
            mean = sum(relative["mean"] for relative in relatives) / len(relatives)
            half = math.sqrt(sum(_half_width(relative) ** 2 for relative in relatives)) / len(relatives)
            yield {
                **dict(zip(("recommender", "line", "baseline"), line, strict=True)),
                "targets": str(len(relatives)),
                "relative_percent": f"{100 * mean:+.1f}",
                "low": f"{100 * (mean - half):+.1f}",
                "high": f"{100 * (mean + half):+.1f}",
            }


def group_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
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
        yield {
            "target_items": group,
            "recommender": recommender,
            "users": str(most),
            **{line: f"{shown[line]:.4f}" if line in shown else "" for line in LINES},
        }


def cold_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """
    HR@10 of users with at most two target items, those of all targets together.

    A user is a test user of one target only, so the interval of the mean over users is put together from those of the
    targets.
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
        yield {
            "recommender": recommender,
            "served": f"{served:.4f}",
            "other": other,
            "other_line": line,
            "other_hit_rate": f"{base:.4f}",
            "users": str(users),
            "difference": f"{mean:+.4f}",
            "low": f"{mean - half:+.4f}",
            "high": f"{mean + half:+.4f}",
            "relative_percent": f"{100 * mean / base:+.0f}" if base else "",
        }


def _cold_means(report: dict[str, Any]) -> dict[tuple[str, str], float]:
    """HR@10 of each line over users with at most two target items."""
    sums: dict[tuple[str, str], list[float]] = {}
    for s in report["results"]["scores"]:
        if s["group"] in COLD_PARTS:
            total = sums.setdefault((s["recommender"], s["arm"]), [0.0, 0.0])
            total[0] += s["users"] * s["means"]["HR@10"]
            total[1] += s["users"]
    return {line: hits / users for line, (hits, users) in sums.items()}


def audit_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """Users whose own held-out item is among what regeneration put into their row."""
    for report in reports:
        for audit in report["audits"]:
            yield {
                "target": report["provenance"]["target"],
                "held_out": audit["split"],
                "users": str(audit["users"]),
                "hits": str(audit["hits"]),
                "expected_by_chance": f"{audit['expected_by_chance']:.1f}",
                "of_as_many_recommendations": str(audit["hits_of_recommendations"]),
            }


def command_rows(reports: Iterable[dict[str, Any]]) -> Iterator[Row]:
    """What to type for each report."""
    for report in reports:
        yield {"command": report["provenance"]["command"]}


def _gains(report: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Comparisons of lines of one recommender, those of ``GAINS`` in their order."""
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


def _half_width(interval: dict[str, float]) -> float:
    return (interval["high"] - interval["low"]) / 2


KIND = ("data", "rule", "ranking")
# Name -> what makes its rows, and the columns before them.
FILES = {
    "scores": (score_rows, KIND),
    "differences": (difference_rows, KIND),
    "means": (mean_rows, KIND),
    "hit-rate-by-history": (group_rows, KIND),
    "cold-start": (cold_rows, KIND),
    "leak-audits": (audit_rows, KIND[:2]),
    "commands": (command_rows, KIND),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

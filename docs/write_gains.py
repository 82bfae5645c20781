"""
Write docs/data/gains.csv from reports of `taesar evaluate`; rows of other bundles stay.

    python docs/write_gains.py docs/data/gains.csv A/report.json B/report.json ...

One row a line of SASRec (and the target expert's own), NDCG@10 of the users with a target item in their history, and
its gain over SASRec of the original rows.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

RECOMMENDER, EXPERT = "sasrec", ("target expert", "mixed")
METRIC, MAIN = "NDCG@10", "1 or more"
LINES = ("original", "duplicated", "with expert", "regenerated", "served", "served with expert")


def main(out: Path, paths: Sequence[str]) -> None:
    """Write *out*: its rows of bundles that no report is about, and those of the reports."""
    rows = [row for path in paths for row in gain_rows(json.loads(Path(path).read_text(encoding="utf-8")))]
    reported = {row["bundle"] for row in rows}
    if out.is_file():
        with out.open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["bundle"] not in reported]
    rows.sort(key=lambda row: [row[name] for name in ("data", "target", "seeds", "dial")])
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def gain_rows(report: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The lines of one report."""
    provenance, results = report["provenance"], report["results"]
    composite = provenance["composite"]
    scores = {(s["recommender"], s["arm"]): s for s in results["scores"] if s["group"] == MAIN}
    runs = {run["arm"]: run for run in results["runs"] if run["recommender"] == RECOMMENDER}
    gains = {
        (c["recommender"], c["arm"]): c["relative"]
        for c in results["comparisons"]
        if c["metric"] == METRIC
        and c["group"] == MAIN
        and not c["without_leak_hits"]
        and (c["baseline_recommender"], c["baseline"]) == (RECOMMENDER, "original")
    }
    for line in (*((RECOMMENDER, line) for line in LINES), EXPERT):
        if line not in scores:
            continue
        gain, run = gains.get(line), runs.get(line[1])
        yield {
            "data": provenance["dataset"],
            "target": provenance["target"],
            "users": str(scores[line]["users"]),
            "ranking": provenance["ranking"],
            "bundle": composite["bundle_version"],
            "dial": composite["dial"],
            "seeds": " ".join(map(str, provenance["configuration"]["seeds"])),
            "line": "target expert" if line == EXPERT else line[1],
            "ndcg_at_10": f"{scores[line]['means'][METRIC]:.4f}",
            **{
                f"{name}_percent": "" if gain is None else f"{100 * gain[name]:+.1f}"
                for name in ("mean", "low", "high")
            },
            "best_epochs": "" if run is None else " ".join(map(str, run["best_epochs"])),
            "epochs": "" if run is None else " ".join(map(str, run["epochs"])),
        }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

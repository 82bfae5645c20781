"""
Put the numbers of `taesar reproduce` into docs/data/; rows of other datasets and rankings stay.

    python docs/write_paper_tables.py DATASET OUT

OUT is the folder that it wrote. paper-table-2.csv, paper-table-3.csv, paper-rivals.csv, paper-figure-4.csv and
paper-figure-5.csv get its rows, with the dataset's name and the ranking in front; figures, which hang on
no ranking, have `all`.
"""

from __future__ import annotations

import csv
import sys
from itertools import product
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
# Written by `taesar reproduce` -> kept as.
FILES = {
    "table-2": "paper-table-2",
    "table-3": "paper-table-3",
    "rivals": "paper-rivals",
    "figure-4": "paper-figure-4",
    "figure-5": "paper-figure-5",
}
# Ranking -> what the names of its files end with.
RANKINGS = {"all": "", "unseen": "-unseen"}
# The name of the file says it.
LEFT_OUT = {"table"}


def main(dataset: str, out: Path) -> None:
    """Replace the rows of *dataset* by those of *out*, ranking by ranking."""
    for (name, kept), ranking in product(FILES.items(), RANKINGS):
        written = out / f"{name}{RANKINGS[ranking]}.csv"
        if written.is_file():
            place = {"dataset": dataset, "ranking": ranking}
            rows = [place | _without(row) for row in _read(written)]
            path = DATA / f"{kept}.csv"
            others = _read(path) if path.is_file() else []
            rows += [row for row in others if (row["dataset"], row["ranking"]) != (dataset, ranking)]
            rows.sort(key=lambda row: (row["dataset"], row["ranking"]))
            _write(path, rows)


def _without(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key not in LEFT_OUT}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

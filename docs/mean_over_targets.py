"""
Mean gain over targets of datasets that share people: python docs/mean_over_targets.py RECOMMENDER DATASET/TARGET ...

For each pair there is the prepared dataset and a folder ``cells-DATASET-TARGET`` with the finished cells of one
composite (`taesar evaluate ... --cells`). Prints per ranking the relative gain in NDCG@10 of lines ``regenerated`` and
``served`` over ``original`` and ``duplicated``: users with a target item in their history, mean over seeds, then over
the pairs. Intervals are bootstraps over people, who count in every table that has them.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.data.dataset import load_dataset
from models.evaluation.arms import build_arm
from models.evaluation.bootstrap import bootstrap_mean_gain
from models.evaluation.study import ANALYSIS_SEED
from models.evaluation.summary import MAIN
from models.ranking_metrics import ndcg_at_k

RANKINGS = ("all", "unseen")
GAINS = tuple((line, baseline) for line in ("regenerated", "served") for baseline in ("original", "duplicated"))

Values = dict[str, dict[str, npt.NDArray[np.float64]]]


def main(recommender: str, places: Sequence[str]) -> None:
    """Print one line per ranking."""
    tables = [table(recommender, Path(place)) for place in places]
    row_of = {user: row for row, user in enumerate(sorted({user for users, _ in tables for user in users}))}
    for ranking in RANKINGS:
        columns = defaultdict(lambda: np.zeros((len(row_of), len(tables))))
        for column, (users, by_line) in enumerate(tables):
            for line, means in by_line[ranking].items():
                columns[line][[row_of[user] for user in users], column] = means
        gains = (bootstrap_mean_gain(columns[line], columns[over], seed=ANALYSIS_SEED) for line, over in GAINS)
        cells = (f"{100 * gain.mean:+.0f} % [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]" for gain in gains)
        sys.stdout.write(f"| {recommender} | {ranking} | {' | '.join(cells)} | {len(tables)} | {len(row_of):,} |\n")


def table(recommender: str, place: Path) -> tuple[list[str], Values]:
    """Users with a target item in their history, and NDCG@10 [N] of each by ranking and line of the results."""
    dataset = load_dataset(place.parent)
    queries = build_arm(dataset, place.name, "original", None).test
    is_main = MAIN.members(queries.num_target_items)
    by_line: dict[str, dict[str, list[Any]]] = {ranking: defaultdict(list) for ranking in RANKINGS}
    for line, ranks in ranks_of(recommender, place.parent.with_name(f"cells-{place.parent.name}-{place.name}")):
        for ranking in RANKINGS:
            if len(ranks[ranking]) != len(queries):
                sys.exit(f"{place}: a cell ranks {len(ranks[ranking])} users, the dataset has {len(queries)}")
            by_line[ranking][line].append(ndcg_at_k(torch.tensor(ranks[ranking]), 10).numpy()[is_main])
    num_seeds = {line: len(seeds) for line, seeds in by_line["all"].items()}
    if len(set(num_seeds.values())) != 1:
        sys.exit(f"{place}: every line needs the same seeds, there are cells of {num_seeds}")
    users = [dataset.user_ids[user] for user in queries.users[is_main]]
    return users, {
        ranking: {line: np.mean(seeds, axis=0) for line, seeds in lines.items()} for ranking, lines in by_line.items()
    }


def ranks_of(recommender: str, cells: Path) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Line and ranks of every cell of *recommender*."""
    for path in sorted(cells.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["recommender"] == recommender:
            yield cell["arm"], cell["ranks"]
            if cell["served_ranks"] is not None:
                yield "served", cell["served_ranks"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

"""
Where a scorer ranks the held-out items: full, over the target's items, ties pessimistic.

Twice by the same scores (``Ranks``): among all items, and among those that the user has not had. A user whose history
is empty says nothing to a sequential model and is ranked by popularity in the arm's rows.

Shapes: N = held-out rows, B = batch, T = positions, X = candidates, L = items seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.dataset import pad_right
from models.evaluation.arms import Arm, Queries
from models.ranking_metrics import pessimistic_ranks, ranks_without
from models.recommenders.popularity import Popularity
from models.recommenders.recommender import Scorer
from models.vocabulary import PADDING

RANKING_ROWS = 256
# Scores held at once while ranking, in elements (64 MB).
RANKING_ELEMENTS = 1 << 24

RankingName = Literal["all", "unseen"]


@dataclass(frozen=True)
class Ranks:
    """
    Pessimistic ranks [N] of the held-out items, in the order of the arm's queries.

    Args:
        all: among all of the target's items, as the paper ranks.
        unseen: without the target's items that the user had before (``Queries.seen``), as a shop ranks what is bought
            once.
    """

    all: tuple[int, ...]
    unseen: tuple[int, ...]

    def among(self, ranking: RankingName) -> tuple[int, ...]:
        """The ranks of one ranking."""
        return self.all if ranking == "all" else self.unseen


class ScoredBatch(NamedTuple):
    """
    Scores of some held-out rows.

    Args:
        rows_B: which rows of the queries.
        scores_BX: of every candidate.
        by_popularity: whether the histories are empty and popularity scored them.
    """

    rows_B: npt.NDArray[np.int64]
    scores_BX: Tensor
    by_popularity: bool


@torch.inference_mode()
def rank_queries(scorer: Scorer, queries: Queries, arm: Arm, device: torch.device) -> Ranks:
    """
    Rank every held-out item of *queries* among the arm's candidates.

    Raises:
        ValueError: a score is NaN.
    """
    found_2N = np.zeros((2, len(queries)), dtype=np.int64)
    for batch in scored_batches(scorer, queries, arm, device):
        found_2N[:, batch.rows_B] = ranks_of(batch.scores_BX, batch.rows_B, queries, arm)
    return Ranks(*(tuple(ranks_N.tolist()) for ranks_N in found_2N))


def scored_batches(scorer: Scorer, queries: Queries, arm: Arm, device: torch.device) -> Iterator[ScoredBatch]:
    """Every row of *queries* once; histories of similar length share a batch."""
    order: npt.NDArray[np.int64] = np.argsort(queries.histories.lengths, kind="stable")
    num_empty = int((queries.histories.lengths == 0).sum())
    popularity = Popularity.build(arm.rows, arm.num_items)
    size = max(1, min(RANKING_ROWS, RANKING_ELEMENTS // len(arm.candidates)))
    for chosen, model in ((order[:num_empty], popularity), (order[num_empty:], scorer)):
        for start in range(0, len(chosen), size):
            rows_B = chosen[start : start + size]
            item_ids_BT = pad_right([queries.histories[int(row)] for row in rows_B]).to(device)
            yield ScoredBatch(rows_B, model.scores(item_ids_BT, arm.candidates), model is popularity)


def ranks_of(scores_BX: Tensor, rows_B: npt.NDArray[np.int64], queries: Queries, arm: Arm) -> npt.NDArray[np.int64]:
    """The ranks [2, B] of the held-out items of some rows: among all candidates, and among unseen ones."""
    columns_B = torch.from_numpy(queries.targets[rows_B].astype(np.int64)) - arm.candidates.first
    columns_B = columns_B.to(scores_BX.device)
    seen_BL = pad_right([queries.seen[int(row)] for row in rows_B]).to(scores_BX.device)
    seen_columns_BL = torch.where(seen_BL == PADDING, -1, seen_BL - arm.candidates.first)
    ranks_B = pessimistic_ranks(scores_BX, columns_B)
    unseen_ranks_B = ranks_without(ranks_B, scores_BX, columns_B, seen_columns_BL)
    both_2B: npt.NDArray[np.int64] = torch.stack([ranks_B, unseen_ranks_B]).cpu().numpy()
    return both_2B

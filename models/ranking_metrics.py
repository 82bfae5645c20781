"""
Ranking metrics with one relevant item per row.

Ours although ranx, RecTools and RecBole have these metrics: they take or make a sorted list per user, in which chance
orders equal scores. Here a rank is counted from the scores, on the device where they are, and equals count against the
recommender. A test compares the values with RecBole's.

Full ranking over a candidate range, no sampled negatives. Ties rank pessimistically: an item's rank counts every
candidate that scores at least as high, so a constant scorer ranks last everywhere.

Shapes: N = evaluated rows, X = candidate items, L = items left out of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor


def pessimistic_ranks(scores_NX: Tensor, target_columns_N: Tensor) -> Tensor:
    """
    1-based rank of each row's target among its candidates, ties counted against it.

    Args:
        scores_NX: one score per row and candidate; must be finite or -inf.
        target_columns_N: int64 column of each row's relevant item.

    Returns:
        int64 ranks [N] in 1..X.

    Raises:
        ValueError: a score is NaN.

    >>> pessimistic_ranks(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([2, 0])).tolist()
    [2, 3]
    """
    if torch.isnan(scores_NX).any():
        raise ValueError("scores hold NaN: the ranking would be arbitrary")
    targets_N1 = scores_NX.gather(1, target_columns_N[:, None])
    return (scores_NX >= targets_N1).sum(dim=1)


def ranks_without(ranks_N: Tensor, scores_NX: Tensor, target_columns_N: Tensor, left_out_NL: Tensor) -> Tensor:
    """
    What ``pessimistic_ranks`` would be if some candidates of each row did not take part.

    Args:
        ranks_N: what it is when all do.
        left_out_NL: their columns, each once and never the row's target; -1 where there are fewer than L.

    >>> scores = torch.tensor([[3.0, 1.0, 2.0]])
    >>> ranks_without(torch.tensor([3]), scores, torch.tensor([1]), torch.tensor([[0, -1]])).tolist()
    [2]
    """
    targets_N1 = scores_NX.gather(1, target_columns_N[:, None])
    above_NL = (scores_NX.gather(1, left_out_NL.clamp(min=0)) >= targets_N1) & (left_out_NL >= 0)
    return ranks_N - above_NL.sum(dim=1)


def hit_rate_at_k(ranks_N: Tensor, k: int) -> Tensor:
    """HR@k per row: 1 if rank <= k else 0, float64 [N]."""
    return (ranks_N <= k).double()


def ndcg_at_k(ranks_N: Tensor, k: int) -> Tensor:
    """
    NDCG@k per row: 1 / log2(rank + 1) if rank <= k else 0, float64 [N].

    >>> ndcg_at_k(torch.tensor([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    return torch.where(ranks_N <= k, 1 / torch.log2(ranks_N.double() + 1), 0.0)


def mrr_at_k(ranks_N: Tensor, k: int) -> Tensor:
    """MRR@k per row: 1 / rank if rank <= k else 0, float64 [N]."""
    return torch.where(ranks_N <= k, 1 / ranks_N.double(), 0.0)


METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    f"{name}@{k}": partial(metric, k=k)
    for k in (10, 20)
    for name, metric in (("HR", hit_rate_at_k), ("NDCG", ndcg_at_k), ("MRR", mrr_at_k))
}


def per_row_metrics(ranks_N: Tensor) -> Tensor:
    """Every metric of ``METRICS`` for every row, float64 [N, M] in the order of its keys."""
    return torch.stack([metric(ranks_N) for metric in METRICS.values()], dim=1)


def broken_inequalities(means: Mapping[str, float], *, tolerance: float = 1e-9) -> list[str]:
    """
    Which relations that metrics of one ranked list must satisfy these means violate; empty if they are consistent.

    With one relevant item per row and dM = M@20 - M@10, the rows gained rank 11 to 20, so
    MRR <= NDCG <= HR at each k, dHR / log2(21) <= dNDCG <= dHR / log2(12) and dHR / 20 <= dMRR <= dHR / 11.

    Args:
        means: a value for each key of ``METRICS``.
        tolerance: allowance for rounding of printed values.

    >>> broken_inequalities({"HR@10": .1, "NDCG@10": .2, "MRR@10": .1, "HR@20": .1, "NDCG@20": .2, "MRR@20": .1})
    ['NDCG@10 <= HR@10', 'NDCG@20 <= HR@20']
    """
    gained_hr, gained_ndcg, gained_mrr = (means[f"{name}@20"] - means[f"{name}@10"] for name in ("HR", "NDCG", "MRR"))
    relations = {
        **{f"MRR@{k} <= NDCG@{k}": (means[f"MRR@{k}"], means[f"NDCG@{k}"]) for k in (10, 20)},
        **{f"NDCG@{k} <= HR@{k}": (means[f"NDCG@{k}"], means[f"HR@{k}"]) for k in (10, 20)},
        "HR@10 <= HR@20": (0.0, gained_hr),
        "dHR / log2(21) <= dNDCG": (gained_hr / math.log2(21), gained_ndcg),
        "dNDCG <= dHR / log2(12)": (gained_ndcg, gained_hr / math.log2(12)),
        "dHR / 20 <= dMRR": (gained_hr / 20, gained_mrr),
        "dMRR <= dHR / 11": (gained_mrr, gained_hr / 11),
    }
    return [name for name, (smaller, larger) in relations.items() if smaller > larger + tolerance]

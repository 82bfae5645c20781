"""
Ranking metrics with one relevant item per row.

Full ranking over a candidate range, no sampled negatives, no history masking. Ties rank pessimistically: an item's
rank counts every candidate that scores at least as high, so a constant scorer ranks last everywhere.

Shapes: N = evaluated rows, X = candidate items.
"""

from __future__ import annotations

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

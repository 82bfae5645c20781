"""
Logits of many positions, block after block: what every rule that scores items shares.

Logits exist for one block of positions at a time, never for all. A position's logits, and what is computed from them,
are the same to the bit whatever the other positions are and however many there are.

Shapes: N = positions, C = positions of one block, D = width, V = num_items + 1, X = candidate items (a column range).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of one decoder held at once, in elements: 2 M floats are 8 MB, about a core's share of the last-level cache; a
# GPU wants enough to be busy, 128 MB.
BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS = 1 << 21, 1 << 25
# A row of a matrix product is computed alike whatever the other rows hold, and however many there are, as long as
# there are at least this many (below, the libraries take other kernels that round differently).
MIN_BLOCK_ROWS = 16
# More rows than this gain no speed.
MAX_BLOCK_ROWS, GPU_MAX_BLOCK_ROWS = 256, 2048
# A GPU's softmax reads 16 bytes at a time from wherever a row begins, and sums in that order.
GPU_ALIGNMENT = 4


class View(NamedTuple):
    """One decoder's part: its hidden states [N, D] at the positions to decide, and its item table [V, D]."""

    hidden_ND: Tensor
    table_VD: Tensor


def logits_in_blocks(views: Sequence[View]) -> Iterator[Tensor]:
    """
    Logits [C, V] of all positions, added up over *views*, block after block, as many at once as ``block_rows`` allows.

    A position's logits are the same to the bit whatever the others and however many there are.
    """
    N = len(views[0].hidden_ND)
    rows = block_rows(views[0].table_VD)
    for start in range(0, N, rows):
        logits_CV = block_logits(views[0], start, rows)
        for view in views[1:]:
            logits_CV = logits_CV + block_logits(view, start, rows)
        yield logits_CV[: N - start]


def log_softmax(logits_CX: Tensor) -> Tensor:
    """Logarithm of every row's softmax, the same to the bit wherever among the others the row stands."""
    return torch.log_softmax(aligned(logits_CX), dim=1)[:, : logits_CX.shape[1]]


def block_rows(table_VD: Tensor, block_elements: int | None = None) -> int:
    """
    Positions of one block, so that its logits over *table_VD* stay in the cache (on a GPU: keep it busy).

    Args:
        table_VD: an item table.
        block_elements: most logits of one decoder held at once; by default BLOCK_ELEMENTS, on a GPU GPU_BLOCK_ELEMENTS.
    """
    most_elements, most_rows = BLOCK_ELEMENTS, MAX_BLOCK_ROWS
    if table_VD.is_cuda:
        most_elements, most_rows = GPU_BLOCK_ELEMENTS, GPU_MAX_BLOCK_ROWS
    elements = most_elements if block_elements is None else block_elements
    return min(most_rows, max(MIN_BLOCK_ROWS, elements // len(table_VD)))


def block_logits(view: View, start: int, rows: int) -> Tensor:
    """
    Logits [C, V] of positions start.. in a product of at least MIN_BLOCK_ROWS rows; the padded rows are zero.

    On a GPU every product has all *rows*: its library chooses the order of a sum by the shape.
    """
    hidden_CD = view.hidden_ND[start : start + rows]
    least = rows if hidden_CD.is_cuda else MIN_BLOCK_ROWS
    if len(hidden_CD) < least:
        padded_CD = hidden_CD.new_zeros(least, hidden_CD.shape[1])
        padded_CD[: len(hidden_CD)] = hidden_CD
        hidden_CD = padded_CD
    return hidden_CD @ view.table_VD.T


def best_candidates(scores_CX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column, score and lead of each row's best candidate; the lowest column among equals."""
    best_C, column_C = scores_CX.max(dim=1)  # the first of equals, which topk does not promise
    if scores_CX.shape[1] == 1:
        return column_C, best_C, torch.full_like(best_C, torch.inf)
    return column_C, best_C, best_C - scores_CX.topk(2, dim=1).values[:, 1]


def aligned(logits_CX: Tensor) -> Tensor:
    """On a GPU, with so many columns of probability 0 more that every row begins at a multiple of 16 bytes."""
    missing = -logits_CX.shape[1] % GPU_ALIGNMENT if logits_CX.is_cuda else 0
    return F.pad(logits_CX, (0, missing), value=-math.inf) if missing else logits_CX

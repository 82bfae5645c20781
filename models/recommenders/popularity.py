"""Popularity: the floor that ignores the history."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import Sequences
from models.vocabulary import TokenRange


class Popularity:
    """An item's score is how often it occurs in the training rows."""

    name = "popularity"

    def __init__(self, counts_V: Tensor) -> None:
        self.counts_V = counts_V

    @classmethod
    def build(cls, rows: Sequences, num_items: int) -> Self:
        """Count items 1..num_items in *rows*."""
        counts = np.bincount(rows.token_ids, minlength=num_items + 1)
        return cls(torch.from_numpy(counts).float())

    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """The same counts [B, X] for every history, an empty one included."""
        return self.counts_V[candidates.columns].to(item_ids_BT.device).expand(len(item_ids_BT), -1)

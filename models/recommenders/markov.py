"""A first-order Markov chain: the floor that knows one step."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.dataset import Sequences
from models.recommenders.popularity import Popularity
from models.vocabulary import PADDING, TokenRange


class MarkovChain:
    """
    An item's score is how often it followed the history's last item; popularity decides between equals.

    score(x) = count(last -> x) + count(x) / (1 + total count), so popularity never outweighs one transition.
    """

    name = "markov"

    def __init__(
        self,
        following: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        starts_V: npt.NDArray[np.int64],
        popularity: Popularity,
    ) -> None:
        self.following = following
        self.counts = counts
        self.starts_V = starts_V
        self.popularity = popularity

    @classmethod
    def build(cls, rows: Sequences, num_items: int) -> Self:
        """Count the transitions between neighbours in *rows*."""
        inside = np.ones(len(rows.token_ids), dtype=bool)
        inside[rows.offsets[1:][rows.lengths > 0] - 1] = False  # a row's last item is followed by another row
        first = rows.token_ids[:-1][inside[:-1]].astype(np.int64)
        second = rows.token_ids[1:][inside[:-1]].astype(np.int64)
        pairs, counts = np.unique(first * (num_items + 1) + second, return_counts=True)
        starts_V = np.searchsorted(pairs, np.arange(num_items + 2) * (num_items + 1))
        return cls(pairs % (num_items + 1), counts, starts_V, Popularity.build(rows, num_items))

    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Transition counts [B, X] out of each history's last item, popularity added as a fraction."""
        fraction_BX = self.popularity.scores(item_ids_BT, candidates) / (1 + self.popularity.counts_V.sum())
        # float64: a fraction next to a count must survive.
        scores = fraction_BX.double().cpu().numpy().copy()
        lengths_B = (item_ids_BT != PADDING).sum(dim=1).cpu().numpy()
        for row, length in enumerate(lengths_B):
            last = int(item_ids_BT[row, int(length) - 1]) if length else PADDING
            links = slice(self.starts_V[last], self.starts_V[last + 1])
            inside = candidates.mask(self.following[links])
            scores[row, self.following[links][inside] - candidates.first] += self.counts[links][inside]
        return torch.from_numpy(scores).to(item_ids_BT.device)

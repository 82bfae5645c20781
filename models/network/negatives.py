"""
Negatives of a sampled softmax: a few items, drawn to stand for all of them where a vocabulary is too large.

Shapes: X = candidates, S = distinct items drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.vocabulary import TokenRange


class Negatives(NamedTuple):
    """
    Distinct tokens, ascending, and the logarithm of how many items each of them stands for.

    Args:
        token_ids_S: int64.
        log_weights_S: float32; log(times drawn / expected times), so that sum_s w_s f(x_s) estimates sum_x f(x)
            without bias.
    """

    token_ids_S: Tensor
    log_weights_S: Tensor


@dataclass(frozen=True)
class PopularitySampler:
    """
    Draws candidates with replacement: q(rank r) = ln((r + 2) / (r + 1)) / (2 ln(X + 1)) + 1 / (2 X), r >= 0.

    Half of the draws have a uniform logarithm of the rank, which is about how often items of a rank occur in logs of
    what people do; the other half have a uniform rank, so that however rare an item is, it stands for 2 X / num_draws
    items at most each time it is drawn. On the bundled sample both together had a lower training loss than either
    alone (docs/performance.md).

    Args:
        by_popularity_X: the candidates' tokens, most frequent first.
        num_draws: draws per step, > 0; as many as there are candidates, or more, and every one is taken once instead.
    """

    by_popularity_X: npt.NDArray[np.int64]
    num_draws: int

    @classmethod
    def of(
        cls, sequences: Iterable[npt.NDArray[np.integer]], candidates: TokenRange, num_draws: int
    ) -> PopularitySampler:
        """The candidates ranked by how often they occur in *sequences*; of equals the lower token first."""
        if num_draws >= len(candidates):  # nothing is drawn, so nobody asks for the ranks
            return cls(np.arange(candidates.first, candidates.last + 1), num_draws)
        counts_X = np.zeros(len(candidates), dtype=np.int64)
        for tokens in sequences:
            own = tokens[candidates.mask(tokens)].astype(np.int64)
            np.add.at(counts_X, own - candidates.first, 1)
        return cls(np.argsort(-counts_X, kind="stable") + candidates.first, num_draws)

    def draw(self, generator: np.random.Generator) -> Negatives:
        """One step's negatives; the same for the same state of the generator."""
        X = len(self.by_popularity_X)
        if self.num_draws >= X:
            return Negatives(torch.from_numpy(np.sort(self.by_popularity_X)), torch.zeros(X))
        # The inverse of the distribution function ln(r + 1) / ln(X + 1); rounding may reach X itself.
        popular = np.minimum(np.exp(generator.random(self.num_draws) * np.log(X + 1)).astype(np.int64) - 1, X - 1)
        anywhere = generator.integers(X, size=self.num_draws)
        ranks = np.where(generator.random(self.num_draws) < 0.5, popular, anywhere)
        distinct_S, times_S = np.unique(ranks, return_counts=True)
        log_weights_S = np.log(times_S) - np.log(self.num_draws * self.probabilities(distinct_S))
        token_ids_S = self.by_popularity_X[distinct_S]
        order_S = np.argsort(token_ids_S)
        return Negatives(
            torch.from_numpy(token_ids_S[order_S]), torch.from_numpy(log_weights_S[order_S].astype(np.float32))
        )

    def probabilities(self, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Of drawing the items of these ranks, 0 the most frequent."""
        X = len(self.by_popularity_X)
        probabilities: npt.NDArray[np.float64] = np.log1p(1 / (ranks + 1)) / (2 * np.log(X + 1)) + 1 / (2 * X)
        return probabilities

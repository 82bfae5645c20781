"""
A recommender and the target expert together: their log-probabilities added, nothing regenerated.

    score(x) = (1 - w) log p_recommender(x | history) + w log p_expert(x | mixed history),  w in [0, 1] from validation

Both know something that the other does not: the recommender the target's rows, the expert the other domains. Whoever
can ask two models at once has this without regeneration, so what regeneration is worth is what it adds to this
(docs/experiments/two-readings.md). The history of the recommender is the target's own items, or a regenerated one.

Shapes: N = held-out rows, B = batch, D = width, X = candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.evaluation.arms import Arm, Queries
from models.evaluation.ranking import Ranks, ranks_of, scored_batches
from models.ranking_metrics import ndcg_at_k
from models.recommenders.recommender import Scorer

WEIGHTS = tuple(tenths / 10 for tenths in range(11))


@dataclass(frozen=True)
class Advised:
    """
    Held-out rows, and what the target expert makes of their mixed histories.

    Args:
        queries: what the recommender reads.
        states_ND: hidden states of the expert after the mixed histories.
    """

    queries: Queries
    states_ND: Tensor


@dataclass(frozen=True)
class Advice:
    """
    The target expert beside the recommenders of one arm.

    Args:
        bundle_version: whose expert it is.
        table_XD: its embeddings of the candidates.
        validation: rows that choose the weight.
        test: rows that are ranked with it.
    """

    bundle_version: str
    table_XD: Tensor
    validation: Advised
    test: Advised

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that advised ranks depend on beside the arm."""
        digest = hashlib.sha256(self.bundle_version.encode())
        for advised in (self.validation, self.test):
            digest.update(advised.queries.histories.offsets.tobytes())
            digest.update(advised.queries.histories.token_ids.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class AdvisedRanks:
    """Where recommender and expert together rank the test rows, and the expert's weight w."""

    ranks: Ranks
    weight: float


def rank_advised(scorer: Scorer, advice: Advice, arm: Arm, device: torch.device) -> AdvisedRanks:
    """
    Choose w on the validation rows, then rank the test rows.

    The best w has the best NDCG@10 among the items that the user has not had, over the rows with a target item in
    their history; of equals the smallest.

    Raises:
        ValueError: a score is NaN.
    """
    weight, _ = choose_weight(scorer, advice.validation, advice.table_XD, arm, device)
    (ranks,) = _ranks(scorer, advice.test, advice.table_XD, arm, device, [weight])
    return AdvisedRanks(ranks, weight)


def choose_weight(
    scorer: Scorer, advised: Advised, table_XD: Tensor, arm: Arm, device: torch.device
) -> tuple[float, Ranks]:
    """
    The w of ``WEIGHTS`` that ranks the rows with a target item in their history best, and their ranks with it.

    Raises:
        ValueError: a score is NaN.
    """
    with_history = np.flatnonzero(advised.queries.num_target_items > 0)
    tried = _ranks(scorer, _at(advised, with_history), table_XD, arm, device, WEIGHTS)
    means = [float(ndcg_at_k(torch.tensor(ranks.unseen), 10).sum()) for ranks in tried]
    best = int(np.argmax(means))
    return WEIGHTS[best], tried[best]


def added(scores_BX: Tensor, expert_logits_BX: Tensor, weight: float) -> Tensor:
    """
    (1 - w) log softmax(scores) + w log softmax(expert's logits), [B, X].

    >>> same = torch.tensor([[0.0, 1.0]])
    >>> torch.equal(added(same, same, 0.3), torch.log_softmax(same, dim=1))
    True
    """
    return torch.lerp(torch.log_softmax(scores_BX, dim=1), torch.log_softmax(expert_logits_BX, dim=1), weight)


@torch.inference_mode()
def _ranks(
    scorer: Scorer, advised: Advised, table_XD: Tensor, arm: Arm, device: torch.device, weights: Sequence[float]
) -> list[Ranks]:
    """Ranks under every weight. Who has no history of the target is ranked by the expert alone, unless w = 0."""
    found_W2N = np.zeros((len(weights), 2, len(advised.queries)), dtype=np.int64)
    for batch in scored_batches(scorer, advised.queries, arm, device):
        expert_logits_BX = advised.states_ND[torch.from_numpy(batch.rows_B).to(device)] @ table_XD.T
        for index, weight in enumerate(weights):
            if batch.by_popularity:
                scores_BX = expert_logits_BX if weight else batch.scores_BX
            else:
                scores_BX = added(batch.scores_BX, expert_logits_BX, weight)
            found_W2N[index][:, batch.rows_B] = ranks_of(scores_BX, batch.rows_B, advised.queries, arm)
    return [Ranks(*(tuple(ranks_N.tolist()) for ranks_N in found_2N)) for found_2N in found_W2N]


def _at(advised: Advised, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Advised:
    return Advised(advised.queries.at(rows), advised.states_ND[torch.from_numpy(rows).to(advised.states_ND.device)])

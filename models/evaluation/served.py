"""
The trained bundle at serving time, for an evaluation: what it makes of a user's mixed history, without a look past it.

There are two uses. Regenerate the history first and give it to an ordinary recommender (``regenerate_histories``). Or
let the base or the target expert rank the target's items itself (``DecoderScorer``): an ordinary recommender cannot do
that, but it measures what mixed histories know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import Sequences
from models.decoding.regenerator import Regenerator
from models.decoding.rules import Dial, Rule
from models.evaluation.advice import Advised
from models.evaluation.arms import Queries
from models.network.expert_parts import ExpertPart, read_parts, table_of
from models.vocabulary import PADDING, TokenRange

# How the report calls the decoders as recommenders; they rank in arm ``mixed``.
BASE_DECODER, TARGET_EXPERT = "base decoder", "target expert"


class DecoderScorer:
    """
    Decoders of the bundle as a ``Scorer`` of mixed histories.

    Args:
        parts: of the target's expert; or the base as one.
    """

    def __init__(self, parts: Sequence[ExpertPart]) -> None:
        self._parts = parts

    @torch.inference_mode()
    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Logits [B, X] of the candidates, the target's items, after each non-empty history."""
        histories = [row_T[row_T != PADDING] for row_T in item_ids_BT.cpu().numpy()]
        return read_parts(self._parts, histories, candidates) @ table_of(self._parts, candidates).T


@torch.inference_mode()
def advised(bundle: Bundle, target: str, queries: Queries, mixed: Queries) -> Advised:
    """
    *queries* with the states of the target's expert after the same rows of arm ``mixed``.

    A mixed history is never empty where ``taesar prepare`` made it; the expert says nothing (zeros) after one that is.
    """
    parts, rows = bundle.expert_parts(target), np.flatnonzero(mixed.histories.lengths > 0)
    histories = [mixed.histories[int(row)] for row in rows]
    read_RD = read_parts(parts, histories, bundle.vocabulary.token_range(target))
    states_ND = read_RD.new_zeros(len(mixed), read_RD.shape[1])
    states_ND[torch.from_numpy(rows)] = read_RD
    return Advised(queries, states_ND)


def regenerate_histories(bundle: Bundle, rule: Rule, dial: Dial, queries: Queries, target: str) -> Sequences:
    """
    The regenerated history of every row of *queries*, in the vocabulary's tokens.

    Args:
        queries: of arm ``mixed``: mixed histories that end before the item to rank.
    """
    histories = [queries.histories[row] for row in range(len(queries))]
    return Sequences.from_lists(
        result.token_ids for result in Regenerator(bundle, rule, dial=dial).regenerate(histories, target)
    )

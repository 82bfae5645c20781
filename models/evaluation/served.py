"""
The trained bundle at serving time, for an evaluation: what it makes of a user's mixed history, without a look past it.

There are two uses. Regenerate the history first and give it to an ordinary recommender (``regenerate_histories``). Or
let the base or the target expert rank the target's items itself (``DecoderScorer``): an ordinary recommender cannot do
that, but it measures what mixed histories know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import Sequences
from models.decoding.regenerator import Regenerator
from models.decoding.rules import Rule
from models.evaluation.arms import Queries
from models.network.decoder import Decoder
from models.recommenders.recommender import last_states, most_recent
from models.vocabulary import PADDING, TokenRange

# How the report calls the decoders as recommenders; they rank in arm ``mixed``.
BASE_DECODER, TARGET_EXPERT = "base decoder", "target expert"


class DecoderScorer:
    """A decoder of the bundle as a ``Scorer`` of mixed histories."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @torch.inference_mode()
    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Logits [B, X] of the candidates after each non-empty history."""
        recent_BT = most_recent(item_ids_BT, self._decoder.config.max_length)
        hidden_BD = last_states(self._decoder(recent_BT), (recent_BT != PADDING).sum(dim=1))
        return hidden_BD @ self._decoder.item_embeddings_VD[candidates.columns].T


def regenerate_histories(bundle: Bundle, rule: Rule, queries: Queries, target: str) -> Sequences:
    """
    The regenerated history of every row of *queries*, in the vocabulary's tokens.

    Args:
        queries: of arm ``mixed``: mixed histories that end before the item to rank.
    """
    histories = [queries.histories[row] for row in range(len(queries))]
    return Sequences.from_lists(result.token_ids for result in Regenerator(bundle, rule).regenerate(histories, target))

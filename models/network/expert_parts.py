"""
The target expert as one or two decoders whose log-probabilities are added: the adapted one, and perhaps a joint one.

    log p(x) = sum over parts i of w_i log p_i(x) + constant,  w_i > 0, together 1

A constant changes no softmax. So the sum is the inner product of the parts' hidden states side by side, each times its
weight, with their item tables side by side: a decoder of twice the width to whoever ranks by it. Each part has two
readings of its own (``two_readings``).

Shapes: N = histories, D = widths of all parts together, X = items of the target domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.dataset import SequencesByNumber
from models.network.decoder import Decoder
from models.network.two_readings import read_expert
from models.tuning import MIXED_ALONE, OwnShares
from models.vocabulary import TokenRange


@dataclass(frozen=True)
class ExpertPart:
    """
    One decoder of an expert.

    Args:
        decoder: its network.
        own_shares: of its two readings.
        weight: w of its log-probabilities, in (0, 1].
    """

    decoder: Decoder
    own_shares: OwnShares = MIXED_ALONE
    weight: float = 1.0

    def weighed(self, hidden_ND: Tensor) -> Tensor:
        """Its hidden states times its weight."""
        return hidden_ND if self.weight == 1 else self.weight * hidden_ND


def read_parts(parts: Sequence[ExpertPart], histories: SequencesByNumber, domain: TokenRange) -> Tensor:
    """States [N, D] of the expert of *domain* after every non-empty history."""
    states = [part.weighed(read_expert(part.decoder, histories, domain, part.own_shares)) for part in parts]
    return states[0] if len(states) == 1 else torch.cat(states, dim=1)


def table_of(parts: Sequence[ExpertPart], domain: TokenRange) -> Tensor:
    """The expert's embeddings [X, D] of the items of *domain*; of one part a view, of two a copy."""
    tables = [part.decoder.item_embeddings_VD[domain.columns] for part in parts]
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)

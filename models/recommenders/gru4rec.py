"""
GRU4Rec: a recurrent network over the session (Hidasi et al., ICLR 2016), in RecBole's form.

h = GRU(Dropout(E[x])), no biases; state = W h + b; scores = state . E. Differs from stock RecBole in the loss (every
position predicts its next item) and in the width of the item vectors, which is every recommender's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor, nn

from models.data.dataset import Sequences
from models.network.dropout import Dropout
from models.recommenders.recommender import (
    CausalRecommender,
    SequenceBatch,
    SharedConfig,
    check_at_least,
    check_shares,
    sequence_batches,
)
from models.vocabulary import PADDING


@dataclass(frozen=True)
class GRU4RecConfig:
    """
    Hyper-parameters of GRU4Rec.

    Args:
        width, max_length, dropout: see ``SharedConfig``.
        hidden_width: of the recurrent state.
        num_recurrent_layers: stacked recurrent layers.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    width: int = SharedConfig.width
    max_length: int = SharedConfig.max_length
    dropout: float = SharedConfig.dropout
    hidden_width: int = 128
    num_recurrent_layers: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, dict.fromkeys(("width", "max_length", "hidden_width", "num_recurrent_layers"), 1))
        check_shares(self, ("dropout",), below_one=True)


class GRU4Rec(CausalRecommender[SequenceBatch]):
    """A gated recurrent network with a tied output table."""

    name = "gru4rec"

    def __init__(self, num_items: int, config: GRU4RecConfig) -> None:
        super().__init__(num_items, config.max_length)
        self.item_embedding = nn.Embedding(num_items + 1, config.width, padding_idx=PADDING)
        self.dropout = Dropout(config.dropout)
        self.recurrence = nn.GRU(
            config.width,
            config.hidden_width,
            num_layers=config.num_recurrent_layers,
            bias=False,
            batch_first=True,
        )
        self.output = nn.Linear(config.hidden_width, config.width)
        nn.init.xavier_normal_(self.item_embedding.weight)
        for weight in self.recurrence.parameters():
            nn.init.xavier_uniform_(weight)

    @classmethod
    def build(cls, rows: Sequences, num_items: int, config: GRU4RecConfig) -> Self:  # noqa: ARG003
        """Needs nothing of the rows."""
        return cls(num_items, config)

    @property
    def item_table_XD(self) -> Tensor:
        """The embedding table without its padding row."""
        return self.item_embedding.weight[1:]

    def encode_all(self, item_ids_BT: Tensor) -> Tensor:
        """Projected recurrent states; padding comes after the valid items, so it cannot reach them."""
        states_BTH, _ = self.recurrence(self.dropout(self.item_embedding(item_ids_BT)))
        projected_BTD: Tensor = self.output(states_BTH)
        return projected_BTD

    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[SequenceBatch]:
        """Whole rows, every position a target."""
        return sequence_batches(rows, max_length=self.max_length, batch_size=batch_size, generator=generator)

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Next-item cross-entropy."""
        return self.next_item_loss(batch)

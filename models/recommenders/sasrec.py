"""
SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

The blocks are RecBole's (post-LN, learned positions, GELU), which are also the decoder's own. Differs from stock
RecBole in the loss alone: every position of a row predicts its next item, as the released code of the paper does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from models.data.dataset import Sequences
from models.network.decoder import Decoder, DecoderConfig
from models.recommenders.recommender import CausalRecommender, SequenceBatch, SharedConfig, sequence_batches


@dataclass(frozen=True)
class SASRecConfig(SharedConfig):
    """Hyper-parameters of SASRec: the shared ones, and none besides."""


class SASRec(CausalRecommender[SequenceBatch]):
    """A causal Transformer over the target's items with a tied output table."""

    name = "sasrec"

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__(num_items, config.max_length)
        self.decoder = Decoder(decoder_config(num_items, config))

    @classmethod
    def build(cls, rows: Sequences, num_items: int, config: SASRecConfig) -> Self:  # noqa: ARG003
        """Needs nothing of the rows."""
        return cls(num_items, config)

    @property
    def item_table_XD(self) -> Tensor:
        """The decoder's table without its padding row."""
        return self.decoder.item_embeddings_VD[1:]

    def encode_all(self, item_ids_BT: Tensor) -> Tensor:
        """The decoder's hidden states."""
        hidden_BTD: Tensor = self.decoder(item_ids_BT)
        return hidden_BTD

    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[SequenceBatch]:
        """Whole rows, every position a target."""
        return sequence_batches(rows, max_length=self.max_length, batch_size=batch_size, generator=generator)

    def loss(self, batch: SequenceBatch) -> Tensor:
        """Next-item cross-entropy."""
        return self.next_item_loss(batch)


def decoder_config(num_items: int, config: SharedConfig) -> DecoderConfig:
    """The decoder that a Transformer recommender of *num_items* items asks for."""
    return DecoderConfig(
        num_items,
        width=config.width,
        inner_width=config.inner_width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        max_length=config.max_length,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )

"""
CL4SRec: SASRec with a contrastive loss between two augmented views of each row (Xie et al., ICDE 2022).

Per row two different operations among crop, mask and reorder make two views; their last states are pulled together
and pushed from the other rows' by NT-Xent. loss = next-item cross-entropy + weight * NT-Xent. Operations are drawn
per row, on copies: the main input is never touched.

Shapes: B = sequences, T = positions, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.dataset import Sequences
from models.network.decoder import Decoder
from models.recommenders.recommender import (
    CausalRecommender,
    SequenceBatch,
    SharedConfig,
    check_above_zero,
    check_at_least,
    check_shares,
    sequence_batches,
)
from models.recommenders.sasrec import decoder_config
from models.vocabulary import PADDING

ItemMatrix = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CL4SRecConfig(SharedConfig):
    """
    Hyper-parameters of CL4SRec: SASRec's and its own.

    Args:
        crop: share of a row that a crop keeps.
        mask: share of a row's items that masking hides.
        reorder: share of a row inside the shuffled window.
        temperature: tau of the contrastive loss, > 0.
        contrast_weight: of the contrastive loss next to the cross-entropy.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    crop: float = 0.6
    mask: float = 0.3
    reorder: float = 0.6
    temperature: float = 1.0
    contrast_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, ("crop", "mask", "reorder"))
        check_above_zero(self, ("temperature",))
        check_at_least(self, {"contrast_weight": 0})


@dataclass(frozen=True)
class ContrastiveBatch:
    """Next-item rows and two augmented views [B, T] of their inputs."""

    sequences: SequenceBatch
    first_view_BT: Tensor
    second_view_BT: Tensor


class CL4SRec(CausalRecommender[ContrastiveBatch]):
    """SASRec whose table has one more row, the mask item, which is never scored."""

    name = "cl4srec"

    def __init__(self, num_items: int, config: CL4SRecConfig) -> None:
        super().__init__(num_items, config.max_length)
        self.config = config
        self.mask_item = num_items + 1
        self.decoder = Decoder(decoder_config(num_items + 1, config))

    @classmethod
    def build(cls, rows: Sequences, num_items: int, config: CL4SRecConfig) -> Self:  # noqa: ARG003
        """Needs nothing of the rows."""
        return cls(num_items, config)

    @property
    def item_table_XD(self) -> Tensor:
        """The decoder's table without padding and mask."""
        return self.decoder.item_embeddings_VD[1 : self.num_items + 1]

    def encode_all(self, item_ids_BT: Tensor) -> Tensor:
        """The decoder's hidden states."""
        hidden_BTD: Tensor = self.decoder(item_ids_BT)
        return hidden_BTD

    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[ContrastiveBatch]:
        """Whole rows with two views each."""
        for batch in sequence_batches(rows, max_length=self.max_length, batch_size=batch_size, generator=generator):
            first_BT, second_BT = self._two_views(batch.item_ids_BT.numpy(), generator)
            yield ContrastiveBatch(batch, torch.from_numpy(first_BT), torch.from_numpy(second_BT))

    def loss(self, batch: ContrastiveBatch) -> Tensor:
        """Next-item cross-entropy plus the weighted contrastive loss."""
        both_2BT = self.on_device(torch.cat([batch.first_view_BT, batch.second_view_BT]))
        first_BD, second_BD = self.encode(both_2BT).chunk(2)
        contrast = nt_xent(first_BD, second_BD, temperature=self.config.temperature)
        return self.next_item_loss(batch.sequences) + self.config.contrast_weight * contrast

    def _two_views(self, item_ids_BT: ItemMatrix, generator: np.random.Generator) -> tuple[ItemMatrix, ItemMatrix]:
        operations_B3: npt.NDArray[np.int64] = generator.random((len(item_ids_BT), 3)).argsort(axis=1)
        first_BT, second_BT = (self._augment(item_ids_BT, operations_B3[:, view], generator) for view in (0, 1))
        return first_BT, second_BT

    def _augment(
        self, item_ids_BT: ItemMatrix, operation_B: npt.NDArray[np.int64], generator: np.random.Generator
    ) -> ItemMatrix:
        candidates = (
            crop(item_ids_BT, self.config.crop, generator),
            mask(item_ids_BT, self.config.mask, self.mask_item, generator),
            reorder(item_ids_BT, self.config.reorder, generator),
        )
        augmented_BT = np.choose(operation_B[:, None], candidates)
        alone_B1 = _lengths_B1(item_ids_BT) == 1  # every operation would change all there is, or nothing
        return np.where(alone_B1, item_ids_BT, augmented_BT)


def crop(item_ids_BT: ItemMatrix, share: float, generator: np.random.Generator) -> ItemMatrix:
    """Of each row, floor(share * n) consecutive items from a random start, at least 1; the rest is padding."""
    lengths_B1 = _lengths_B1(item_ids_BT)
    sizes_B1 = np.maximum(1, (share * lengths_B1).astype(np.int64))
    starts_B1 = _window_starts(lengths_B1, sizes_B1, generator)
    positions_T = np.arange(item_ids_BT.shape[1])
    moved_BT = np.take_along_axis(item_ids_BT, np.minimum(starts_B1 + positions_T, len(positions_T) - 1), axis=1)
    return np.where(positions_T < sizes_B1, moved_BT, PADDING)


def mask(item_ids_BT: ItemMatrix, share: float, mask_item: int, generator: np.random.Generator) -> ItemMatrix:
    """Each row with floor(share * n) random positions replaced by *mask_item*."""
    keys_BT = np.where(item_ids_BT == PADDING, np.inf, generator.random(item_ids_BT.shape))
    place_BT = keys_BT.argsort(axis=1).argsort(axis=1)
    return np.where(place_BT < (share * _lengths_B1(item_ids_BT)).astype(np.int64), mask_item, item_ids_BT)


def reorder(item_ids_BT: ItemMatrix, share: float, generator: np.random.Generator) -> ItemMatrix:
    """Each row with a random window of floor(share * n) items shuffled."""
    lengths_B1 = _lengths_B1(item_ids_BT)
    sizes_B1 = (share * lengths_B1).astype(np.int64)
    starts_B1 = _window_starts(lengths_B1, sizes_B1, generator)
    positions_BT = np.broadcast_to(np.arange(item_ids_BT.shape[1]), item_ids_BT.shape)
    inside_BT = (positions_BT >= starts_B1) & (positions_BT < starts_B1 + sizes_B1)
    # Keys inside the window are random points of [start, start + size), so sorting leaves the rest where it is.
    keys_BT = np.where(inside_BT, starts_B1 + sizes_B1 * generator.random(item_ids_BT.shape), positions_BT)
    return np.take_along_axis(item_ids_BT, keys_BT.argsort(axis=1, kind="stable"), axis=1)


def _lengths_B1(item_ids_BT: ItemMatrix) -> npt.NDArray[np.int64]:
    return np.count_nonzero(item_ids_BT, axis=1, keepdims=True)


def _window_starts(
    lengths_B1: npt.NDArray[np.int64], sizes_B1: npt.NDArray[np.int64], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    return (generator.random(lengths_B1.shape) * (lengths_B1 - sizes_B1 + 1)).astype(np.int64)


def nt_xent(first_BD: Tensor, second_BD: Tensor, *, temperature: float) -> Tensor:
    """
    NT-Xent with inner products: each of the 2B views must pick its partner among the other 2B - 1.

    loss = mean_i [ -z_i . z_p(i) / tau + log sum_{j != i} exp(z_i . z_j / tau) ], z = [first; second].
    """
    B = len(first_BD)
    views_ND = torch.cat([first_BD, second_BD])
    logits_NN = (views_ND @ views_ND.T).float() / temperature
    itself_NN = torch.eye(2 * B, dtype=torch.bool, device=logits_NN.device)
    partners_N = torch.arange(2 * B, device=logits_NN.device).roll(B)
    return F.cross_entropy(logits_NN.masked_fill(itself_NN, float("-inf")), partners_N)

"""
What every recommender is: one protocol, and what most of them share: hyper-parameters and training rows.

A recommender knows items 1..num_items; 0 is padding, on the right. For one target domain the items are that
domain's alone, numbered from 1 (``models.evaluation.arms`` does it); a model of mixed sequences knows every domain's.

Shapes: B = sequences, T = positions, D = width, N = predicted positions, X = candidate items.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models.data.dataset import Sequences, pad_right
from models.errors import ConfigurationError
from models.network.losses import linear_cross_entropy
from models.training.batches import length_bucketed_batches
from models.vocabulary import PADDING, TokenRange

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class SharedConfig:
    """
    Hyper-parameters that several recommenders have; one default each.

    The paper trains every recommender under one configuration and its text has lost the numerals: these values are
    those of its released code. What only one model has is in a configuration of its own, beside the model, and has its
    authors' value, except where said otherwise. A model takes those of these that it has.

    Args:
        width: D, of item embeddings and session vectors.
        inner_width: of feed-forward layers.
        num_layers: Transformer blocks.
        num_heads: attention heads.
        max_length: most recent items that a history keeps.
        dropout: on embeddings and sublayer outputs.
        attention_dropout: on attention weights.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    width: int = 128
    inner_width: int = 128
    num_layers: int = 2
    num_heads: int = 2
    max_length: int = 128
    dropout: float = 0.2
    attention_dropout: float = 0.2

    def __post_init__(self) -> None:
        names = ("width", "inner_width", "num_layers", "num_heads", "max_length")
        check_at_least(self, dict.fromkeys(names, 1))
        check_shares(self, ("dropout", "attention_dropout"), below_one=True)
        if self.width % self.num_heads:
            raise ConfigurationError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")


def with_shared(configuration: type[Any], shared: SharedConfig) -> Any:
    """
    A recommender's hyper-parameters: those of *shared* that it has, and the defaults of its own.

    Raises:
        ConfigurationError: they do not go together.
    """
    names = {field.name for field in fields(configuration)}
    return configuration(**{name: value for name, value in asdict(shared).items() if name in names})


def check_at_least(config: object, bounds: Mapping[str, float]) -> None:
    """Raise a ConfigurationError for a value of *config* that is no finite number from its bound on."""
    for name, bound in bounds.items():
        if not bound <= getattr(config, name) < math.inf:
            raise ConfigurationError(f"{name} = {getattr(config, name)!r} is less than {bound}")


def check_above_zero(config: object, names: Iterable[str]) -> None:
    """Raise a ConfigurationError for a value of *config* that is no finite number above 0."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigurationError(f"{name} = {getattr(config, name)!r} is not above 0")


def check_shares(config: object, names: Iterable[str], *, below_one: bool = False) -> None:
    """Raise a ConfigurationError for a value of *config* that is not in [0, 1], or with *below_one* in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or (below_one and value == 1):
            raise ConfigurationError(f"{name} = {value!r} is not in [0, 1{')' if below_one else ']'}")


class Scorer(Protocol):
    """All that evaluation asks of a model."""

    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Scores [B, X] of the candidates as the item that follows each non-empty history; padding is never one."""
        ...


@dataclass(frozen=True)
class SequenceBatch:
    """
    Rows that predict the next item at every position.

    Args:
        item_ids_BT: rows without their last item, padded on the right.
        positions_N: flat indices (b * T + t) of the valid positions, so that picking them needs no device sync.
        targets_N: the item that follows each of them.
        weight: N over the mean N of a pass. Length-bucketed batches hold unequal token counts; weighting their mean
            losses so makes every token of the pass count the same.
    """

    item_ids_BT: Tensor
    positions_N: Tensor
    targets_N: Tensor
    weight: float


class Recommender(nn.Module, ABC, Generic[BatchT]):
    """A trainable sequential recommender: what a batch is, its loss, and scores against its own item table."""

    name: ClassVar[str]

    def __init__(self, num_items: int, max_length: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_length = max_length

    @property
    @abstractmethod
    def item_table_XD(self) -> Tensor:
        """Embeddings of items 1..num_items, X = num_items: what session vectors are scored against."""

    @abstractmethod
    def num_batches(self, rows: Sequences, batch_size: int) -> int:
        """Batches in one pass over *rows*."""

    @abstractmethod
    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[BatchT]:
        """One shuffled pass over *rows*, each of at least two items; everything random comes from *generator*."""

    @abstractmethod
    def loss(self, batch: BatchT) -> Tensor:
        """Scalar training loss of one batch."""

    @abstractmethod
    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Scores [B, X] of the candidates, all among items 1..num_items; only the last max_length items are read."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.item_table_XD.device

    def on_device(self, tensor: Tensor) -> Tensor:
        """A batch's tensor where the weights are; a GPU that is still at the last step is not waited for."""
        return tensor.to(self.device, non_blocking=True)


class SessionRecommender(Recommender[BatchT]):
    """A recommender that knows nothing of domains: one vector per history, whatever is ranked."""

    # True if the state at t reads items up to t only: rows then train at every position at once.
    causal: ClassVar[bool]

    @classmethod
    @abstractmethod
    def build(cls, rows: Sequences, num_items: int, config: Any) -> Self:
        """
        An untrained model for items 1..num_items.

        Args:
            rows: the training rows, for models that count in them.
            num_items: how many items there are.
            config: of the class that the registry names beside this one.
        """

    @abstractmethod
    def encode(self, item_ids_BT: Tensor) -> Tensor:
        """Session vectors [B, D] of non-empty histories; right padding changes nothing."""

    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Inner products [B, X] of session vectors with the candidates' embeddings."""
        assert 1 <= candidates.first <= candidates.last <= self.num_items
        columns = slice(candidates.first - 1, candidates.last)
        return self.encode(most_recent(item_ids_BT, self.max_length)) @ self.item_table_XD[columns].T


class CausalRecommender(SessionRecommender[BatchT]):
    """A recommender whose state at every position predicts the next item, all positions in one pass."""

    causal = True

    @abstractmethod
    def encode_all(self, item_ids_BT: Tensor) -> Tensor:
        """State after every position [B, T, D]; position t reads items up to t; meaningless at padding."""

    def encode(self, item_ids_BT: Tensor) -> Tensor:
        """The state at each history's last item."""
        return last_states(self.encode_all(item_ids_BT), (item_ids_BT != PADDING).sum(dim=1))

    def num_batches(self, rows: Sequences, batch_size: int) -> int:
        """ceil(rows / batch_size)."""
        return -(-len(rows) // batch_size)

    def next_item_loss(self, batch: SequenceBatch) -> Tensor:
        """Full-softmax cross-entropy over items 1..num_items, mean over positions times the batch's weight."""
        hidden_BTD = self.encode_all(self.on_device(batch.item_ids_BT))
        hidden_ND = hidden_BTD.flatten(0, 1)[self.on_device(batch.positions_N)]
        columns_N = self.on_device(batch.targets_N) - 1
        return batch.weight * linear_cross_entropy(hidden_ND, self.item_table_XD, columns_N)


def last_states(hidden_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, D]: the state at each row's last item; that of slot 0 where a row is empty."""
    rows_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    return hidden_BTD[rows_B, lengths_B.clamp(min=1) - 1]


def most_recent(item_ids_BT: Tensor, length: int) -> Tensor:
    """
    The last *length* items of each right-padded history, T = *length* at most.

    >>> most_recent(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), 3).tolist()
    [[2, 3, 4], [5, 6, 0]]
    """
    if item_ids_BT.shape[1] <= length:
        return item_ids_BT
    dropped_B1 = ((item_ids_BT != PADDING).sum(dim=1, keepdim=True) - length).clamp(min=0)
    return item_ids_BT.gather(1, dropped_B1 + torch.arange(length, device=item_ids_BT.device))


def sequence_batches(
    rows: Sequences, *, max_length: int, batch_size: int, generator: np.random.Generator
) -> Iterator[SequenceBatch]:
    """
    One shuffled pass over *rows* as length-bucketed next-item batches.

    A row of n items gives n - 1 positions: the last max_length + 1 items are kept.
    """
    lengths_U = np.minimum(rows.lengths, max_length + 1)
    num_batches = -(-len(rows) // batch_size)
    mean_positions = float((lengths_U - 1).sum()) / max(1, num_batches)
    for members in length_bucketed_batches(lengths_U, batch_size, generator):
        yield sequence_batch([rows[int(u)][-(max_length + 1) :] for u in members], mean_positions)


def sequence_batch(rows: list[np.ndarray[tuple[int], np.dtype[np.int32]]], mean_positions: float) -> SequenceBatch:
    """Rows of at least two items as one batch; *mean_positions* is the mean N of the pass."""
    whole_BT = pad_right(rows)
    targets_BT = whole_BT[:, 1:]
    positions_N = targets_BT.flatten().nonzero()[:, 0]
    return SequenceBatch(
        # A row's last item is a target, never an input; the position that holds it is padding here.
        torch.where(targets_BT == PADDING, PADDING, whole_BT[:, :-1]),
        positions_N,
        targets_BT.flatten()[positions_N],
        len(positions_N) / mean_positions,
    )

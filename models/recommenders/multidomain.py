"""
What multi-domain recommenders share: mixed rows, and losses and scores inside one domain.

They train on mixed rows and rank one domain's items from mixed histories. Whatever the published code does, here every
one of them picks a target among the items of the target's own domain by full softmax, since that is what ranking asks;
drawing one negative among all domains' items, as the published code of two of them does, mostly teaches which domain
comes next. Selection, early stopping and candidates are those of every other recommender (``models.evaluation.cells``).

Shapes: B = rows, T = positions, D = width, K = domains, M = targets of one domain, X = candidate items.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data.dataset import Sequences
from models.network.decoder import DecoderBlock
from models.network.dropout import Dropout
from models.network.losses import linear_cross_entropy
from models.recommenders.recommender import (
    Recommender,
    SharedConfig,
    most_recent,
    sequence_batches,
)
from models.recommenders.sasrec import decoder_config
from models.vocabulary import PADDING, TokenRange

INIT_STD = 0.02


@dataclass(frozen=True)
class DomainTargets:
    """
    The targets of one domain in a batch.

    Args:
        positions_M: flat indices (b * T + t) of the positions that ask for them.
        columns_M: the targets as rows of the domain's part of the item table.
        weight: M over the mean M of a pass, so that every target of the domain counts the same over a pass.
    """

    positions_M: Tensor
    columns_M: Tensor
    weight: float

    def __len__(self) -> int:
        return len(self.positions_M)


@dataclass(frozen=True)
class MixedBatch:
    """
    Mixed rows that predict the next item at every position, targets apart by domain.

    Args:
        item_ids_BT: rows without their last item, padded on the right.
        targets: one entry per domain, in domain order, perhaps empty.
        weight: all targets of the batch over their mean number in a pass.
    """

    item_ids_BT: Tensor
    targets: tuple[DomainTargets, ...]
    weight: float


class MultiDomainRecommender(Recommender[MixedBatch]):
    """A recommender over all domains' items that knows which domain each belongs to."""

    def __init__(self, domains: tuple[TokenRange, ...], config: SharedConfig) -> None:
        super().__init__(domains[-1].last, config.max_length)
        self.domains = domains
        self.item_embedding = nn.Embedding(self.num_items + 1, config.width, padding_idx=PADDING)

    @classmethod
    def build(cls, domains: tuple[TokenRange, ...], config: Any) -> Self:
        """An untrained model; *domains* follow one another from item 1, *config* is of the class in the registry."""
        return cls(domains, config)

    @abstractmethod
    def encode_for(self, domain: int, item_ids_BT: Tensor) -> Tensor:
        """Vectors [B, D] of non-empty mixed histories to score items of ``domains[domain]`` against."""

    @property
    def item_table_XD(self) -> Tensor:
        """The embedding table without its padding row."""
        return self.item_embedding.weight[1:]

    @property
    def domain_tables(self) -> tuple[Tensor, ...]:
        """The item table, cut by domain."""
        # One split, not K slices: its gradient is one concatenation instead of K tables that are mostly zeros.
        _, *tables = torch.split(self.item_embedding.weight, [1, *(len(domain) for domain in self.domains)])
        return tuple(tables)

    def num_batches(self, rows: Sequences, batch_size: int) -> int:
        """ceil(rows / batch_size)."""
        return -(-len(rows) // batch_size)

    def batches(self, rows: Sequences, batch_size: int, generator: np.random.Generator) -> Iterator[MixedBatch]:
        """Whole rows, every position a target."""
        num_batches = self.num_batches(rows, batch_size)
        mean_K = targets_per_domain(rows, self.domains, max_length=self.max_length) / max(1, num_batches)
        for batch in sequence_batches(rows, max_length=self.max_length, batch_size=batch_size, generator=generator):
            domains_N = domain_indices(batch.targets_N, self.domains)
            chosen = [(domains_N == index).nonzero()[:, 0] for index in range(len(self.domains))]
            targets = tuple(
                DomainTargets(
                    batch.positions_N[members_M],
                    batch.targets_N[members_M] - domain.first,
                    len(members_M) / max(float(mean), 1 / num_batches),
                )
                for members_M, domain, mean in zip(chosen, self.domains, mean_K, strict=True)
            )
            yield MixedBatch(batch.item_ids_BT, targets, batch.weight)

    def scores(self, item_ids_BT: Tensor, candidates: TokenRange) -> Tensor:
        """Inner products [B, X]; candidates of several domains are scored domain by domain."""
        assert 1 <= candidates.first <= candidates.last <= self.num_items
        histories_BT = most_recent(item_ids_BT, self.max_length)
        parts = []
        for index, domain in enumerate(self.domains):
            first, last = max(candidates.first, domain.first), min(candidates.last, domain.last)
            if first <= last:
                parts.append(self.encode_for(index, histories_BT) @ self.item_table_XD[first - 1 : last].T)
        return torch.cat(parts, dim=1)


class MixedInput(nn.Module):
    """Item vector, domain and position (0 = oldest) of each slot as one vector: Dropout(LN(E[x] + E_domain + P))."""

    def __init__(self, num_domains: int, config: SharedConfig) -> None:
        super().__init__()
        self.domain_embedding = nn.Embedding(num_domains, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.norm = nn.LayerNorm(config.width, eps=decoder_config(1, config).layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, items_BTD: Tensor, domains_BT: Tensor) -> Tensor:
        """Item vectors [B, T, D] and domain indices [B, T] -> [B, T, D]."""
        positions_T = torch.arange(items_BTD.shape[1], device=items_BTD.device)
        embedded_BTD = items_BTD + self.domain_embedding(domains_BT) + self.position_embedding(positions_T)
        normed_BTD: Tensor = self.dropout(self.norm(embedded_BTD))
        return normed_BTD


class Tower(nn.Module):
    """A feed-forward head: LN(v + Dropout(W_2 gelu(W_1 v)))."""

    def __init__(self, config: SharedConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.inner_width)
        self.outer = nn.Linear(config.inner_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=decoder_config(1, config).layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        headed_BTD: Tensor = self.norm(hidden_BTD + self.dropout(self.outer(F.gelu(self.inner(hidden_BTD)))))
        return headed_BTD


def transformer(num_layers: int, config: SharedConfig) -> nn.Sequential:
    """SASRec's causal blocks, *num_layers* of them."""
    return nn.Sequential(*(DecoderBlock(decoder_config(1, config)) for _ in range(num_layers)))


def initialise(module: nn.Module) -> None:
    """Matrices and tables from N(0, 0.02), biases and padding rows zero; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


def domain_indices(item_ids: Tensor, domains: Sequence[TokenRange]) -> Tensor:
    """
    Index of each item's domain, shape as given; 0 for padding, whose slots are never read.

    >>> domain_indices(torch.tensor([[1, 11, 10, 0]]), (TokenRange(1, 10), TokenRange(11, 20))).tolist()
    [[0, 1, 0, 0]]
    """
    lasts_K = torch.tensor([domain.last for domain in domains], device=item_ids.device)
    return torch.searchsorted(lasts_K, item_ids)


def targets_per_domain(rows: Sequences, domains: Sequence[TokenRange], *, max_length: int) -> npt.NDArray[np.int64]:
    """
    How many targets [K] of each domain one pass over *rows* holds: all but the first of a row's last max_length + 1.

    >>> rows = Sequences.from_lists([[1, 11, 2, 12], [11, 1]])
    >>> targets_per_domain(rows, (TokenRange(1, 10), TokenRange(11, 20)), max_length=2).tolist()
    [2, 1]
    """
    from_end = np.repeat(rows.offsets[1:], rows.lengths) - np.arange(len(rows.token_ids))  # 1 = a row's last item
    asked = from_end <= np.repeat(np.minimum(rows.lengths - 1, max_length), rows.lengths)
    owners = np.searchsorted([domain.last for domain in domains], rows.token_ids[asked])
    return np.bincount(owners, minlength=len(domains)).astype(np.int64)


def domain_cross_entropy(hidden_MD: Tensor, table_XD: Tensor, columns_M: Tensor) -> Tensor:
    """Mean full-softmax cross-entropy within one domain; 0 with zero gradients where the batch has none of it."""
    return linear_cross_entropy(hidden_MD, table_XD, columns_M.to(hidden_MD.device))

"""
ABXI: invariant interest, adapted to each domain by low-rank projections (Bian et al., WWW 2025).

Streams: the mixed history x, and for every domain d the history x^d of its own items. One stack of blocks reads them
all; low-rank projections tell them apart. For a target in domain d:

    h    = blocks(Dropout(LN(E[x] + P[count back])))                          shared by all streams
    u^s  = LN_s(h^s + Dropout(SwiGLU(h^s)) + Dropout(LoRA_s h^s))             s in {x, 1..K}; SwiGLU shared
    v^d  = LN'_d(u^x + Dropout(SwiGLU_i(u^x)) + Dropout(LoRA'_d u^x)) + LN''_d(u^d + Dropout(SwiGLU_d(u^d)))
    loss = mean over d of the cross-entropy of v^d . E / 0.75 over the items of d

A block is post-LN causal attention followed by post-LN SwiGLU(h) = W_3(silu(W_2 h) * W_1 h); LoRA h = A B h with B zero
at the start. Pairs of domains became lists of K, and the input norm and the stack of blocks are there, as in the code
released with the paper that we follow.

Differs from that code, where it does not do what it describes:

- A target of domain d at slot t sees the last item of d up to t. The code lays each domain's stream over the mixed
  slots, with holes, in training, and at evaluation reads the stream's last slot, which is a hole whenever the last
  item is not of the target domain: the domain's branch is then dead. Here a stream holds its domain's items without
  holes, in training and evaluation alike; its state at an item is the one that the aligned slot would have.
- Holes and padding take no part in attention. A domain without an item yet contributes u^d = 0.
- Domain streams get input dropout (the code computes it and drops the result).
- Full softmax over the target's domain instead of 512 sampled negatives; the mean of a domain is over its targets.
- Selection by the target domain's validation items under the shared schedule. The code trains a fixed number of
  epochs with a warm-up, keeps the last, and reports "test" figures of the validation items.

Positions count back from the newest item (1) of the whole row, as in the code: in training, a slot's position says how
many items follow it, and nothing about which.

Shapes: B = rows, T = positions, D = width, K = domains, M = targets of one domain, P = slots of all streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.decoder import causal_attention
from models.network.domain_streams import DomainStreams, domain_streams, items_so_far
from models.network.dropout import Dropout
from models.recommenders.multidomain import (
    MixedBatch,
    MultiDomainRecommender,
    domain_cross_entropy,
    initialise,
)
from models.recommenders.recommender import SharedConfig, check_above_zero, check_at_least, last_states
from models.vocabulary import PADDING, TokenRange

LORA_STD = 1 / 50


@dataclass(frozen=True)
class ABXIConfig(SharedConfig):
    """
    Hyper-parameters of ABXI: the shared ones and its own.

    Args:
        temperature: that inner products are divided by in the loss, > 0.
        domain_rank: of the low-rank projections of the domains' streams.
        invariant_rank: of the low-rank projections of the invariant part.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    temperature: float = 0.75
    domain_rank: int = 16
    invariant_rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, {"domain_rank": 1, "invariant_rank": 1})
        check_above_zero(self, ("temperature",))


class SwiGLU(nn.Module):
    """W_3(silu(W_2 h) * W_1 h), no biases."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inner_width, bias=False)
        self.gate = nn.Linear(width, inner_width, bias=False)
        self.outer = nn.Linear(inner_width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        output: Tensor = self.outer(F.silu(self.gate(hidden)) * self.inner(hidden))
        return output


class LowRank(nn.Module):
    """A B h with A [D, r] from N(0, 1) / 50 and B [r, D] zero: nothing until it is trained."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.left_Dr = nn.Parameter(torch.randn(width, rank) * LORA_STD)
        self.right_rD = nn.Parameter(torch.zeros(rank, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return hidden @ self.right_rD.T @ self.left_Dr.T


class LowRankBlock(nn.Module):
    """Post-LN causal attention, then post-LN SwiGLU."""

    def __init__(self, config: ABXIConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.attention_output = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width)
        self.feed_forward = SwiGLU(config.width, config.inner_width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; position t reads positions <= t, so padding on the right is never read."""
        dropped = self.attention_dropout if self.training else 0.0
        attended_BTD = causal_attention(self.query_key_value(hidden_BTD), self.num_heads, dropped)
        attended_BTD = self.attention_output(attended_BTD)
        hidden_BTD = self.attention_norm(hidden_BTD + self.dropout(attended_BTD))
        normed_BTD: Tensor = self.feed_forward_norm(hidden_BTD + self.dropout(self.feed_forward(hidden_BTD)))
        return normed_BTD


class StreamStage(nn.Module):
    """Stage 1 of one stream: u = LN(h + Dropout(SwiGLU(h)) + Dropout(LoRA h)); the SwiGLU is every stream's."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.low_rank = LowRank(width, rank)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden_MD: Tensor, shared: SwiGLU, dropout: Dropout) -> Tensor:
        """[M, D] -> [M, D]."""
        staged_MD: Tensor = self.norm(hidden_MD + dropout(shared(hidden_MD)) + dropout(self.low_rank(hidden_MD)))
        return staged_MD


class DomainStage(nn.Module):
    """Stage 2 of one domain: the invariant part adapted to it, plus its own."""

    def __init__(self, config: ABXIConfig, rank: int) -> None:
        super().__init__()
        self.low_rank = LowRank(config.width, rank)
        self.feed_forward = SwiGLU(config.width, config.inner_width)
        # The default epsilon: the norm of an absent domain's zero vector has a derivative of 1 / sqrt(epsilon).
        self.invariant_norm = nn.LayerNorm(config.width)
        self.own_norm = nn.LayerNorm(config.width)

    def forward(self, mixed_MD: Tensor, own_MD: Tensor, invariant: SwiGLU, dropout: Dropout) -> Tensor:
        """u^x and u^d, both [M, D] -> v^d [M, D]."""
        adapted_MD = mixed_MD + dropout(invariant(mixed_MD)) + dropout(self.low_rank(mixed_MD))
        output_MD: Tensor = self.invariant_norm(adapted_MD) + self.own_norm(own_MD + dropout(self.feed_forward(own_MD)))
        return output_MD


class ABXI(MultiDomainRecommender):
    """Mixed and single-domain streams through shared blocks, told apart by low-rank projections."""

    name = "abxi"

    def __init__(self, domains: tuple[TokenRange, ...], config: ABXIConfig) -> None:
        super().__init__(domains, config)
        self.temperature = config.temperature
        self.position_embedding = nn.Embedding(config.max_length + 1, config.width, padding_idx=PADDING)
        self.input_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(LowRankBlock(config) for _ in range(config.num_layers))
        self.shared = SwiGLU(config.width, config.inner_width)
        self.invariant = SwiGLU(config.width, config.inner_width)
        self.mixed_stage = StreamStage(config.width, config.domain_rank)
        self.stream_stages = nn.ModuleList(StreamStage(config.width, config.domain_rank) for _ in domains)
        self.domain_stages = nn.ModuleList(DomainStage(config, config.invariant_rank) for _ in domains)
        self.dropout = Dropout(config.dropout)
        self.apply(initialise)

    def states(self, item_ids_BT: Tensor) -> Tensor:
        """Shared blocks over any stream: [B, T] -> [B, T, D], meaningless at padding."""
        lengths_B1 = (item_ids_BT != PADDING).sum(dim=1, keepdim=True)
        counted_back_BT = (lengths_B1 - torch.arange(item_ids_BT.shape[1], device=item_ids_BT.device)).clamp(min=0)
        embedded_BTD = self.item_embedding(item_ids_BT) + self.position_embedding(counted_back_BT)
        hidden_BTD: Tensor = self.dropout(self.input_norm(embedded_BTD))
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        return hidden_BTD

    def stream_states(self, streams: DomainStreams) -> Tensor:
        """Shared blocks over the domains' streams, group by group: [P, D]."""
        return torch.cat([self.states(self.on_device(group.item_ids_RS)).flatten(0, 1) for group in streams.groups])

    def fuse(self, domain: int, mixed_MD: Tensor, own_MD: Tensor, present_M: Tensor) -> Tensor:
        """
        v^d of *domain*.

        Args:
            domain: d, an index into ``domains``.
            mixed_MD: h^x at the slots that ask for items of d.
            own_MD: h^d at the last item of d up to those slots; anything where there is none.
            present_M: whether there is one.
        """
        invariant_MD = self.mixed_stage(mixed_MD, self.shared, self.dropout)
        staged_MD = self.stream_stages[domain](own_MD, self.shared, self.dropout)
        present_MD = torch.where(present_M[:, None], staged_MD, 0.0)
        fused_MD: Tensor = self.domain_stages[domain](invariant_MD, present_MD, self.invariant, self.dropout)
        return fused_MD

    def encode_for(self, domain: int, item_ids_BT: Tensor) -> Tensor:
        """v^d at the end of each history: mixed states' last, and the domain's own last."""
        streams = domain_streams(item_ids_BT, (self.domains[domain],))
        slots_B = streams.slots_KBT[0, :, -1]
        mixed_BD = last_states(self.states(item_ids_BT), (item_ids_BT != PADDING).sum(dim=1))
        return self.fuse(domain, mixed_BD, self.stream_states(streams)[slots_B.clamp(min=0)], slots_B >= 0)

    def loss(self, batch: MixedBatch) -> Tensor:
        """Mean over domains of their cross-entropies at temperature 0.75."""
        streams = aligned_streams(batch, self.domains)  # on the CPU, where batches are made
        mixed_BTD, own_PD = self.states(self.on_device(batch.item_ids_BT)), self.stream_states(streams)
        total = torch.zeros((), device=self.device)
        for domain, (targets, table_XD) in enumerate(zip(batch.targets, self.domain_tables, strict=True)):
            slots_M = self.on_device(streams.slots_KBT[domain].flatten()[targets.positions_M])
            mixed_MD = mixed_BTD.flatten(0, 1)[self.on_device(targets.positions_M)]
            vectors_MD = self.fuse(domain, mixed_MD, own_PD[slots_M.clamp(min=0)], slots_M >= 0)
            loss = domain_cross_entropy(vectors_MD / self.temperature, table_XD, targets.columns_M)
            total = total + targets.weight * loss
        return total / len(self.domains)


def aligned_streams(batch: MixedBatch, domains: tuple[TokenRange, ...]) -> DomainStreams:
    """
    The aligned streams of the paper without their holes: of each domain, the items that one of its targets follows.

    So the newest item, from which positions count, is one that asks, as it is at evaluation.
    """
    count_KBT = items_so_far(batch.item_ids_BT, domains)
    lengths_KB = torch.zeros_like(count_KBT[:, :, 0])
    for domain, targets in enumerate(batch.targets):
        rows_M = targets.positions_M // batch.item_ids_BT.shape[1]
        lengths_KB[domain].scatter_reduce_(0, rows_M, count_KBT[domain].flatten()[targets.positions_M], "amax")
    return domain_streams(batch.item_ids_BT, domains, lengths_KB)

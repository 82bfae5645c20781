"""
SyNCRec: experts of mixed and single-domain streams, weighted by what mixing costs (Park et al., SIGIR 2024).

E encoders ("experts"): floor(0.8 E) learn from the mixed stream, the others from the single-domain ones; each stream
reads the other side's experts through a stop-gradient. With e = Dropout(LN(E[x] + E_domain + P)), f_i the experts and
g a stream's softmax gates over either side,

    s^d = tower_d(0.8 sum_single g_i f_i(e^d) + 0.2 sum_mixed g_i stop(f_i(e^d)))         e^d: the items of domain d
    c   = tower_x(0.8 sum_mixed g_i f_i(e) + 0.2 sum_single g_i stop(f_i(e)))             e: the mixed row
    L   = mean_t CE(s_t) + mean_t lambda_d(t) CE(c_t) + w MI
    u_d <- 0.9 u_d + 0.1 (CE_d(s) - CE_d(c)),   lambda = K softmax(u / T)

CE picks a target among the items of its own domain, d(t) is the domain of the target at t, and CE_d are means over
the targets of d that have an earlier item of d: where mixing raises a domain's loss (negative transfer), u_d falls and
the mixed stream's loss counts less there. MI pulls together W c_t and the single-domain state of the item at t, away
from those of the other rows at t: InfoNCE on inner products over sqrt(D). Scores are c at the last item, with E.

Differs from the code released with the paper that we follow, where it does not do what it describes:

- Experts, towers and gates are distinct modules. In the code each is one module held several times, so that at
  inference the model equals one encoder and one feed-forward layer, whatever E is. An expert is one block by default.
- A gate reads the mean of the stream's embeddings up to the position; the code's reads the whole padded row, items to
  come included. Gate noise is for training only.
- u's coefficients are 0.9 and 0.1; in the code they are random numbers that are never trained, of any sign.
- A domain's stream holds its items without holes. The code leaves holes, which take part in attention. A target
  whose domain has no earlier item asks nothing of s.
- Full softmax within the target's domain, mean over targets, instead of summed losses against one negative drawn
  among all domains' items.
- MI is InfoNCE over the batch; the code's sigmoid of a difference of two sigmoids moves between 0.31 and 1.31 only.
- Selection by the target domain's validation items; the code selects by the test items.

Shapes: B = rows, T = positions, R = streams, S = positions of a stream, P = slots of all streams, D = width,
K = domains, M = targets of one domain, E = experts of one side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.network.domain_streams import DomainStreams, StreamGroup, domain_streams
from models.recommenders.multidomain import (
    MixedBatch,
    MixedInput,
    MultiDomainRecommender,
    Tower,
    domain_cross_entropy,
    domain_indices,
    initialise,
    transformer,
)
from models.recommenders.recommender import SharedConfig, check_above_zero, check_at_least, check_shares, last_states
from models.vocabulary import PADDING, TokenRange

# Share of the experts that learn from the mixed stream, and of a stream's mixture that its own side's experts have.
OWN_SHARE = 0.8
LEAST_NOISE = 1e-3


@dataclass(frozen=True)
class SyNCRecConfig(SharedConfig):
    """
    Hyper-parameters of SyNCRec: the shared ones and its own.

    Args:
        weight_memory: share of its old value that u, the running estimate behind the domain weights, keeps at a step,
            in [0, 1).
        weight_temperature: T, of the softmax that makes domain weights of u, > 0; small is sharp.
        num_experts: encoders, of which floor(0.8 * n) learn from the mixed stream; at least 2.
        expert_layers: Transformer blocks of each.
        mutual_weight: of the mutual-information term next to the cross-entropies, >= 0.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    weight_memory: float = 0.9
    weight_temperature: float = 1.0
    num_experts: int = 4
    expert_layers: int = 1
    mutual_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, ("weight_memory",), below_one=True)
        check_above_zero(self, ("weight_temperature",))
        check_at_least(self, {"num_experts": 2, "expert_layers": 1, "mutual_weight": 0})


class Gate(nn.Module):
    """Softmax weights over the experts of either side, from the mean embedding up to each position."""

    def __init__(self, width: int, num_own: int, num_other: int) -> None:
        super().__init__()
        self.sizes = [num_own, num_other]
        self.logits = nn.Linear(width, num_own + num_other)
        self.spread = nn.Linear(width, num_own + num_other)

    def forward(self, embedded_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> weights [B, T, E] over own and over other experts; noisy in training mode."""
        counts_T1 = torch.arange(1, embedded_BTD.shape[1] + 1, device=embedded_BTD.device)[:, None]
        prefix_BTD = embedded_BTD.cumsum(dim=1) / counts_T1
        logits_BTE = self.logits(prefix_BTD)
        if self.training:
            spread_BTE = F.softplus(self.spread(prefix_BTD)) + LEAST_NOISE
            logits_BTE = logits_BTE + torch.randn_like(logits_BTE) * spread_BTE
        own_BTE, other_BTE = torch.split(logits_BTE, self.sizes, dim=2)
        return own_BTE.softmax(dim=2), other_BTE.softmax(dim=2)


class SyNCRec(MultiDomainRecommender):
    """Mixtures of distinct experts over mixed and single-domain streams; u is a buffer, part of every saved state."""

    name = "syncrec"
    gain_K: Tensor

    def __init__(self, domains: tuple[TokenRange, ...], config: SyNCRecConfig) -> None:
        super().__init__(domains, config)
        self.config = config
        num_mixed = int(OWN_SHARE * config.num_experts)
        num_single = config.num_experts - num_mixed
        self.input = MixedInput(len(domains), config)
        self.mixed_experts = _experts(num_mixed, config)
        self.single_experts = _experts(num_single, config)
        self.mixed_gate = Gate(config.width, num_mixed, num_single)
        self.single_gates = nn.ModuleList(Gate(config.width, num_single, num_mixed) for _ in domains)
        self.mixed_tower = Tower(config)
        self.single_towers = nn.ModuleList(Tower(config) for _ in domains)
        self.agreement = nn.Linear(config.width, config.width, bias=False)
        self.register_buffer("gain_K", torch.zeros(len(domains)))
        self.apply(initialise)

    @property
    def domain_weights_K(self) -> Tensor:
        """lambda: K softmax(u / T); their mean is 1."""
        return len(self.domains) * torch.softmax(self.gain_K / self.config.weight_temperature, dim=0)

    def encode_all(self, item_ids_BT: Tensor) -> Tensor:
        """The mixed stream's states c [B, T, D]; position t reads positions <= t."""
        embedded_BTD = self.input(self.item_embedding(item_ids_BT), domain_indices(item_ids_BT, self.domains))
        own_BTE, other_BTE = self.mixed_gate(embedded_BTD)
        mixed_BTD = _mixture(embedded_BTD, self.mixed_experts, self.single_experts, own_BTE, other_BTE)
        towered_BTD: Tensor = self.mixed_tower(mixed_BTD)
        return towered_BTD

    def encode_streams(self, streams: DomainStreams) -> Tensor:
        """The domains' states s [P, D] of all streams, group by group; meaningless at padding."""
        return torch.cat([self._encode_group(group).flatten(0, 1) for group in streams.groups])

    def encode_for(self, domain: int, item_ids_BT: Tensor) -> Tensor:  # noqa: ARG002
        """The state c at each history's last item, whichever domain is asked for."""
        return last_states(self.encode_all(item_ids_BT), (item_ids_BT != PADDING).sum(dim=1))

    def loss(self, batch: MixedBatch) -> Tensor:
        """
        Both streams' cross-entropies and the mutual-information term.

        1. Encode the mixed rows and the domains' streams.
        2. Cross-entropies of each domain: of s, of c at the same positions, of c where s has nothing to say.
        3. In training mode, u moves by what mixing gained.
        4. Add up by numbers of targets, the mixed stream's weighted by lambda.
        """
        streams = domain_streams(batch.item_ids_BT, self.domains)  # on the CPU, where batches are made
        mixed_BTD = self.encode_all(self.on_device(batch.item_ids_BT))
        single_PD = self.encode_streams(streams)
        single_K, warm_K, cold_K, num_warm_K, num_cold_K = self._stream_losses(batch, streams, mixed_BTD, single_PD)
        if self.training:
            gained_K = torch.where(num_warm_K > 0, (single_K - warm_K).detach(), self.gain_K)
            self.gain_K.lerp_(gained_K, 1 - self.config.weight_memory)
        mixed_K = self.domain_weights_K * (num_warm_K * warm_K + num_cold_K * cold_K)
        mean = (num_warm_K * single_K + mixed_K).sum() / (num_warm_K + num_cold_K).sum()
        mutual = self.mutual_information(batch.item_ids_BT, streams, mixed_BTD, single_PD)
        return batch.weight * (mean + self.config.mutual_weight * mutual)

    def mutual_information(
        self, item_ids_BT: Tensor, streams: DomainStreams, mixed_BTD: Tensor, single_PD: Tensor
    ) -> Tensor:
        """
        InfoNCE between W c_t and the single-domain state of the item at t; negatives are the other rows' at t.

        loss = mean over items of [ -a_b . h_b / sqrt(D) + log sum over rows b' with an item at t of
        exp(a_b . h_b' / sqrt(D)) ], a = W c.
        """
        domains_BT = domain_indices(item_ids_BT, self.domains)
        own_BT = streams.slots_KBT.gather(0, domains_BT[None])[0].clamp(min=0)
        own_BTD = single_PD[self.on_device(own_BT)]
        present_TB = self.on_device((item_ids_BT != PADDING).T)
        logits_TBB = torch.einsum("btd,ctd->tbc", self.agreement(mixed_BTD), own_BTD).float() / math.sqrt(self.width)
        log_shares_TBB = logits_TBB.masked_fill(~present_TB[:, None, :], float("-inf")).log_softmax(dim=2)
        return -log_shares_TBB.diagonal(dim1=1, dim2=2)[present_TB].mean()

    @property
    def width(self) -> int:
        """D."""
        return self.item_embedding.embedding_dim

    def _encode_group(self, group: StreamGroup) -> Tensor:
        sizes = list(group.sizes)
        domains_R1 = self.on_device(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[:, None])
        items_RSD = self.item_embedding(self.on_device(group.item_ids_RS))
        embedded_RSD = self.input(items_RSD, domains_R1)
        embedded = torch.split(embedded_RSD, sizes)
        gated = [gate(of_domain_RSD) for gate, of_domain_RSD in zip(self.single_gates, embedded, strict=True)]
        own_RSE, other_RSE = (torch.cat(side) for side in zip(*gated, strict=True))
        # Experts read all domains' streams in one call; gates and towers are each domain's own.
        mixed_RSD = _mixture(embedded_RSD, self.single_experts, self.mixed_experts, own_RSE, other_RSE)
        mixed = torch.split(mixed_RSD, sizes)
        return torch.cat([tower(of_domain_RSD) for tower, of_domain_RSD in zip(self.single_towers, mixed, strict=True)])

    def _stream_losses(
        self, batch: MixedBatch, streams: DomainStreams, mixed_BTD: Tensor, single_PD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Each [K]: CE of s, of c there, of c where s has no item; and how many targets the last two are over."""
        losses, counts = [], []
        for domain, (targets, table_XD) in enumerate(zip(batch.targets, self.domain_tables, strict=True)):
            slots_M = streams.slots_KBT[domain].flatten()[targets.positions_M]
            warm_M = slots_M >= 0
            mixed_MD = mixed_BTD.flatten(0, 1)[self.on_device(targets.positions_M)]
            single_MD = single_PD[self.on_device(slots_M[warm_M])]
            warm, cold = warm_M.nonzero()[:, 0], (~warm_M).nonzero()[:, 0]
            losses += [
                domain_cross_entropy(single_MD, table_XD, targets.columns_M[warm]),
                domain_cross_entropy(mixed_MD[self.on_device(warm)], table_XD, targets.columns_M[warm]),
                domain_cross_entropy(mixed_MD[self.on_device(cold)], table_XD, targets.columns_M[cold]),
            ]
            counts += [len(warm), len(cold)]
        single_K, warm_K, cold_K = torch.stack(losses).view(-1, 3).unbind(1)
        num_warm_K, num_cold_K = torch.tensor(counts, device=self.device).view(-1, 2).unbind(1)
        return single_K, warm_K, cold_K, num_warm_K, num_cold_K


def _experts(number: int, config: SyNCRecConfig) -> nn.ModuleList:
    return nn.ModuleList(transformer(config.expert_layers, config) for _ in range(number))


def _mixture(
    embedded_BTD: Tensor,
    own_experts: Iterable[nn.Module],
    other_experts: Iterable[nn.Module],
    own_BTE: Tensor,
    other_BTE: Tensor,
) -> Tensor:
    """0.8 of the own experts' gated sum, 0.2 of the others', whose weights get no gradient from this stream."""
    own_BTD = _gated_sum([expert(embedded_BTD) for expert in own_experts], own_BTE)
    # Detached, not under no_grad: autocast would keep copies of the weights that know no gradient.
    other_BTD = _gated_sum([expert(embedded_BTD).detach() for expert in other_experts], other_BTE)
    return OWN_SHARE * own_BTD + (1 - OWN_SHARE) * other_BTD


def _gated_sum(outputs: list[Tensor], weights_BTE: Tensor) -> Tensor:
    return (torch.stack(outputs, dim=-1) * weights_BTE[:, :, None, :]).sum(dim=-1)

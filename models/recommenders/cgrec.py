"""
CGRec: the domains' losses, weighted by Shapley values (Park et al., CIKM 2023).

    h0 = blocks(Dropout(LN(E[x] + E_domain + P))),   h1 = LN(h0 + Dropout(W_2 gelu(W_1 h0)))
    cross-entropies: coarse, of the next item's domain, from h0 . E_domain; fine, of the item in it, from h1 . E[x]
    L = mean over d of lambda_d (coarse + fine)(Q_d),   Q_d = the positions whose target is in domain d

Domain weights come from Shapley values. In the game of a coalition C of domains, inputs of other domains lose their
item (domain and position stay), and

    l(C)  = mean over positions whose target is in C of (coarse + fine - log K - log X_d),   l(empty) = 0
    phi_j = sum over C without j of |C|! (K - |C| - 1)! / K!  (l(C + j) - l(C))
    u    <- 0.9 u + 0.1 phi,   lambda = K softmax(-u / T)

The logarithms are the losses of guessing, so that domains of different size compare. phi_j > 0: with j around, the
loss is higher, j harms, and its own loss weighs less. lambda carries no gradient.

Differs from the code released with the paper that we follow, where it does not do what it describes:

- Shapley values are exact, over all 2^K coalitions of the data's own domains. The code assumes five domains, leaves
  out the empty and the full coalition and subtracts coalitions that do not differ by the player in question.
- u's two coefficients are 0.9 and 0.1. In the code they are random numbers that are never trained, so the seed decides
  the sign with which harm counts.
- A position belongs to its target's domain, not to its input's.
- Full softmax inside the target's domain, and over domains on the coarse level, instead of one negative drawn among
  all domains' items.
- Our datasets have no item categories: the item's domain is the only coarse level. The code reads two levels from
  columns whose meaning differs between its datasets.
- Coalitions are played every 10 steps and without dropout; the temperature is 1, in nats, where the code has 0.05 next
  to losses of another scale.
- Selection by the target domain's validation items; the code selects by the test items.

A round of coalitions takes 2^K - 1 passes without gradient: fine for the paper's four domains, not for ten.

Shapes: B = rows, T = positions, D = width, K = domains, M = targets of one domain, P = B * T.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class CGRecConfig(SharedConfig):
    """
    Hyper-parameters of CGRec: the shared ones and its own.

    Args:
        weight_memory: share of its old value that u, the running estimate behind the domain weights, keeps at an
            update, in [0, 1).
        weight_temperature: T, of the softmax that makes domain weights of u, > 0; small is sharp.
        shapley_interval: steps between two updates of the domain weights; one takes 2^K - 1 passes without gradient.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    weight_memory: float = 0.9
    weight_temperature: float = 1.0
    shapley_interval: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, ("weight_memory",), below_one=True)
        check_above_zero(self, ("weight_temperature",))
        check_at_least(self, {"shapley_interval": 1})


class CGRec(MultiDomainRecommender):
    """A causal Transformer with one head per level; domain weights are buffers, part of every saved state."""

    name = "cgrec"
    harm_K: Tensor
    steps: Tensor

    def __init__(self, domains: tuple[TokenRange, ...], config: CGRecConfig) -> None:
        super().__init__(domains, config)
        self.config = config
        self.input = MixedInput(len(domains), config)
        self.blocks = transformer(config.num_layers, config)
        self.item_tower = Tower(config)
        self.register_buffer("harm_K", torch.zeros(len(domains)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.apply(initialise)

    @property
    def domain_weights_K(self) -> Tensor:
        """lambda: K softmax(-u / T); their mean is 1."""
        return len(self.domains) * torch.softmax(-self.harm_K / self.config.weight_temperature, dim=0)

    def encode_all(self, item_ids_BT: Tensor, known_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        The states of both levels, h0 and h1, each [B, T, D]; position t reads positions <= t.

        Args:
            item_ids_BT: mixed rows, padded on the right.
            known_BT: slots whose item may be read; all of them if None.
        """
        visible_BT = item_ids_BT if known_BT is None else torch.where(known_BT, item_ids_BT, PADDING)
        embedded_BTD = self.input(self.item_embedding(visible_BT), domain_indices(item_ids_BT, self.domains))
        coarse_BTD = self.blocks(embedded_BTD)
        return coarse_BTD, self.item_tower(coarse_BTD)

    def encode_for(self, domain: int, item_ids_BT: Tensor) -> Tensor:  # noqa: ARG002
        """h1 at each history's last item, whichever domain is asked for."""
        _, fine_BTD = self.encode_all(item_ids_BT)
        return last_states(fine_BTD, (item_ids_BT != PADDING).sum(dim=1))

    def loss(self, batch: MixedBatch) -> Tensor:
        """Both levels' cross-entropies, weighted by domain; in training mode the domain weights move on."""
        if self.training:
            if int(self.steps) % self.config.shapley_interval == 0:
                self.harm_K.lerp_(self.harms(batch), 1 - self.config.weight_memory)
            self.steps += 1
        losses = self._level_losses(batch, range(len(self.domains)))
        share_K = torch.tensor([targets.weight for targets in batch.targets], device=self.device)
        return (self.domain_weights_K * share_K * torch.stack(losses)).mean()

    @torch.no_grad()
    def harms(self, batch: MixedBatch) -> Tensor:
        """Shapley values [K] of the domains on one batch, without dropout: > 0 where a domain raises the loss."""
        was_training = self.training
        self.eval()
        K = len(self.domains)
        chance = [math.log(K) + math.log(len(domain)) for domain in self.domains]
        losses_C = torch.zeros(2**K, device=self.device)
        for coalition in range(1, 2**K):
            members = [domain for domain in range(K) if coalition >> domain & 1]
            num_targets = sum(len(batch.targets[domain]) for domain in members)
            for domain, loss in zip(members, self._level_losses(batch, members), strict=True):
                share = len(batch.targets[domain]) / max(1, num_targets)
                losses_C[coalition] += share * (loss - chance[domain])
        self.train(was_training)
        # Autocast would hand the copies made here, which know no gradient, to the pass that trains.
        torch.clear_autocast_cache()
        return shapley_values(losses_C)

    def _level_losses(self, batch: MixedBatch, coalition: Collection[int]) -> list[Tensor]:
        """Both levels' cross-entropies, added, of each domain in *coalition*, whose items alone are read."""
        item_ids_BT = self.on_device(batch.item_ids_BT)
        known_BT = None
        if len(coalition) < len(self.domains):
            known_BT = torch.isin(
                domain_indices(item_ids_BT, self.domains), torch.tensor(list(coalition), device=self.device)
            )
        coarse_BTD, fine_BTD = self.encode_all(item_ids_BT, known_BT)
        tables = self.domain_tables
        losses = []
        for domain in coalition:
            targets = batch.targets[domain]
            positions_M = self.on_device(targets.positions_M)
            coarse_MD, fine_MD = coarse_BTD.flatten(0, 1)[positions_M], fine_BTD.flatten(0, 1)[positions_M]
            which_M = torch.full_like(targets.columns_M, domain)
            coarse = domain_cross_entropy(coarse_MD, self.input.domain_embedding.weight, which_M)
            losses.append(coarse + domain_cross_entropy(fine_MD, tables[domain], targets.columns_M))
        return losses


def shapley_values(values_C: Tensor) -> Tensor:
    """
    Each player's mean marginal contribution over all orders of joining.

    phi_j = sum over C without j of |C|! (K - |C| - 1)! / K! (v(C + j) - v(C)); they add up to v(all) - v(none).

    Args:
        values_C: value of every coalition [2^K]; bit j of the index says whether player j is in it.

    Returns:
        [K].

    >>> shapley_values(torch.tensor([0.0, 1.0, 2.0, 5.0])).tolist()
    [2.0, 3.0]
    """
    K = len(values_C).bit_length() - 1
    assert len(values_C) == 2**K
    phi_K = torch.zeros(K, device=values_C.device)
    for coalition in range(2**K):
        size = coalition.bit_count()
        for player in range(K):
            if not coalition >> player & 1:
                weight = 1 / (math.comb(K - 1, size) * K)  # |C|! (K - |C| - 1)! / K!
                phi_K[player] += weight * (values_C[coalition | 1 << player] - values_C[coalition])
    return phi_K

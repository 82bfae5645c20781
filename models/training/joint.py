"""
Another way to an expert: one for all domains, from nothing, inside each of them, on the sum of its two readings.

    loss = mean over domains d of  - mean over (t : x_t+1 in d) of log softmax_(x in d) [ e_x . h / c ] [x_t+1]

    h = (h_mixed + h_own) / 2: the states after x_1 .. x_t and after the items of d in it (``network.two_readings``)

An adapted expert has learned what its items are from a softmax over all domains' items; this one never asks which
domain comes next. The two know different things: their log-probabilities added rank better than either where a domain
has thousands of users (docs/experiments/one-decoder-inside-domains.md). So it is trained where some domain has
``LEAST_ROWS`` validation rows, and validation says which of those read it (``expert_choice``).

Weight decay lambda keeps every weight near 1 / lambda and so the logits small; c makes up for that. Once trained the
decoder's last norm is divided by c: a decoder like any other, with its ordinary logits.

Shapes: B = sequences, T = positions, N = positions that ask for items of one domain, P = slots of all streams, K =
domains, D = width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import ChosenSequences
from models.network.decoder import Decoder, DecoderConfig
from models.network.domain_streams import domain_streams
from models.network.losses import linear_cross_entropy, next_item_targets
from models.training.base import seeded_decoder
from models.training.loop import Progress, TrainingConfig, TrainingResult, fit
from models.training.objective import (
    PredictionBatch,
    PredictionObjective,
    choose_held_out,
    make_trainable,
    trainable_rows,
    weights_hash,
)
from models.training.own_shares import try_own_shares
from models.training.training_data import TrainableData
from models.vocabulary import TokenRange

JOINT_STAGE = "joint expert"
# With fewer, a difference of a tenth is within two standard errors, and training one more network is for nothing.
LEAST_ROWS = 1000
# The c above, for a decay of 1.
LOGIT_SCALE = 0.375


@dataclass(frozen=True)
class JointExpertObjective(PredictionObjective):
    """
    The loss above; the rest as of any prediction of the next item.

    Args:
        domains: all of them, in the vocabulary's order.
    """

    domains: tuple[TokenRange, ...] = field(kw_only=True)

    def loss(self, module: Decoder, batch: PredictionBatch) -> Tensor:
        """Mean over domains; each of their items weighs the same over an epoch, whichever sequences share its step."""
        device = module.item_embeddings_VD.device
        inputs_BT, targets_BT = batch.token_ids_BT[:, :-1], next_item_targets(batch.token_ids_BT)
        streams = domain_streams(inputs_BT, self.domains)  # on the CPU, where batches are made
        mixed_BTD = module(inputs_BT.to(device))
        own_PD = torch.cat([module(group.item_ids_RS.to(device)).flatten(0, 1) for group in streams.groups])
        total = torch.zeros((), device=device)
        for domain, slots_BT, mean in zip(self.domains, streams.slots_KBT, self._mean_targets_K, strict=True):
            asks_BT = domain.mask(targets_BT)
            slots_N = slots_BT[asks_BT].to(device)
            mixed_ND = mixed_BTD[asks_BT.to(device)]
            own_ND = torch.where((slots_N >= 0)[:, None], own_PD[slots_N.clamp(min=0)], mixed_ND)
            hidden_ND = (mixed_ND + own_ND) / (2 * LOGIT_SCALE)
            targets_N = targets_BT[asks_BT].to(device)
            loss = linear_cross_entropy(hidden_ND, module.item_embeddings_VD, targets_N, candidates=domain.columns)
            total = total + len(targets_N) / mean * loss
        # A row that fills up a process's part counts nothing
        return total / len(self.domains) if batch.weight else 0.0 * total

    @cached_property
    def _mean_targets_K(self) -> list[float]:
        """Positions of a step that ask for items of each domain, on average; above 0, as there may be none."""
        totals_K = np.zeros(len(self.domains), dtype=np.int64)
        for targets_BT in self._all_targets():
            totals_K += [int(domain.mask(targets_BT).sum()) for domain in self.domains]
        return [max(1, int(total)) / self.num_batches() for total in totals_K]


def train_joint_expert(
    dataset: TrainableData,
    size: DecoderConfig,
    config: TrainingConfig,
    judged: Sequence[str],
    *,
    device: torch.device,
    start: Decoder | None = None,
    resume_file: Path | None = None,
    progress: Progress | None = None,
    course: Sequence[int] | None = None,
) -> tuple[Decoder, TrainingResult]:
    """
    Train one decoder that is an expert of every domain.

    Args:
        dataset: the sequences; all of their domains are learned from.
        size: of the decoder.
        config: schedule; its weight decay is what ``LOGIT_SCALE`` goes with.
        judged: names of the domains whose validation rows choose the epoch: the best mean of their NDCG@10 among unseen
            items, each domain's under its best shares of the readings (``own_shares``).
        start: an earlier joint expert to go on from, for the vocabulary of *dataset*; it is left as it is.
        resume_file, progress, course: as in ``fit``.

    Raises:
        UnknownDomainError: the dataset has no such domain.
    """
    decoder = seeded_decoder(size, config.seed).to(device) if start is None else copy.deepcopy(start)
    if start is not None:
        decoder.scale_hidden(LOGIT_SCALE)
    chosen = [dataset.vocabulary.token_range(name) for name in judged]
    rows = [choose_held_out(dataset.train, dataset.validation, domain) for domain in chosen]

    def validate(module: Decoder) -> float:
        trials = (try_own_shares(module, held_out, domain) for held_out, domain in zip(rows, chosen, strict=True))
        return float(np.mean([trial.best for trial in trials]))

    all_items = TokenRange(1, dataset.vocabulary.num_items)
    objective = JointExpertObjective(
        name=JOINT_STAGE,
        fingerprint=f"{dataset.fingerprint} {dataclasses.asdict(size)} {weights_hash(decoder)} {' '.join(judged)}",
        sequences=ChosenSequences(dataset.train, trainable_rows(dataset.train)),
        targets_of=next_item_targets,
        candidates=all_items,
        validation=choose_held_out(dataset.train, dataset.validation, all_items),
        max_length=size.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        domains=dataset.vocabulary.token_ranges,
        validate_with=validate,
    )
    make_trainable(decoder, sampled_softmax=None)
    result = fit(decoder, objective, config, resume_file=resume_file, progress=progress, course=course)
    decoder.scale_hidden(1 / LOGIT_SCALE)
    return decoder, result


def domains_with_rows(dataset: TrainableData) -> tuple[str, ...]:
    """The domains that have ``LEAST_ROWS`` validation rows, enough to tell two experts apart."""
    held_out = dataset.validation[dataset.train.lengths > 0]
    counts = {
        domain: int(token_range.mask(held_out).sum())
        for domain, token_range in zip(dataset.vocabulary.domains, dataset.vocabulary.token_ranges, strict=True)
    }
    return tuple(domain for domain, count in counts.items() if count >= LEAST_ROWS)

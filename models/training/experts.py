"""
Stage 1, second half: one expert theta_d per domain, adapted from the base by Domain-Specific Prediction (eq. 9-11).

Differs from the released code in: the epoch kept is the best by validation NDCG@10 (the released code trains 20
epochs and keeps the last, by which its experts had lost up to a third of their NDCG@10).

The paper's table 3 leaves out one half at a time:

``from-scratch``
    w/o DSA: nothing of the base. The weights of each expert are drawn anew, the prediction stays domain-specific.
``single-domain``
    DSA w/o DSP: from the base, but on the sequences without foreign items, predicting the next item at every one. The
    released code's disabled branch takes the softmax over all items; ours stays within the domain, so that the loss
    differs by its rows and positions alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from models.data.dataset import ChosenSequences
from models.network.decoder import Decoder
from models.network.losses import domain_specific_targets, next_item_targets
from models.training.batches import epoch_generator
from models.training.loop import Progress, TrainingConfig, TrainingResult, fit
from models.training.objective import (
    PredictionObjective,
    choose_held_out,
    make_trainable,
    trainable_rows,
    weights_hash,
)
from models.training.own_shares import try_own_shares
from models.training.training_data import TrainableData

Experts = Literal["adapted", "from-scratch", "single-domain"]


def train_expert(
    dataset: TrainableData,
    base: Decoder,
    domain: str,
    config: TrainingConfig,
    *,
    experts: Experts,
    sampled_softmax: int | None = None,
    own_rows: float = 0.0,
    two_readings: bool = False,
    resume_file: Path | None = None,
    progress: Progress | None = None,
    course: Sequence[int] | None = None,
) -> tuple[Decoder, TrainingResult]:
    """
    Adapt a copy of *base* to *domain*; the base is left as it is.

    The input is the full mixed sequence; at every item of the domain but the last, predict the next item of the
    domain, softmax over the domain's items only; all weights train. Validation ranks the domain's validation items
    among the domain's items, with mixed histories, which is what decoding feeds an expert, however it was trained.

    Args:
        experts: ``adapted`` as just said, or an ablation of it; see the top of this file. From scratch only the
            configuration of *base* is used.
        own_rows: of so many batches the sequences without foreign items, so that both readings of the expert are
            trained (``network.two_readings``).
        two_readings: validate by the readings together, with the shares that are best after the epoch.
        sampled_softmax: estimate the softmax from so many of the domain's items, if it has more.

    Raises:
        UnknownDomainError: the dataset has no such domain.
    """
    candidates = dataset.vocabulary.token_range(domain)
    name = f"expert {domain}"
    expert = _untrained(base, config.seed, name) if experts == "from-scratch" else copy.deepcopy(base)
    sequences = dataset.train.inside(candidates) if experts == "single-domain" else dataset.train
    # The same weights under another dropout or number of heads are another run, too.
    fingerprint = f"{dataset.fingerprint} {dataclasses.asdict(base.config)} {weights_hash(expert)}"
    if sampled_softmax is not None:
        fingerprint += f" sampled {sampled_softmax}"
    if own_rows:
        fingerprint += f" own rows {own_rows}"
    if two_readings:
        fingerprint += " two readings"
    held_out = choose_held_out(dataset.train, dataset.validation, candidates)
    objective = PredictionObjective(
        name=name,
        fingerprint=fingerprint if experts == "adapted" else f"{fingerprint} {experts}",
        sequences=ChosenSequences(sequences, trainable_rows(sequences)),
        targets_of=(
            next_item_targets
            if experts == "single-domain"
            else partial(domain_specific_targets, token_range=candidates)
        ),
        candidates=candidates,
        validation=held_out,
        max_length=base.config.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        sampled_softmax=sampled_softmax,
        own_rows=own_rows,
        validate_with=(lambda module: try_own_shares(module, held_out, candidates).best) if two_readings else None,
    )
    make_trainable(expert, sampled_softmax=sampled_softmax)
    result = fit(expert, objective, config, resume_file=resume_file, progress=progress, course=course)
    return expert, result


def _untrained(base: Decoder, seed: int, name: str) -> Decoder:
    """A decoder of the base's size; other weights for every expert, and none of the base's."""
    with torch.random.fork_rng(devices=[]):
        # Epoch 0 has no batches, so its generator is free.
        torch.manual_seed(int(epoch_generator(seed, name, 0).integers(1 << 63)))
        expert = Decoder(base.config)
    return expert.to(base.item_embeddings_VD.device)

"""Stage 1, first half: the base decoder theta_M, next-item prediction over all items of all domains (eq. 7-8)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from models.data.dataset import ChosenSequences
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import next_item_targets
from models.training.continuation import NEW_READINGS, Continuation
from models.training.loop import Progress, TrainingConfig, TrainingResult, fit
from models.training.objective import (
    PredictionObjective,
    choose_held_out,
    make_trainable,
    trainable_rows,
    weights_hash,
)
from models.training.training_data import TrainableData
from models.vocabulary import TokenRange


def train_base(
    dataset: TrainableData,
    decoder_config: DecoderConfig,
    config: TrainingConfig,
    *,
    device: torch.device,
    sampled_softmax: int | None = None,
    resume_file: Path | None = None,
    progress: Progress | None = None,
    course: Sequence[int] | None = None,
    continuation: Continuation | None = None,
) -> tuple[Decoder, TrainingResult]:
    """
    Train the base on the mixed training sequences.

    loss = - mean over positions t of log softmax_x(h_t . e_x)[s_{t+1}], x over every item of every domain. The epoch
    with the best NDCG@10 on validation items, ranked among all items, is kept. *sampled_softmax* estimates the softmax
    from so many items (``losses.sampled_cross_entropy``). *continuation* says which bundle's base to go on from, and
    what is new to it; the last epoch is kept then, as validation items, of which few are new, would now and then keep
    yesterday's base. Without it, weights are drawn by the seed.
    """
    all_items = TokenRange(1, dataset.vocabulary.num_items)
    fingerprint = f"{dataset.fingerprint} {json.dumps(dataclasses.asdict(decoder_config), sort_keys=True)}"
    rows, first_asked = trainable_rows(dataset.train), None
    if continuation is None:
        base = seeded_decoder(decoder_config, config.seed).to(device)
    else:
        base = continuation.base
        rows, first_asked = continuation.readings(rows)
        fingerprint += f" from {weights_hash(base)}, what is new {NEW_READINGS} times more"
    objective = PredictionObjective(
        name="base",
        # Another network on the same data is another run, and so is another loss.
        fingerprint=fingerprint if sampled_softmax is None else f"{fingerprint} sampled {sampled_softmax}",
        sequences=ChosenSequences(dataset.train, rows),
        targets_of=next_item_targets,
        candidates=all_items,
        validation=choose_held_out(dataset.train, dataset.validation, all_items),
        max_length=decoder_config.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        sampled_softmax=sampled_softmax,
        first_asked=first_asked,
    )
    make_trainable(base, sampled_softmax=sampled_softmax)
    result = fit(
        base,
        objective,
        config,
        resume_file=resume_file,
        progress=progress,
        course=course,
        keep_last=continuation is not None,
    )
    return base, result


def seeded_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """An untrained decoder whose weights *seed* draws, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(config)

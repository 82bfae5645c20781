"""
Stage 1, second half: one expert theta_d per domain, adapted from the base by Domain-Specific Prediction (eq. 9-11).

Differs from the released code in: the epoch kept is the best by validation NDCG@10 (the released code trains 20
epochs and keeps the last, by which its experts had lost up to a third of their NDCG@10).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from functools import partial
from pathlib import Path

from safetensors.torch import save

from models.dataset import Dataset
from models.decoder import Decoder
from models.losses import domain_specific_targets
from models.prediction import PredictionObjective, held_out_rows, trainable_sequences
from models.training import Progress, TrainingConfig, TrainingResult, fit


def train_expert(
    dataset: Dataset,
    base: Decoder,
    domain: str,
    config: TrainingConfig,
    *,
    resume_file: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Decoder, TrainingResult]:
    """
    Adapt a copy of *base* to *domain*; the base is left as it is.

    The input is the full mixed sequence; at every item of the domain but the last, predict the next item of the
    domain, softmax over the domain's items only; all weights train. Validation ranks the domain's validation items
    among the domain's items, with mixed histories.

    Raises:
        UnknownDomainError: the dataset has no such domain.
    """
    candidates = dataset.vocabulary.token_range(domain)
    objective = PredictionObjective(
        name=f"expert {domain}",
        # The same weights under another dropout or number of heads are another run, too.
        fingerprint=f"{dataset.fingerprint} {dataclasses.asdict(base.config)} {_weights_hash(base)}",
        sequences=trainable_sequences(dataset.train),
        targets_of=partial(domain_specific_targets, token_range=candidates),
        candidates=candidates,
        validation=held_out_rows(dataset.train, dataset.validation, candidates),
        max_length=base.config.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    expert = copy.deepcopy(base).requires_grad_(True)
    result = fit(expert, objective, config, resume_file=resume_file, progress=progress)
    return expert, result


def _weights_hash(base: Decoder) -> str:
    """An expert resumes only from a file that was adapted from the same base."""
    return hashlib.sha256(save({key: value.cpu() for key, value in base.state_dict().items()})).hexdigest()

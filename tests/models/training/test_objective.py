"""Training a decoder on mixed sequences: what a step's loss adds to the epoch's."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.data.dataset import TOKENS, pad_right
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import domain_specific_targets, next_item_targets
from models.training.objective import HeldOut, PredictionObjective
from models.vocabulary import TokenRange

MAX_LENGTH = 8
LENGTHS = (2, 40, 3, 2, 30, 2, 9, 3, 25, 2, 4, 8, 2)
DOMAIN = TokenRange(1, 20)


@pytest.fixture
def objectives() -> list[PredictionObjective]:
    """The base's and an expert's, on rows of very different lengths, some longer than the decoder reads."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 51, length).astype(TOKENS) for length in LENGTHS]
    return [
        PredictionObjective(
            name=name,
            fingerprint="",
            sequences=sequences,
            targets_of=targets_of,
            candidates=candidates,
            validation=HeldOut((), np.zeros(0, dtype=TOKENS)),
            max_length=MAX_LENGTH,
            batch_size=3,
            seed=1,
        )
        for name, targets_of, candidates in (
            ("base", next_item_targets, TokenRange(1, 50)),
            ("expert", partial(domain_specific_targets, token_range=DOMAIN), DOMAIN),
        )
    ]


@torch.inference_mode()
def test_an_epochs_loss_is_the_mean_over_its_predicted_positions(objectives: list[PredictionObjective]) -> None:
    """Steps hold rows of similar lengths: their mean losses alone would count a short row's positions several times."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(num_items=50, width=8, inner_width=8, max_length=MAX_LENGTH, init_std=0.5)).eval()
    for objective in objectives:
        losses = []
        for sequence in objective.sequences:
            whole_1T = pad_right([sequence[-(MAX_LENGTH + 1) :]])
            targets_T = objective.targets_of(whole_1T)[0]
            logits_TX = decoder(whole_1T[:, :-1])[0] @ decoder.item_embeddings_VD[objective.candidates.columns].T
            asks_T = targets_T != 0
            columns_N = targets_T[asks_T] - objective.candidates.first
            losses += F.cross_entropy(logits_TX[asks_T], columns_N, reduction="none").tolist()

        steps = [objective.loss(decoder, batch).item() for batch in objective.batches(1)]

        assert len(steps) == objective.num_batches()
        assert np.mean(steps) == pytest.approx(np.mean(losses), rel=1e-5)


@torch.inference_mode()
def test_from_a_place_on_the_items_of_a_sequence_are_asked_for_and_those_before_are_only_read(
    objectives: list[PredictionObjective],
) -> None:
    """Also where the decoder does not read the whole sequence; the mean is over what is asked for."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(num_items=50, width=8, inner_width=8, max_length=MAX_LENGTH, init_std=0.5)).eval()
    first_asked = np.array([0, 36, 1, 0, 5, 1, 7, 2, 24, 1, 0, 6, 0])
    objective = dataclasses.replace(objectives[0], first_asked=first_asked)
    losses = []
    for sequence, first in zip(objective.sequences, first_asked.tolist(), strict=True):
        read_T = sequence[-(MAX_LENGTH + 1) :]
        start = len(sequence) - len(read_T)
        logits_TX = decoder(torch.from_numpy(read_T)[None, :-1])[0] @ decoder.item_embeddings_VD[1:].T
        for place in range(max(first, start + 1), len(sequence)):
            losses.append(F.cross_entropy(logits_TX[place - start - 1], torch.tensor(int(sequence[place]) - 1)).item())

    steps = [objective.loss(decoder, batch).item() for batch in objective.batches(1)]

    assert 0 < len(losses) < sum(min(length, MAX_LENGTH + 1) - 1 for length in LENGTHS)
    assert np.mean(steps) == pytest.approx(np.mean(losses), rel=1e-5)


def test_batches_of_own_rows_hold_no_foreign_item_and_predict_the_same_items(
    objectives: list[PredictionObjective],
) -> None:
    """With a share of half, some batches are as they are and some without foreign items; each weighs the same."""
    mixed = objectives[1]
    own, half = dataclasses.replace(mixed, own_rows=1.0), dataclasses.replace(mixed, own_rows=0.5)

    def predicted(objective: PredictionObjective, epoch: int) -> list[int]:
        targets = (mixed.targets_of(batch.token_ids_BT) for batch in objective.batches(epoch))
        return sorted(token for targets_BT in targets for token in targets_BT[targets_BT > 0].tolist())

    def foreign(objective: PredictionObjective, epoch: int) -> list[bool]:
        return [bool((batch.token_ids_BT > DOMAIN.last).any()) for batch in objective.batches(epoch)]

    assert predicted(own, 1) == predicted(half, 1) == predicted(mixed, 1) != []
    assert [batch.weight for batch in own.batches(1)] == [batch.weight for batch in mixed.batches(1)]
    assert set(foreign(own, 1)) == {False}
    assert set(foreign(mixed, 1)) == {True}
    assert {kind for epoch in range(1, 9) for kind in foreign(half, epoch)} == {False, True}
    assert len({tuple(foreign(half, epoch)) for epoch in range(1, 9)}) > 1

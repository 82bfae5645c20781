"""An expert of two readings: their log-probabilities added, by two shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.network.decoder import Decoder
from models.network.two_readings import combined, encode_last, read, read_expert
from models.tuning import MIXED_ALONE, OwnShares
from models.vocabulary import TokenRange
from tests.conftest import random_decoder

NUM_ITEMS = 30
DOMAIN = TokenRange(11, 20)
examples = settings(deadline=None, max_examples=30)
histories_of_tokens = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=20), min_size=1, max_size=8)
shares = st.floats(0, 1, width=32)


@pytest.fixture(scope="module")
def expert() -> Decoder:
    return random_decoder(NUM_ITEMS, seed=5)


def arrays(histories: list[list[int]]) -> list[np.ndarray]:
    return [np.asarray(history, dtype=np.int32) for history in histories]


def log_probabilities(expert: Decoder, hidden_ND: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(hidden_ND @ expert.item_embeddings_VD[DOMAIN.columns].T, dim=1)


@given(share=shares)
@examples
def test_the_log_probabilities_of_the_readings_are_added(expert: Decoder, share: float) -> None:
    """(1 - w) log p(x | mixed) + w log p(x | own) + constant, by arithmetic on the two distributions."""
    mixed, own = arrays([[3, 12, 25, 14, 7]]), arrays([[12, 14]])
    first, second = (log_probabilities(expert, encode_last(expert, rows)) for rows in (mixed, own))
    expected = torch.log_softmax((1 - share) * first + share * second, dim=1)
    found = log_probabilities(expert, read_expert(expert, mixed, DOMAIN, OwnShares(after_source=share)))

    assert torch.allclose(found, expected, atol=1e-4)


@given(histories=histories_of_tokens)
@examples
def test_a_share_of_0_is_the_mixed_reading_and_1_the_own_to_the_bit(
    expert: Decoder, histories: list[list[int]]
) -> None:
    readings = read(expert, arrays(histories), DOMAIN)

    assert torch.equal(readings.combined(MIXED_ALONE), readings.mixed_ND)
    assert torch.equal(readings.combined(OwnShares(1, 1)), readings.own_ND)


@given(histories=histories_of_tokens, after_target=shares, after_source=shares)
@examples
def test_the_last_item_says_which_share_counts(
    expert: Decoder, histories: list[list[int]], after_target: float, after_source: float
) -> None:
    readings = read(expert, arrays(histories), DOMAIN)
    found_ND = readings.combined(OwnShares(after_target, after_source))
    for row, history in enumerate(histories):
        share = after_target if history[-1] in DOMAIN else after_source
        alone = combined(readings.mixed_ND[[row]], readings.own_ND[[row]], np.float32([share]))
        assert torch.equal(found_ND[[row]], alone)


def test_without_a_target_item_there_is_the_mixed_reading_alone(expert: Decoder) -> None:
    history = arrays([[3, 25, 7]])

    assert torch.equal(
        read_expert(expert, history, DOMAIN, OwnShares(1, 1)), read_expert(expert, history, DOMAIN, MIXED_ALONE)
    )


def test_both_readings_see_the_same_stretch_of_a_long_history(expert: Decoder) -> None:
    """Its last 32 items: what the mixed reading has forgotten, the own one does not bring back."""
    long = arrays([[11 + i % 10 if i % 3 else 1 + i % 9 for i in range(80)]])

    assert torch.equal(read(expert, long, DOMAIN).own_ND, read(expert, [long[0][-32:]], DOMAIN).own_ND)


def test_histories_are_encoded_a_few_at_a_time_each_once(expert: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with their number; those of like length together, each answered in its place."""
    histories = arrays([[3, 12, 25], [4], [12, 14, 9, 28], [7, 11], [30]])
    alone = torch.cat([encode_last(expert, [history]) for history in histories])
    monkeypatch.setattr("models.network.two_readings.READING_ROWS", 2)
    shapes: list[tuple[int, ...]] = []
    watching = expert.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    together = encode_last(expert, histories)
    watching.remove()

    assert shapes == [(2, 1), (2, 3), (1, 4)]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)

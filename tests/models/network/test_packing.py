"""Sequences side by side: what a decoder says after each position is what it says of the sequence alone, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import TOKENS, TokenArray, pad_right
from models.network.decoder import Decoder, DecoderConfig
from models.network.packing import LENGTH_STEP, pack, padded_length

NUM_ITEMS, LONGEST = 50, 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Two blocks of the released width, with weights large enough to matter."""
    torch.manual_seed(3)
    config = DecoderConfig(num_items=NUM_ITEMS, max_length=LONGEST, init_std=0.2)
    return Decoder(config).eval()


def sequences_of(lengths: list[int], seed: int) -> list[TokenArray]:
    random = np.random.default_rng(seed)
    return [random.integers(1, NUM_ITEMS + 1, length).astype(TOKENS) for length in lengths]


@torch.inference_mode()
def states(decoder: Decoder, sequences: list[TokenArray]) -> list[torch.Tensor]:
    packed = pack(sequences, LONGEST, CPU)
    hidden_ND = packed.encode(decoder)
    return [hidden_ND[start : start + len(own)] for start, own in zip(packed.starts, sequences, strict=True)]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_states_are_the_padded_decoders_in_any_company(decoder: Decoder, lengths: list[int], seed: int) -> None:
    sequences = sequences_of(lengths, seed)
    for own, found in zip(sequences, states(decoder, sequences), strict=True):
        padded = pad_right([own], min(LONGEST, padded_length(len(own))))
        with torch.inference_mode():
            expected = decoder(padded)[0, : len(own)]

        assert torch.equal(found, expected)
        assert torch.equal(found, states(decoder, [own])[0])


def test_a_neighbour_is_not_read(decoder: Decoder) -> None:
    first, second, other = sequences_of([5, 7, 7], seed=1)

    assert torch.equal(states(decoder, [first, second])[0], states(decoder, [first, other])[0])
    assert not torch.equal(states(decoder, [first, second])[1], states(decoder, [first, other])[1])


def test_rows_are_the_real_positions_filled_up_to_a_step() -> None:
    packed = pack(sequences_of([3, 20, 4], seed=2), LONGEST, CPU)

    assert packed.starts.tolist() == [0, 3, 23]
    assert packed.token_ids_N.shape == packed.positions_N.shape == (2 * LENGTH_STEP,)
    assert packed.positions_N[:27].tolist() == [*range(3), *range(20), *range(4)]
    assert packed.token_ids_N[27:].tolist() == [0] * 5
    assert [tuple(bucket.rows_BT.shape) for bucket in packed.buckets] == [(2, 16), (1, 32)]
    assert sorted(torch.cat([bucket.rows_M for bucket in packed.buckets]).tolist()) == list(range(27))


@pytest.mark.parametrize(("length", "expected"), [(0, 16), (1, 16), (16, 16), (17, 32), (128, 128)])
def test_padded_length(length: int, expected: int) -> None:
    assert padded_length(length) == expected

"""The network: causality, padding, sameness in any batch."""

from __future__ import annotations

import pytest
import torch

from models.network.decoder import Decoder, DecoderConfig
from tests.conftest import random_decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(60, seed=1)


def test_future_items_do_not_change_past_states(decoder: Decoder) -> None:
    """Causality: the state at t depends only on items up to t."""
    token_ids_BT = torch.tensor([[3, 9, 27, 50, 8, 41]])
    changed_BT = torch.tensor([[3, 9, 27, 11, 12, 13]])
    assert torch.equal(decoder(token_ids_BT)[:, :3], decoder(changed_BT)[:, :3])
    assert not torch.allclose(decoder(token_ids_BT)[:, 3:], decoder(changed_BT)[:, 3:])


def test_padding_on_the_right_changes_nothing(decoder: Decoder) -> None:
    token_ids_BT = torch.tensor([[3, 9, 27, 50]])
    padded_BT = torch.cat([token_ids_BT, torch.zeros(1, 20, dtype=torch.long)], dim=1)
    torch.testing.assert_close(decoder(padded_BT)[:, :4], decoder(token_ids_BT), rtol=1e-5, atol=1e-6)


def test_order_of_items_matters(decoder: Decoder) -> None:
    last = decoder(torch.tensor([[3, 9, 27]]))[0, -1]
    swapped = decoder(torch.tensor([[9, 3, 27]]))[0, -1]
    assert not torch.allclose(last, swapped, atol=1e-3)


def test_dropout_acts_in_training_only(decoder: Decoder) -> None:
    token_ids_BT = torch.tensor([[3, 9, 27]])
    assert torch.equal(decoder(token_ids_BT), decoder(token_ids_BT))
    training = Decoder(DecoderConfig(num_items=60, width=16, inner_width=16)).train()
    assert not torch.equal(training(token_ids_BT), training(token_ids_BT))


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of num_heads 3"):
        DecoderConfig(num_items=5, width=10, num_heads=3)

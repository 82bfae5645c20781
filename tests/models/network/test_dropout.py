"""Dropout by random words: the probability, the mean, and nothing else changed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models.network.decoder import causal_attention
from models.network.dropout import STEPS, Dropout, dropout

DRAWS = 400_000


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_is_scaled_to_keep_the_mean(p: float) -> None:
    torch.manual_seed(1)
    dropped = dropout(torch.full((DRAWS,), 3.0), p)
    share = (dropped == 0).double().mean().item()

    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / DRAWS)
    nearest = round(p * STEPS) / STEPS
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([3.0 / (1 - nearest)]))


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 64])
def test_elements_are_dropped_independently(distance: int) -> None:
    """Those that share a random word, those of neighbouring words, and those of neighbouring rows."""
    torch.manual_seed(2)
    kept = (dropout(torch.ones(DRAWS), 0.5) != 0).double()
    both = (kept[distance:] * kept[:-distance]).mean().item()

    assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / DRAWS)


@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    p=st.floats(0, 0.999999),
    seed=st.integers(0, 9),
)
def test_shape_and_type_are_kept_and_a_seed_gives_one_mask(shape, dtype, p, seed) -> None:
    values = torch.ones(shape, dtype=dtype)
    torch.manual_seed(seed)
    first = dropout(values, p)
    torch.manual_seed(seed)
    second = dropout(values, p)

    assert (first.shape, first.dtype) == (values.shape, dtype)
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())


def test_outside_training_and_at_zero_nothing_is_drawn() -> None:
    values = torch.randn(5, 6)
    state = torch.get_rng_state()

    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0).train()(values) is values
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_goes_where_the_value_went() -> None:
    torch.manual_seed(3)
    values = torch.ones(1000, requires_grad=True)
    dropped = Dropout(0.4).train()(values)
    dropped.sum().backward()

    assert torch.equal(values.grad, dropped.detach())


def test_attention_that_drops_weights_is_attention() -> None:
    """With a probability below what masks resolve it is torch's; with a real one, its mean over draws is."""
    torch.manual_seed(4)
    inputs_BT3D = torch.randn(2, 5, 3 * 8)
    exact_BTD = causal_attention(inputs_BT3D, 2, 0.0)
    torch.testing.assert_close(causal_attention(inputs_BT3D, 2, 1e-9), exact_BTD)

    drawn = torch.stack([causal_attention(inputs_BT3D, 2, 0.3) for _ in range(4000)])
    error = drawn.std(dim=0) / math.sqrt(len(drawn))
    assert bool(((drawn.mean(dim=0) - exact_BTD).abs() <= 5 * error + 1e-6).all())
    # The first position reads itself alone: kept and scaled, or dropped.
    first = drawn[:, :, 0].unflatten(-1, (2, 4))
    whole = exact_BTD[:, 0].unflatten(-1, (2, 4)) / (1 - round(0.3 * STEPS) / STEPS)
    for draw in first[:50]:
        is_zero = (draw == 0).all(dim=-1, keepdim=True)
        torch.testing.assert_close(draw, torch.where(is_zero, 0.0, whole))


def test_a_gpu_draws_its_own_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is no CPU, torch's dropout is called as it is."""
    seen = []
    monkeypatch.setattr(F, "dropout", lambda values, p: seen.append((values.device.type, p)) or values)
    dropout(torch.empty(3, device="meta"), 0.25)

    assert seen == [("meta", 0.25)]

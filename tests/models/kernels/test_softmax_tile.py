"""The compiled softmax tile against its definition in torch, and the losses with and without it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.kernels import softmax_tile
from models.network.losses import linear_cross_entropy

pytestmark = pytest.mark.skipif(not softmax_tile.is_available(), reason="no C++ compiler, so nothing is compiled")


def start(num_rows: int) -> tuple[Tensor, Tensor]:
    return torch.full((num_rows, 1), -math.inf), torch.zeros(num_rows, 1)


def weighed(logits_CW: Tensor, tiles: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights of every tile of so many columns, largest logit and mass of all."""
    largest_C1, mass_C1 = start(len(logits_CW))
    weights = []
    for tile_CW in logits_CW.split(tiles, dim=1):
        weights.append(tile_CW.contiguous().clone())
        softmax_tile.weigh_(weights[-1], largest_C1, mass_C1)
    return weights, largest_C1, mass_C1


@settings(max_examples=100, deadline=None)
@given(
    num_rows=st.integers(1, 9),
    tiles=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_weights_and_masses_are_those_of_the_definition(
    num_rows: int, tiles: list[int], scale: float, dtype: torch.dtype, seed: int
) -> None:
    logits_CX = torch.randn(num_rows, sum(tiles), generator=torch.Generator().manual_seed(seed)).mul(scale).to(dtype)
    weights, largest_C1, mass_C1 = weighed(logits_CX, tiles)

    exact_CX = logits_CX.double()
    assert torch.equal(largest_C1.double(), exact_CX.amax(dim=1, keepdim=True))
    expected_C1 = (exact_CX - largest_C1).exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(mass_C1.double(), expected_C1, rtol=3e-6, atol=0)
    so_far_C1 = torch.full((num_rows, 1), -math.inf, dtype=torch.float64)
    for tile_CW, weights_CW in zip(exact_CX.split(tiles, dim=1), weights, strict=True):
        so_far_C1 = torch.maximum(so_far_C1, tile_CW.amax(dim=1, keepdim=True))
        # A float32 difference of up to 88, the farthest that weighs anything, is off by up to 88 * 2^-24.
        rounding = 2**-8 if dtype == torch.bfloat16 else 6e-6
        torch.testing.assert_close(weights_CW.double(), (tile_CW - so_far_C1).exp(), rtol=1.01 * rounding, atol=1e-37)


def test_bits_depend_neither_on_other_rows_nor_on_threads() -> None:
    logits_CW = torch.randn(300, 77, generator=torch.Generator().manual_seed(0)) * 9
    (whole,), _, mass_C1 = weighed(logits_CW, [77])
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 4):
            torch.set_num_threads(num_threads)
            (alone,), _, alone_C1 = weighed(logits_CW[170:171], [77])
            (again,), _, again_C1 = weighed(logits_CW, [77])

            assert torch.equal(alone, whole[170:171])
            assert torch.equal(alone_C1, mass_C1[170:171])
            assert torch.equal(again, whole)
            assert torch.equal(again_C1, mass_C1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("column", [0, 20, 34])
def test_what_is_no_number_stays_none(column: int) -> None:
    """A diverging loss must be seen, in whichever lane it began."""
    logits_CW = torch.zeros(2, 35)
    logits_CW[1, column] = math.nan
    _, _, mass_C1 = weighed(logits_CW, [35])

    assert mass_C1[0].item() == 35
    assert math.isnan(mass_C1[1].item())


def test_masked_logits_weigh_nothing() -> None:
    logits_CW = torch.zeros(1, 20)
    logits_CW[0, ::2] = -math.inf
    (weights,), _, mass_C1 = weighed(logits_CW, [20])

    assert weights[0].tolist() == [0.0, 1.0] * 10
    assert mass_C1.item() == 10


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_loss_is_the_same_without_a_compiler(low_precision: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(200, 16, generator=generator).requires_grad_()
    table_XD = torch.randn(5_000, 16, generator=generator).requires_grad_()
    targets_N = torch.randint(5_000, (200,), generator=generator)

    def results() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
            loss = linear_cross_entropy(hidden_ND, table_XD, targets_N)
        return loss.detach(), *torch.autograd.grad(loss, [hidden_ND, table_XD])

    compiled = results()
    monkeypatch.setattr(softmax_tile, "is_available", lambda: False)
    plain = results()

    tolerance = 4e-3 if low_precision else 1e-6
    for ours, theirs in zip(compiled, plain, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-6, atol=0)

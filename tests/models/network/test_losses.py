"""Targets by hand, the chunked cross-entropy against arithmetic and against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models.network import losses
from models.network.losses import (
    MIN_CHUNK_ROWS,
    domain_specific_targets,
    linear_cross_entropy,
    next_item_targets,
    sampled_cross_entropy,
)
from models.network.negatives import Negatives
from models.vocabulary import TokenRange

FOOD = TokenRange(11, 20)


def test_each_item_predicts_the_next_one() -> None:
    assert next_item_targets(torch.tensor([[4, 11, 5, 0]])).tolist() == [[11, 5, 0]]


def test_each_domain_item_predicts_the_next_domain_item_however_far() -> None:
    sequences_BT = torch.tensor([[11, 4, 5, 12, 13, 6], [4, 12, 5, 6, 0, 0], [4, 5, 0, 0, 0, 0]])
    assert domain_specific_targets(sequences_BT, FOOD).tolist() == [[12, 0, 0, 13, 0], [0] * 5, [0] * 5]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=12), st.integers(0, 4))
def test_domain_specific_targets_equal_their_definition(tokens: list[int], padding: int) -> None:
    """Position t asks for the next domain item if it holds one itself and one follows."""
    expected = []
    for position, token in enumerate(tokens[:-1]):
        following = [t for t in tokens[position + 1 :] if t in FOOD]
        expected.append(following[0] if token in FOOD and following else 0)
    targets_BT = domain_specific_targets(torch.tensor([tokens + [0] * padding]), FOOD)
    assert targets_BT.tolist() == [expected + [0] * padding]


def test_cross_entropy_by_arithmetic() -> None:
    """One position, logits 1 and 2, target 0: -ln(e / (e + e^2))."""
    loss = linear_cross_entropy(torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-log(exp(1) / (exp(1) + exp(2))))


@pytest.mark.parametrize("tile_columns", [10, 36, 37, 100])
@pytest.mark.parametrize("num_rows", [1, MIN_CHUNK_ROWS, MIN_CHUNK_ROWS + 1, 5 * MIN_CHUNK_ROWS - 3])
def test_chunks_and_tiles_give_the_loss_and_gradients_of_the_whole(
    num_rows: int, tile_columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "TILE_COLUMNS", tile_columns)
    generator = torch.Generator().manual_seed(num_rows)
    hidden_ND = torch.randn(num_rows, 8, generator=generator, dtype=torch.float32).requires_grad_()
    table_XD = torch.randn(37, 8, generator=generator).requires_grad_()
    targets_N = torch.randint(37, (num_rows,), generator=generator)
    whole = F.cross_entropy(hidden_ND @ table_XD.T, targets_N)
    expected = torch.autograd.grad(3 * whole, [hidden_ND, table_XD])

    chunked = linear_cross_entropy(hidden_ND, table_XD, targets_N, chunk_elements=1)
    actual = torch.autograd.grad(3 * chunked, [hidden_ND, table_XD])

    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("candidates", [slice(1, 30), slice(20, 37), slice(5, 6)])
def test_candidates_are_a_slice_of_the_table_with_gradient_zero_outside(candidates: slice) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(50, 8, generator=generator).requires_grad_()
    table_VD = torch.randn(37, 8, generator=generator).requires_grad_()
    targets_N = torch.randint(candidates.start, candidates.stop, (50,), generator=generator)
    whole = F.cross_entropy(hidden_ND @ table_VD[candidates].T, targets_N - candidates.start)
    expected = torch.autograd.grad(whole, [hidden_ND, table_VD])

    ours = linear_cross_entropy(hidden_ND, table_VD, targets_N, candidates=candidates)
    actual = torch.autograd.grad(ours, [hidden_ND, table_VD])

    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert not actual[1][: candidates.start].any()


def test_logits_beyond_the_range_of_the_exponential_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits 0, 1, ... 9 times 100 in tiles of three, ever larger and ever smaller: e^900 is no float."""
    monkeypatch.setattr(losses, "TILE_COLUMNS", 3)
    for table_XD in (torch.arange(10.0)[:, None], torch.arange(10.0).flip(0)[:, None]):
        hidden_ND = torch.tensor([[100.0], [-100.0], [0.0]], requires_grad=True)
        loss = linear_cross_entropy(hidden_ND, table_XD, torch.tensor([4, 4, 4]))
        loss.backward()

        expected = (100 * abs(float(table_XD.max() - table_XD[4])) + 100 * float(table_XD[4]) + log(10)) / 3
        assert loss.item() == pytest.approx(expected)
        assert hidden_ND.grad is not None
        assert hidden_ND.grad.flatten().tolist() == pytest.approx(
            [float((9 - table_XD[4]) / 3), float(-table_XD[4] / 3), float((4.5 - table_XD[4]) / 3)], abs=1e-5
        )


def test_a_second_backward_is_an_error_not_another_number() -> None:
    """The gradients are scaled where they lie."""
    hidden_ND = torch.ones(2, 1, requires_grad=True)
    loss = linear_cross_entropy(hidden_ND, torch.ones(3, 1, requires_grad=True), torch.tensor([0, 1]))
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_positions_give_zero_loss_and_zero_gradient() -> None:
    hidden_ND, table_XD = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden_ND, table_XD, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert table_XD.grad is not None
    assert not table_XD.grad.any()


def test_low_precision_products_stay_near_float32() -> None:
    """Under autocast only the products are bfloat16 (8 bits): the loss agrees to about 1 %."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(100, 32, generator=generator).requires_grad_()
    table_XD = torch.randn(50, 32, generator=generator).mul(0.2).requires_grad_()
    targets_N = torch.randint(50, (100,), generator=generator)
    exact = linear_cross_entropy(hidden_ND, table_XD, targets_N)
    expected = torch.autograd.grad(exact, [hidden_ND, table_XD])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = linear_cross_entropy(hidden_ND, table_XD, targets_N)
    actual = torch.autograd.grad(low, [hidden_ND, table_XD])

    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.01)
    for ours, theirs in zip(actual, expected, strict=True):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_whole_logits_are_never_held() -> None:
    """With 4,000 positions and 5,000 items no tensor reaches a tenth of their product."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden_ND = torch.randn(4_000, 4, requires_grad=True)
    table_XD = torch.randn(5_000, 4, requires_grad=True)
    with Watch():
        linear_cross_entropy(
            hidden_ND, table_XD, torch.zeros(4_000, dtype=torch.long), chunk_elements=500_000
        ).backward()
    assert 0 < largest <= 500_000 < 4_000 * 5_000 / 10


@pytest.mark.parametrize("sampled", [False, True])
def test_gradients_of_a_repeated_target_are_the_same_whenever_they_are_computed(sampled: bool, two_threads) -> None:
    """Two threads, some 300 positions a target: what they add up to does not depend on which thread was first."""
    generator = torch.Generator().manual_seed(7)
    hidden_ND = torch.randn(1500, 64, generator=generator)
    table_VD = torch.randn(200, 64, generator=generator)
    targets_N = torch.randint(0, 5, (1500,), generator=generator)
    gradients = []
    for _ in range(20):
        table = table_VD.clone().requires_grad_()
        if sampled:
            negatives = Negatives(torch.arange(50, 80), torch.zeros(30))
            loss = sampled_cross_entropy(hidden_ND, table, targets_N, negatives)
        else:
            loss = linear_cross_entropy(hidden_ND, table, targets_N)
        loss.backward()
        gradients.append(table.grad.to_dense())

    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

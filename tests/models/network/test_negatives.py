"""The sampled softmax: the draws, the estimate by arithmetic, and that it estimates what it says."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.data.dataset import TOKENS
from models.network import losses
from models.network.losses import linear_cross_entropy, next_item_targets, sampled_cross_entropy
from models.network.negatives import Negatives, PopularitySampler
from models.training.objective import HeldOut, PredictionObjective
from models.vocabulary import TokenRange


def negatives_of(times: dict[int, float]) -> Negatives:
    """Tokens and how many items each of them stands for."""
    return Negatives(torch.tensor(sorted(times)), torch.tensor([times[token] for token in sorted(times)]).log())


def sampler(num_candidates: int, num_draws: int, first: int = 1) -> PopularitySampler:
    return PopularitySampler(np.arange(first, first + num_candidates), num_draws)


def test_the_estimate_by_arithmetic() -> None:
    """Logits 1, 2, 3; target 0; item 2 stands for two: Z = e + 2 e^3. A draw of the target itself counts nothing."""
    hidden_ND, table_VD = torch.tensor([[1.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    for times in ({2: 2.0}, {0: 7.0, 2: 2.0}):
        loss = sampled_cross_entropy(hidden_ND, table_VD, torch.tensor([0]), negatives_of(times))
        assert loss.item() == pytest.approx(log(exp(1) + 2 * exp(3)) - 1)


def random_case(num_rows: int, num_items: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    hidden_ND = torch.randn(num_rows, 8, generator=generator).requires_grad_()
    table_VD = torch.randn(num_items, 8, generator=generator).requires_grad_()
    return hidden_ND, table_VD, torch.randint(1, num_items, (num_rows,), generator=generator)


def gradients(loss: Tensor, hidden_ND: Tensor, table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Of both, the table's with its rows in their places."""
    d_hidden_ND, d_table_VD = torch.autograd.grad(loss, [hidden_ND, table_VD])
    return d_hidden_ND, d_table_VD.to_dense()


@pytest.mark.parametrize("tile_columns", [5, 2_048])
def test_with_every_item_once_it_is_the_whole_softmax(tile_columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item stands for itself alone: the same loss and the same gradients."""
    monkeypatch.setattr(losses, "TILE_COLUMNS", tile_columns)
    hidden_ND, table_VD, targets_N = random_case(num_rows=300, num_items=40)
    whole = linear_cross_entropy(hidden_ND, table_VD, targets_N, candidates=slice(1, 40))
    expected = torch.autograd.grad(whole, [hidden_ND, table_VD])

    every = negatives_of(dict.fromkeys(range(1, 40), 1.0))
    ours = sampled_cross_entropy(hidden_ND, table_VD, targets_N, every)
    actual = gradients(ours, hidden_ND, table_VD)

    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tile_columns", [3, 2_048])
def test_loss_and_gradients_are_those_of_the_formula(tile_columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "TILE_COLUMNS", tile_columns)
    hidden_ND, table_VD, targets_N = random_case(num_rows=300, num_items=40)
    negatives = sampler(39, 25).draw(np.random.default_rng(0))
    logits_NS = hidden_ND @ table_VD[negatives.token_ids_S].T + negatives.log_weights_S
    logits_NS = logits_NS.masked_fill(targets_N[:, None] == negatives.token_ids_S, -torch.inf)
    assert logits_NS.isinf().any()
    wanted_N1 = (hidden_ND * table_VD[targets_N]).sum(dim=1, keepdim=True)
    plain = F.cross_entropy(torch.cat([wanted_N1, logits_NS], dim=1), torch.zeros(300, dtype=torch.long))
    expected = torch.autograd.grad(2 * plain, [hidden_ND, table_VD])

    ours = sampled_cross_entropy(hidden_ND, table_VD, targets_N, negatives, chunk_elements=1)
    actual = gradients(2 * ours, hidden_ND, table_VD)

    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_no_positions_give_zero_loss_and_zero_gradient() -> None:
    hidden_ND, table_VD = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = sampled_cross_entropy(hidden_ND, table_VD, torch.zeros(0, dtype=torch.long), negatives_of({1: 2.0}))
    loss.backward()

    assert loss.item() == 0
    assert table_VD.grad is not None
    assert not table_VD.grad.to_dense().any()


def test_the_gradient_names_the_rows_of_negatives_and_targets_alone() -> None:
    hidden_ND, table_VD, _ = random_case(num_rows=2, num_items=40)
    loss = sampled_cross_entropy(hidden_ND, table_VD, torch.tensor([7, 31]), negatives_of({3: 1.0, 31: 2.0}))
    _, d_table_VD = torch.autograd.grad(loss, [hidden_ND, table_VD])

    assert set(d_table_VD.coalesce().indices()[0].tolist()) == {3, 7, 31}


@given(st.integers(1, 3_000))
def test_the_probabilities_of_all_ranks_add_up_to_one(num_candidates: int) -> None:
    probabilities = sampler(num_candidates, 1).probabilities(np.arange(num_candidates))

    assert probabilities.sum() == pytest.approx(1)
    assert (np.diff(probabilities) < 0).all()


def test_the_estimated_partition_function_is_unbiased() -> None:
    """20,000 steps of 4 draws among 30 items, seed fixed: the mean of each estimate within four standard errors."""
    generator = np.random.default_rng(1)
    drawing = sampler(30, 4, first=5)
    masses_X = np.exp(np.random.default_rng(2).normal(size=30) * 2)
    # Of two targets, the most and the least popular item: Z = own mass + negatives other than it.
    estimates = {0: [], 29: []}
    for _ in range(20_000):
        token_ids_S, log_weights_S = (tensor.numpy() for tensor in drawing.draw(generator))
        for target, found in estimates.items():
            others = token_ids_S != target + 5
            found.append(masses_X[target] + (np.exp(log_weights_S) * masses_X[token_ids_S - 5])[others].sum())
    for found in estimates.values():
        error = np.std(found) / len(found) ** 0.5

        assert np.mean(found) == pytest.approx(masses_X.sum(), abs=4 * error)
        assert error < 0.02 * masses_X.sum()


def test_popular_items_come_first_and_of_equals_the_lower_token() -> None:
    sequences = [np.asarray([7, 9, 9, 3], dtype=TOKENS), np.asarray([6, 9, 6, 2], dtype=TOKENS)]
    assert PopularitySampler.of(sequences, TokenRange(5, 9), 1).by_popularity_X.tolist() == [9, 6, 7, 5, 8]


def objective(sampled_softmax: int | None, seed: int = 1, name: str = "base") -> PredictionObjective:
    generator = np.random.default_rng(0)
    return PredictionObjective(
        name=name,
        fingerprint="",
        sequences=[generator.integers(1, 101, 6).astype(TOKENS) for _ in range(12)],
        targets_of=next_item_targets,
        candidates=TokenRange(1, 100),
        validation=HeldOut((), np.zeros(0, dtype=TOKENS)),
        max_length=8,
        batch_size=4,
        seed=seed,
        sampled_softmax=sampled_softmax,
    )


def drawn(from_objective: PredictionObjective, epoch: int) -> list[list[int]]:
    steps = [batch.negatives for batch in from_objective.batches(epoch)]
    return [negatives.token_ids_S.tolist() for negatives in steps if negatives is not None]


def test_negatives_depend_on_seed_stage_epoch_and_step_alone() -> None:
    expected = drawn(objective(40), 3)

    assert drawn(objective(40), 3) == expected
    assert len(expected) == 3
    assert len(set(map(tuple, expected))) == 3
    for other in (drawn(objective(40), 4), drawn(objective(40, seed=2), 3), drawn(objective(40, name="x"), 3)):
        assert not set(map(tuple, other)) & set(map(tuple, expected))


def test_rows_come_in_the_same_order_with_and_without_negatives() -> None:
    whole, sampled = ([batch.token_ids_BT.tolist() for batch in objective(number).batches(2)] for number in (None, 40))
    assert sampled == whole


def test_as_many_negatives_as_candidates_take_the_whole_softmax() -> None:
    assert max(map(len, drawn(objective(99), 1))) < 99
    for step in objective(100).batches(1):
        assert step.negatives is not None
        assert step.negatives.token_ids_S.tolist() == list(range(1, 101))
        assert not step.negatives.log_weights_S.any()

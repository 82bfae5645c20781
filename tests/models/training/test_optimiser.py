"""Adam, and Adam of the rows that a step reads."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from models.errors import TrainingError
from models.training.optimiser import Optimiser, row_tables

RATE = 0.1


class Network(nn.Module):
    """A table of five items and a line on top of it."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=sparse)
        self.line = nn.Linear(3, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.line(self.table(rows)).square().sum()


def network(*, sparse: bool) -> Network:
    torch.manual_seed(0)
    return Network(sparse=sparse)


def train(module: Network, steps: list[list[int]], optimiser: Optimiser | None = None) -> Optimiser:
    optimiser = optimiser or Optimiser(module, RATE)
    for rows in steps:
        optimiser.zero_grad()
        module(torch.tensor(rows)).backward()
        optimiser.step(RATE)
    return optimiser


def test_it_is_adam() -> None:
    module, plain = network(sparse=False), network(sparse=False)
    train(module, [[0, 1], [1, 1, 4], [2]])
    adam = torch.optim.Adam(plain.parameters(), lr=RATE)
    for rows in ([0, 1], [1, 1, 4], [2]):
        adam.zero_grad()
        plain(torch.tensor(rows)).backward()
        adam.step()

    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], expected)


def test_rows_that_every_step_reads_learn_as_by_adam() -> None:
    """One of them twice in a step."""
    module, plain = network(sparse=True), network(sparse=False)
    steps = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4]]
    train(module, steps)
    train(plain, steps)

    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], expected)


def test_a_row_that_a_step_does_not_read_stays_as_it_is() -> None:
    module = network(sparse=True)
    optimiser = train(module, [[0, 1], [1, 2]])
    before = module.table.weight.detach().clone()
    train(module, [[2, 2]], optimiser)
    changed = (module.table.weight.detach() != before).any(dim=1)

    assert changed.tolist() == [False, False, True, False, False]


def test_a_weight_without_a_gradient_decays_by_rate_times_share() -> None:
    """Rows that no step reads: w (1 - 0.1 * 0.5) a step. Without decay they stay."""
    for decay, factor in ((0.5, 0.95**3), (0.0, 1.0)):
        module = network(sparse=False)
        before = module.table.weight.detach().clone()
        train(module, [[0, 1]] * 3, Optimiser(module, RATE, weight_decay=decay))

        torch.testing.assert_close(module.table.weight.detach()[2:], before[2:] * factor)


def test_a_table_that_is_stepped_by_rows_cannot_decay() -> None:
    with pytest.raises(TrainingError, match="weight_decay"):
        Optimiser(network(sparse=True), RATE, weight_decay=0.1)


@pytest.mark.parametrize("sparse", [False, True])
def test_it_goes_on_from_its_state_to_the_same_bits(sparse: bool) -> None:
    steps = [[0, 1], [1, 2, 3], [0, 4], [1, 1]]
    expected = network(sparse=sparse)
    train(expected, steps)
    first = network(sparse=sparse)
    kept = save(train(first, steps[:2]).state_tensors() | {"other.0.thing": torch.ones(1)})
    actual = network(sparse=sparse)
    actual.load_state_dict(first.state_dict())
    optimiser = Optimiser(actual, RATE)
    optimiser.load_state_tensors(load(kept))
    train(actual, steps[2:], optimiser)

    for name, weight in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], weight)


def test_only_tables_with_gradients_of_rows_are_stepped_by_rows() -> None:
    assert [table.shape for table in row_tables(network(sparse=True))] == [(5, 3)]
    assert row_tables(network(sparse=False)) == []

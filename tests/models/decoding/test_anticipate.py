"""Rule ``anticipate``: a run of source items becomes what the target expert expects after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import Bundle
from models.decoding.anticipate import RUN_ITEMS, Expected, choose_hints, count_candidates, find_runs, rank_expected
from models.decoding.blocks import View
from models.decoding.regenerator import Regenerator
from models.vocabulary import TokenRange
from tests.conftest import DOMAINS, ITEMS_PER_DOMAIN

TARGET = TokenRange(1, 9)
SOURCE = 50
NUM_ITEMS = ITEMS_PER_DOMAIN * len(DOMAINS)
examples = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def chosen(history: list[int], ranking: list[list[int]], *, training_row: bool = False) -> dict[int, int]:
    """Position -> item; *ranking* lists the expert's items per run, best first, each half as probable as the last."""
    tokens = np.asarray(ranking)
    values = np.log(0.5) * np.arange(1, tokens.shape[1] + 1, dtype=np.float32)
    expected = Expected(tokens, np.tile(values, (len(tokens), 1)))
    array = np.asarray(history)
    found = choose_hints(array, find_runs(array, TARGET), expected, 0, training_row=training_row)
    return {hint.position: hint.token_id for hint in found}


def test_the_best_item_comes_last_and_earlier_source_items_are_deleted():
    """Five source items leave three hints: the best where the run ends."""
    assert chosen([1, SOURCE, SOURCE, SOURCE, SOURCE, SOURCE, 2], [[5, 6, 7, 8, 9]]) == {5: 5, 4: 6, 3: 7}


def test_a_short_run_leaves_as_many_items_as_it_had():
    """One source item, one hint; also at position 0, as the source item itself is read."""
    assert chosen([SOURCE, 2, SOURCE], [[5, 6, 7, 8, 9], [6, 7, 8, 9, 5]]) == {0: 5, 2: 6}


def test_what_the_row_holds_already_is_no_candidate():
    """Neither a target item before the run nor an earlier hint; a target item after it is."""
    assert chosen([5, SOURCE, 1, SOURCE, 7], [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]]) == {1: 6, 3: 7}


def test_training_rows_do_not_recite_the_item_that_followed():
    """The next real item is passed over for the run before it, but not for runs before that."""
    ranking = [[2, 3, 4, 5, 6, 7]] * 2
    history = [1, SOURCE, 3, SOURCE, 2]

    assert chosen(history, ranking) == {1: 2, 3: 4}
    assert chosen(history, ranking, training_row=True) == {1: 2, 3: 4}
    assert chosen([1, SOURCE, 2], ranking[:1], training_row=True) == {1: 3}


def test_training_rows_end_with_a_real_item():
    """Nothing follows the last run that could be learned from."""
    assert chosen([1, SOURCE, 2, SOURCE, SOURCE], [[5, 6, 7, 8]] * 2, training_row=True) == {1: 5}


def test_a_hint_carries_its_log_probability_and_its_lead():
    """Over the best item left over, not over the other hints."""
    values = np.asarray([[-1.0, -2.0, -4.0, -8.0, -16.0]], dtype=np.float32)
    expected = Expected(np.asarray([[5, 6, 7, 8, 9]]), values)
    history = np.asarray([SOURCE, SOURCE, 2])
    best, second = choose_hints(history, find_runs(history, TARGET), expected, 0, training_row=False)

    assert (best.token_id, best.log_probability, best.margin) == (5, -1.0, 3.0)
    assert (second.token_id, second.log_probability, second.margin) == (6, -2.0, 2.0)


@pytest.mark.parametrize("num_met", [0, 1, 5, 40])
@pytest.mark.parametrize("training_row", [False, True])
def test_as_many_candidates_as_are_asked_for_are_enough_for_every_hint(num_met: int, *, training_row: bool):
    """The row holds the expert's favourites, in training rows the next one follows: the worst case, margins too."""
    many = TokenRange(1, 200)
    ranking = np.arange(1, 201)
    history = np.asarray([*range(1, num_met + 1), *[300] * RUN_ITEMS, num_met + 1])
    found = {}
    for count in (count_candidates([history[:2], history, history[:1]]), len(ranking)):
        expected = Expected(ranking[None, :count], -np.arange(1, count + 1, dtype=np.float32)[None])
        found[count] = list(choose_hints(history, find_runs(history, many), expected, 0, training_row=training_row))
    enough, all_of_them = found.values()

    assert [hint.token_id for hint in all_of_them] == [num_met + 1 + training_row + n for n in range(RUN_ITEMS)]
    assert enough == all_of_them


def test_candidates_are_counted_for_hints_held_items_one_withheld_and_one_runner_up():
    histories = [np.zeros(length, dtype=np.int32) for length in (2, 9, 4)]

    assert count_candidates(histories) == RUN_ITEMS + 9 + 1 + 1
    assert count_candidates([]) == RUN_ITEMS + 1 + 1


def test_expected_items_are_the_softmax_of_the_target_domain_alone():
    """By arithmetic, the lowest token first among equals."""
    table = torch.tensor([[9.0], [1.0], [2.0], [1.0], [7.0]])
    found = rank_expected([View(torch.tensor([[1.0]]), table)], TokenRange(1, 3), 5)
    weights = np.exp([2.0, 1.0, 1.0])

    assert found.token_ids_RK.tolist() == [[2, 1, 3]]
    assert found.log_probabilities_RK[0] == pytest.approx(np.log(weights / weights.sum()), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 49])
def test_of_equals_at_the_last_place_the_lowest_tokens_are_taken(count: int):
    """So that it does not matter how many are asked for, which depends on the call's longest sequence."""
    table = torch.ones(101, 1)
    table[60] = 2.0
    found = rank_expected([View(torch.ones(3, 1), table)], TokenRange(1, 100), count)

    assert found.token_ids_RK.tolist() == [[60, *range(1, count)]] * 3


@pytest.mark.parametrize("count", [1, 8, 40, 199, 200])
def test_items_come_by_probability_and_then_by_token_whichever_of_them_are_equal(count: int):
    """Rows of many kinds in one call: some of the items equal, some equal to the last one wanted, or none."""
    generator = np.random.default_rng(0)
    levels_NX = np.stack([generator.integers(0, most, 200) for most in (9, 60, 60, 400, 400, 400, 9000)])
    table = torch.from_numpy(levels_NX.T.astype(np.float32) / 1024)
    states = torch.eye(len(levels_NX))
    found = rank_expected([View(states, torch.cat([torch.zeros(1, len(states)), table]))], TokenRange(1, 200), count)

    assert found.token_ids_RK.tolist() == [
        (np.lexsort((np.arange(200), -levels))[:count] + 1).tolist() for levels in levels_NX
    ]
    assert (np.diff(found.log_probabilities_RK, axis=1) <= 0).all()


def test_a_source_item_changes_what_stands_in_for_it(bundle: Bundle):
    """The contrastive rules never read the item that they replace; this one does."""
    target, source = (bundle.vocabulary.token_range(domain) for domain in DOMAINS[:2])
    found = {
        int(
            Regenerator(bundle, "anticipate")
            .regenerate([np.asarray([target.first, item])], DOMAINS[0])[0]
            .token_ids[-1]
        )
        for item in range(source.first, source.last + 1)
    }
    assert len(found) > 1


@examples
@given(
    sequence=st.lists(st.integers(1, NUM_ITEMS), max_size=16),
    target=st.sampled_from(DOMAINS),
    training_rows=st.booleans(),
)
def test_every_run_leaves_at_most_its_length_and_no_item_twice(
    bundle: Bundle, sequence: list[int], target: str, *, training_rows: bool
):
    target_range = bundle.vocabulary.token_range(target)
    history = np.asarray(sequence, dtype=np.int32)
    (result,) = Regenerator(bundle, "anticipate").regenerate([history], target, training_rows=training_rows)
    replaced = dict(zip(result.steps.positions.tolist(), result.steps.replacements.tolist(), strict=True))
    met: set[int] = set()
    for run in find_runs(history, target_range):
        met |= set(history[: run.first].tolist())
        items = [replaced[position] for position in range(run.first, run.last + 1)]
        written = [item for item in items if item]
        assert items == [0] * (len(items) - len(written)) + written  # the deleted come first
        if training_rows and not run.following:
            assert not written
            continue
        assert len(written) == min(RUN_ITEMS, len(items))  # the test's domains have more items than a row
        assert met.isdisjoint(written)
        assert not training_rows or run.following not in written
        met |= set(written)

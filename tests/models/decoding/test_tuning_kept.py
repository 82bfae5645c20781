"""What validation chose for a target is kept to by every rule: the expert's two readings, and the guard."""

from __future__ import annotations

import dataclasses
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import Bundle
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerated, Regenerator
from models.decoding.rules import RULES, Rule
from models.decoding.window import StateReader, read_target_expert
from models.network.two_readings import read_expert
from models.tuning import Guard, JointShare, OwnShares, TargetTuning
from models.vocabulary import TokenRange
from tests.conftest import DOMAINS, ITEMS_PER_DOMAIN

NUM_ITEMS = ITEMS_PER_DOMAIN * len(DOMAINS)
TARGET = "food"
FOOD = TokenRange(21, 40)
SHARES = OwnShares(after_target=0.25, after_source=0.75)
sequences_of_tokens = st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=40), max_size=8)
examples = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)


def with_tuning(bundle: Bundle, tuning: TargetTuning) -> Bundle:
    return dataclasses.replace(bundle, tunings=(tuning,) * len(DOMAINS))


@pytest.fixture(scope="module")
def two_readings(bundle: Bundle) -> Bundle:
    return with_tuning(bundle, TargetTuning(SHARES))


def arrays(sequences: list[list[int]]) -> list[TokenArray]:
    return [np.asarray(sequence, dtype=np.int32) for sequence in sequences]


def same(first: Regenerated, second: Regenerated) -> bool:
    """Bit for bit, scores included."""
    ours, theirs = dataclasses.asdict(first.steps), dataclasses.asdict(second.steps)
    return np.array_equal(first.token_ids, second.token_ids) and all(
        np.array_equal(ours[name], theirs[name], equal_nan=ours[name].dtype == np.float32) for name in ours
    )


@pytest.fixture(scope="module")
def two_decoders(bundle: Bundle) -> Bundle:
    """Another domain's expert is as good a joint one as any, here."""
    tuning = TargetTuning(SHARES, joint=JointShare(0.4, OwnShares(1.0, 0.25)))
    return dataclasses.replace(with_tuning(bundle, tuning), joint=bundle.expert("books"))


@pytest.mark.parametrize(
    ("which", "rule"), [*(("two_readings", rule) for rule in RULES), ("two_decoders", "anticipate")]
)
@examples
@given(sequences=sequences_of_tokens)
def test_with_two_readings_a_sequence_alone_equals_itself_in_any_batch(
    request: pytest.FixtureRequest, which: str, rule: Rule, sequences: list[list[int]]
) -> None:
    regenerator = Regenerator(request.getfixturevalue(which), rule)
    together = regenerator.regenerate(arrays(sequences), TARGET)
    for sequence, result in zip(arrays(sequences), together, strict=True):
        (alone,) = regenerator.regenerate([sequence], TARGET)
        assert same(result, alone)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_reads_the_target_expert_by_its_shares(bundle: Bundle, two_readings: Bundle, rule: Rule) -> None:
    generator = np.random.default_rng(8)
    sequences = [generator.integers(1, NUM_ITEMS + 1, size=30).astype(np.int32) for _ in range(10)]
    mixed, both = (Regenerator(which, rule).regenerate(sequences, TARGET) for which in (bundle, two_readings))

    assert not all(same(first, second) for first, second in zip(mixed, both, strict=True))


@examples
@given(sequences=st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=30), min_size=1, max_size=5))
def test_at_every_place_the_expert_reads_what_it_reads_of_that_history_alone(
    two_readings: Bundle, sequences: list[list[int]]
) -> None:
    """Packed and in the middle of a sequence as by ``read_expert`` at the end of the prefix, which evaluation takes."""
    histories = arrays(sequences)
    rows_N = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    places_N = np.concatenate([np.arange(len(history)) for history in histories])
    reader = StateReader(histories, rows_N, places_N)
    ((found_ND, _),) = read_target_expert(two_readings, TARGET, reader, np.arange(len(rows_N)))
    prefixes = [histories[row][: place + 1] for row, place in zip(rows_N, places_N, strict=True)]

    assert torch.allclose(found_ND, read_expert(two_readings.expert(TARGET), prefixes, FOOD, SHARES), atol=1e-4)


@examples
@given(sequences=st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=30), min_size=1, max_size=5))
def test_two_decoders_rank_by_the_sum_of_their_log_probabilities(
    two_decoders: Bundle, sequences: list[list[int]]
) -> None:
    """What ``likely_items`` says, item by item: .6 of the adapted one's and .4 of the joint one's, to a constant."""
    (adapted, joint), histories = two_decoders.expert_parts(TARGET), arrays(sequences)
    values_NX = sum(
        weight
        * (
            read_expert(part.decoder, histories, FOOD, part.own_shares)
            @ part.decoder.item_embeddings_VD[FOOD.columns].T
        )
        for part, weight in ((adapted, 0.6), (joint, 0.4))
    )
    found = Regenerator(two_decoders, "anticipate").regenerate(histories, TARGET, num_likely=len(FOOD))

    for result, values_X in zip(found, torch.log_softmax(torch.as_tensor(values_NX), dim=1), strict=True):
        said = {item.token_id: item.log_probability for item in result.likely}
        assert [said[token] for token in range(FOOD.first, FOOD.last + 1)] == pytest.approx(values_X.tolist(), abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_the_papers_rules_read_the_adapted_expert_alone(two_readings: Bundle, two_decoders: Bundle, rule: Rule) -> None:
    generator = np.random.default_rng(8)
    sequences = [generator.integers(1, NUM_ITEMS + 1, size=30).astype(np.int32) for _ in range(10)]
    one, both = (Regenerator(which, rule).regenerate(sequences, TARGET) for which in (two_readings, two_decoders))

    assert all(same(first, second) for first, second in zip(one, both, strict=True)) == (rule != "anticipate")


def guarded(bundle: Bundle, training_hints: int, serving_hints: int) -> Bundle:
    return with_tuning(bundle, TargetTuning(guard=Guard(training_hints, serving_hints, "tried")))


@examples
@given(sequences=sequences_of_tokens, training_rows=st.booleans())
def test_where_nothing_helps_the_target_items_pass_through(
    bundle: Bundle, sequences: list[list[int]], *, training_rows: bool
) -> None:
    """Nothing is added; consecutive repeats collapse, as everywhere."""
    guards = (0, 3) if training_rows else (3, 0)
    regenerator = Regenerator(guarded(bundle, *guards), "anticipate")
    results = regenerator.regenerate(arrays(sequences), TARGET, training_rows=training_rows)
    for sequence, result in zip(sequences, results, strict=True):
        read = sequence[-regenerator.max_items :]
        assert result.token_ids.tolist() == [token for token, _ in groupby(token for token in read if token in FOOD)]
        assert (result.num_read, result.replaced) == (len(read), 0)
        assert result.kept + result.deleted == len(read)
        assert result.steps.source_tokens.tolist() == [token for token in read if token not in FOOD]


# Of so few items that no row uses up the target's twenty
@examples
@given(sequences=st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=16), max_size=8), most=st.integers(1, 3))
def test_a_run_leaves_the_best_of_its_hints_and_no_more_than_the_guard_permits(
    bundle: Bundle, sequences: list[list[int]], most: int
) -> None:
    """The first run's are the most probable of those that it would leave without a guard."""
    everything, guarded_results = (
        Regenerator(which, "anticipate").regenerate(arrays(sequences), TARGET)
        for which in (bundle, guarded(bundle, 0, most))
    )
    for sequence, free, kept in zip(sequences, everything, guarded_results, strict=True):
        foreign = [token not in FOOD for token in sequence]
        runs = "".join("x" if one else " " for one in foreign).split()
        assert kept.replaced == sum(min(most, len(run)) for run in runs)
        if runs and foreign:
            last_of_first = "".join("x" if one else " " for one in foreign).index(runs[0]) + len(runs[0]) - 1
            step = free.steps.positions.tolist().index(last_of_first)
            assert kept.steps.replacements[step] == free.steps.replacements[step]


@pytest.mark.parametrize("rule", RULES)
def test_the_dial_at_all_takes_no_notice_of_the_guard_nor_does_a_contrastive_rule(bundle: Bundle, rule: Rule) -> None:
    generator = np.random.default_rng(8)
    sequences = [generator.integers(1, NUM_ITEMS + 1, size=30).astype(np.int32) for _ in range(10)]
    closed = guarded(bundle, 0, 0)
    expected = Regenerator(bundle, rule).regenerate(sequences, TARGET)
    dial = "all" if rule == "anticipate" else "auto"

    assert all(map(same, Regenerator(closed, rule, dial=dial).regenerate(sequences, TARGET), expected))
    assert any(result.replaced for result in expected)

"""Regeneration keeps its promises on any sequence: target only, in order, the same alone and in any batch."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import Bundle, load_bundle
from models.decoding.regenerator import Regenerated, Regenerator
from models.decoding.rules import RULES, Rule
from models.errors import UnknownDomainError
from models.network.decoder import Decoder
from models.vocabulary import Vocabulary
from tests.conftest import DOMAINS, ITEMS_PER_DOMAIN, random_decoder

NUM_ITEMS = ITEMS_PER_DOMAIN * len(DOMAINS)
sequences_of_tokens = st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=40), max_size=12)
# The bundle is shared by the session and never changed, so one for all examples is right.
examples = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)


@pytest.fixture(scope="session", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def placed(bundle: Bundle, request: pytest.FixtureRequest) -> Bundle:
    """``bundle`` on every kind of device that this machine has."""
    return load_bundle(bundle.directory, request.param)


def regenerate(bundle: Bundle, sequences: list[list[int]], target: str, rule: Rule = "paper") -> list[Regenerated]:
    return Regenerator(bundle, rule).regenerate([np.asarray(s, dtype=np.int32) for s in sequences], target)


def same(first: Regenerated, second: Regenerated) -> bool:
    """Bit for bit, weights and margins included."""
    fields = (field.name for field in dataclasses.fields(first.steps))
    return np.array_equal(first.token_ids, second.token_ids) and all(
        np.array_equal(getattr(first.steps, name), getattr(second.steps, name), equal_nan=name not in DISCRETE)
        for name in fields
    )


DISCRETE = {"positions", "source_tokens", "replacements"}


@pytest.mark.parametrize("rule", RULES)
@examples
@given(sequences=sequences_of_tokens, target=st.sampled_from(DOMAINS))
def test_a_sequence_alone_equals_itself_in_any_batch(
    placed: Bundle, rule: Rule, sequences: list[list[int]], target: str
) -> None:
    together = regenerate(placed, sequences, target, rule)
    reversed_order = regenerate(placed, sequences[::-1], target, rule)[::-1]
    for sequence, result, other in zip(sequences, together, reversed_order, strict=True):
        (alone,) = regenerate(placed, [sequence], target, rule)
        assert same(result, alone)
        assert same(result, other)


@pytest.mark.parametrize("rule", RULES)
@examples
@given(sequences=sequences_of_tokens, target=st.sampled_from(DOMAINS))
def test_the_result_holds_target_items_in_order_without_consecutive_repeats(
    bundle: Bundle, rule: Rule, sequences: list[list[int]], target: str
) -> None:
    target_range = bundle.vocabulary.token_range(target)
    for sequence, result in zip(sequences, regenerate(bundle, sequences, target, rule), strict=True):
        read = sequence[-Regenerator(bundle, rule).max_items :]
        tokens = result.token_ids.tolist()
        assert all(token in target_range for token in tokens)
        assert all(first != second for first, second in pairwise(tokens))
        assert result.kept == sum(token in target_range for token in read)
        assert result.kept + result.replaced + result.deleted == result.num_read == len(read)
        # Rebuilding the sequence from the steps gives the result: nothing else was moved or invented.
        rebuilt = list(read)
        for position, source, replacement in zip(
            result.steps.positions, result.steps.source_tokens, result.steps.replacements, strict=True
        ):
            assert rebuilt[position] == source
            assert source not in target_range
            rebuilt[position] = int(replacement)
        remaining = [token for token in rebuilt if token]
        assert tokens == [t for i, t in enumerate(remaining) if i == 0 or t != remaining[i - 1]]


@examples
@given(st.lists(st.integers(21, 40), max_size=33, unique=True))
def test_a_target_only_sequence_comes_back_unchanged(bundle: Bundle, sequence: list[int]) -> None:
    (result,) = regenerate(bundle, [sequence], "food")
    assert result.token_ids.tolist() == sequence
    assert (result.replaced, result.deleted) == (0, 0)


@examples
@given(st.lists(st.integers(1, NUM_ITEMS), min_size=2, max_size=30), st.integers(1, NUM_ITEMS), st.data())
def test_later_items_do_not_change_earlier_decisions(
    bundle: Bundle, sequence: list[int], other: int, data: st.DataObject
) -> None:
    """Teacher-forced and causal: what stands at or after t does not enter the decision at t."""
    position = data.draw(st.integers(1, len(sequence) - 1))
    changed = [*sequence[:position], other, *sequence[position + 1 :]]
    (first,), (second,) = regenerate(bundle, [sequence], "food"), regenerate(bundle, [changed], "food")
    before = first.steps.positions < position
    assert np.array_equal(
        first.steps.replacements[before], second.steps.replacements[second.steps.positions < position]
    )


def test_a_source_item_at_the_start_is_deleted_unscored(bundle: Bundle) -> None:
    (result,) = regenerate(bundle, [[1, 21]], "food")
    assert result.steps.replacements.tolist() == [0]
    assert np.isnan(result.steps.score).all()


def test_without_the_gate_nothing_but_a_source_item_at_the_start_is_deleted(bundle: Bundle) -> None:
    sequences = [[1 + (seed * 7 + 11 * i) % NUM_ITEMS for i in range(30)] for seed in range(10)]
    results = regenerate(bundle, sequences, "food", "without-gcs")

    assert [result.deleted for result in results] == [int(sequence[0] not in range(21, 41)) for sequence in sequences]
    assert any(result.deleted > 1 for result in regenerate(bundle, sequences, "food", "paper"))


def test_only_the_last_items_of_a_long_sequence_are_read(bundle: Bundle) -> None:
    """32 positions read 32 items and decide a 33rd."""
    sequence = [1 + (7 * i) % NUM_ITEMS for i in range(100)]
    (long,), (cut,) = regenerate(bundle, [sequence], "food"), regenerate(bundle, [sequence[-33:]], "food")
    assert long.num_read == 33
    assert same(long, cut)


def test_many_sequences_are_taken_in_windows(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [[1 + (seed * 7 + 11 * i) % NUM_ITEMS for i in range(seed % 30)] for seed in range(50)]
    whole = regenerate(bundle, sequences, "kitchen")
    monkeypatch.setattr("models.decoding.regenerator.WINDOW_POSITIONS", 40)
    monkeypatch.setattr("models.decoding.window.ENCODER_POSITIONS", 32)
    assert all(
        same(first, second) for first, second in zip(whole, regenerate(bundle, sequences, "kitchen"), strict=True)
    )


def test_no_sequences_and_empty_sequences_are_fine(bundle: Bundle) -> None:
    assert regenerate(bundle, [], "food") == []
    (result,) = regenerate(bundle, [[]], "food")
    assert result.token_ids.tolist() == []
    assert result.num_read == 0


def test_an_unknown_target_is_an_error_that_names_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(UnknownDomainError, match="unknown domain 'cars'; known domains: books, food, kitchen"):
        regenerate(bundle, [[1]], "cars")


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "reference"])
def test_renumbering_items_inside_a_domain_changes_nothing_but_ids(bundle: Bundle, rule: Rule) -> None:
    """
    The same networks with the rows of their item tables permuted inside each domain decide the same items.

    Rule ``reference`` is the counter-example: it writes the next number, so renumbering changes its items.
    """
    generator = np.random.default_rng(3)
    new_token = np.arange(NUM_ITEMS + 1)
    for domain_range in bundle.vocabulary.token_ranges:
        new_token[domain_range.columns] = generator.permutation(new_token[domain_range.columns])
    renumbered = renumbered_bundle(bundle, new_token)
    sequences = [generator.integers(1, NUM_ITEMS + 1, size=30).astype(np.int32) for _ in range(20)]

    def items(which: Bundle, rows: list[np.ndarray], rule: Rule) -> list[list[str]]:
        results = Regenerator(which, rule).regenerate(rows, "food")
        return [which.vocabulary.item_ids_of(result.token_ids) for result in results]

    moved = [new_token[row].astype(np.int32) for row in sequences]
    assert items(bundle, sequences, rule) == items(renumbered, moved, rule)
    assert items(bundle, sequences, "reference") != items(renumbered, moved, "reference")


def renumbered_bundle(bundle: Bundle, new_token: np.ndarray) -> Bundle:
    """Token t becomes new_token[t] in the vocabulary and in every item table."""
    old_of_new = np.argsort(new_token)
    names = ["", *(item for items in bundle.vocabulary.item_ids for item in items)]
    item_ids = tuple(
        tuple(names[old_of_new[token]] for token in range(r.first, r.last + 1)) for r in bundle.vocabulary.token_ranges
    )

    def renumbered(decoder: Decoder) -> Decoder:
        copy = random_decoder(NUM_ITEMS, seed=0)
        state = decoder.state_dict()
        copy.load_state_dict(
            {**state, "item_embedding.weight": state["item_embedding.weight"][torch.from_numpy(old_of_new)]}
        )
        return copy

    return dataclasses.replace(
        bundle,
        vocabulary=Vocabulary(bundle.vocabulary.domains, item_ids),
        base=renumbered(bundle.base),
        experts=tuple(renumbered(expert) for expert in bundle.experts),
    )

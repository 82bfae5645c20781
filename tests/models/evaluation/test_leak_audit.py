"""The leak audit finds what was leaked, and no more than chance where nothing was."""

import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from models.data.dataset import Sequences
from models.evaluation.arms import Composite, keep_domain, load_composite
from models.evaluation.leak_audit import audit_leaks, count_leaks


def test_hits_repeats_and_chance_of_a_hand_example():
    """Four regenerated rows; user 0 hit, user 1 owned the item already, user 2 missed, user 3 holds nothing out."""
    new_items = {0: {10, 11}, 1: {10}, 2: {12}, 3: {10, 13}}
    known_items = {0: {1}, 1: {11}, 2: set(), 3: set()}
    found = count_leaks("test", new_items, known_items, {0: 10, 1: 11, 2: 13, 9: 10}, {0: 9, 2: 9})

    assert (found.users, found.repeats, found.hits, found.hit_users) == (3, 1, 1, (0,))
    # User 0: item 10 is new in 2 of the 3 other rows. User 2: item 13 in 1 of 3.
    assert found.expected_by_chance == pytest.approx(2 / 3 + 1 / 3)


def test_recommendations_hit_where_the_item_ranks_within_as_many_places_as_the_row_has_new_items():
    """Users 0 and 3 have two new items and user 2 has one; user 1 owned the item already and does not count."""
    new_items = {0: {10, 11}, 1: {10}, 2: {12}, 3: {11, 12}}
    known_items = {0: {1}, 1: {11}, 2: set(), 3: set()}
    held_out = {0: 10, 1: 11, 2: 13, 3: 13}

    found = count_leaks("test", new_items, known_items, held_out, {0: 2, 1: 1, 2: 1, 3: 3})
    assert found.hits_of_recommendations == 2


def test_the_yardstick_is_a_chain_counted_and_read_in_the_training_rows(dataset, composite_folder):
    """Test hits of as many recommendations, against a slow reading of the definition."""
    composite = load_composite(composite_folder, dataset, "food")
    domain = dataset.vocabulary.token_range("food")
    originals = [row.tolist() for row in keep_domain(dataset.train, domain)]
    rows = [row for row in originals if len(row) > 1]
    popularity = Counter(item for row in rows for item in row)
    follows = Counter(pair for row in rows for pair in pairwise(row))
    total = sum(popularity.values())

    def score(row: list[int], item: int) -> float:
        link = follows[row[-1], item] if row else 0
        return link + popularity[item] / (1 + total)

    expected = 0
    for position in np.flatnonzero(composite.regenerated):
        user = int(composite.users[position])
        item = int(dataset.test[user]) - domain.first + 1
        row = originals[user]
        if int(dataset.test[user]) not in domain or item in row:
            continue
        added = set((composite.rows[int(position)] - domain.first + 1).tolist()) - set(row)
        rivals = [other for other in range(1, len(domain) + 1) if other not in row and other != item]
        expected += 1 + sum(score(row, other) >= score(row, item) for other in rivals) <= len(added)

    _, found = audit_leaks(dataset, "food", composite)
    assert found.hits_of_recommendations == expected


def test_the_yardstick_of_test_items_does_not_read_validation_items(dataset, composite_folder):
    composite = load_composite(composite_folder, dataset, "food")
    other = dataclasses.replace(dataset)
    other.__dict__["validation"] = np.roll(dataset.validation, 1)

    assert audit_leaks(other, "food", composite)[1] == audit_leaks(dataset, "food", composite)[1]


def test_chance_is_the_mean_over_random_dealings_of_the_rows():
    """The analytic expectation against 4,000 seeded permutations without fixed points for the user looked at."""
    generator = np.random.default_rng(0)
    new_items = {user: set(generator.integers(1, 15, size=4).tolist()) for user in range(12)}
    held_out = {user: int(generator.integers(1, 15)) for user in range(12)}
    expected = count_leaks(
        "test", new_items, {user: set() for user in new_items}, held_out, held_out
    ).expected_by_chance
    hits = 0
    for user, item in held_out.items():
        others = [other for other in new_items if other != user]
        drawn = generator.choice(others, size=4_000)
        hits += np.mean([item in new_items[int(other)] for other in drawn])

    assert expected == pytest.approx(hits, rel=0.05)


def test_a_composite_that_holds_everyones_test_item_is_exposed(dataset, composite_folder):
    """Poison: append each user's own test item to the regenerated row; every user not excused must be a hit."""
    honest = load_composite(composite_folder, dataset, "food")
    domain = dataset.vocabulary.token_range("food")
    poisoned = []
    for row, (user, regenerated) in enumerate(zip(honest.users, honest.regenerated, strict=True)):
        item = int(dataset.test[user])
        leaked = [item] if regenerated and item in domain else []
        poisoned.append([*honest.rows[row].tolist(), *leaked])
    leaky: Composite = dataclasses.replace(honest, rows=Sequences.from_lists(poisoned))
    _, before = audit_leaks(dataset, "food", honest)
    _, after = audit_leaks(dataset, "food", leaky)

    assert after.users == before.users > 0
    assert after.hits == after.users - after.repeats > before.hits
    assert after.expected_by_chance < after.hits


def test_the_audited_users_are_those_with_a_regenerated_row_and_a_held_out_target_item(dataset, composite_folder):
    """Counts against a slow reading of the definition."""
    composite = load_composite(composite_folder, dataset, "food")
    domain = dataset.vocabulary.token_range("food")
    regenerated = set(composite.users[composite.regenerated].tolist())
    original = keep_domain(dataset.train, domain)
    for found, held_out in zip(
        audit_leaks(dataset, "food", composite), (dataset.validation, dataset.test), strict=True
    ):
        users = [user for user in regenerated if int(held_out[user]) in domain]
        local = {user: int(held_out[user]) - domain.first + 1 for user in users}

        assert found.users == len(users)
        assert found.repeats == sum(local[user] in original[user] for user in users)

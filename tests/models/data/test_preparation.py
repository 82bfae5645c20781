"""Preparation: every rule by arithmetic on tiny tables."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import load_dataset
from models.data.preparation import PreparationConfig, prepare
from tests.prepared_tables import KEEP_ALL, SAMPLE, Row, items, prepared, sequences

# -- The rules, one at a time


def test_domains_are_merged_by_time_and_split_at_the_last_two_items(tmp_path):
    """s = a1 b1 a2 b2: two items to train on, b2 tests and a2 validates; tokens follow domain order."""
    rows = [("u", "b2", "b", 4), ("u", "a1", "a", 1), ("u", "a2", "a", 3), ("u", "b1", "b", 2)]
    _, dataset = prepared(tmp_path, rows, KEEP_ALL)
    token = dataset.vocabulary.token_id

    assert dataset.vocabulary.domains == ("a", "b")
    assert dataset.train[0].tolist() == [token("a", "a1"), token("b", "b1")]
    assert dataset.validation.tolist() == [token("a", "a2")]
    assert dataset.test.tolist() == [token("b", "b2")]


def test_times_may_be_numbers_or_dates_of_iso_8601(tmp_path):
    """Without a zone they are UTC, and a number is as many seconds since 1970."""
    rows = [
        ("u", "i3", "a", "1970-01-01T02:00:00+01:00"),
        ("u", "i1", "a", "1970-01-01"),
        ("u", "i4", "a", "1970-01-01 01:00:01.5"),
        ("u", "i2", "a", 3599),
    ]
    _, dataset = prepared(tmp_path, rows, KEEP_ALL)
    token = dataset.vocabulary.token_id

    assert dataset.train[0].tolist() == [token("a", "i1"), token("a", "i2")]
    assert (dataset.validation.tolist(), dataset.test.tolist()) == ([token("a", "i3")], [token("a", "i4")])


def test_short_sequences_fill_the_test_part_first(tmp_path):
    """n = 1 has a test item only, n = 2 a validation item too, n = 3 one item to train on."""
    rows = [(f"u{n}", f"i{t}", "a", t) for n in (1, 2, 3) for t in range(n)]
    _, dataset = prepared(tmp_path, rows, KEEP_ALL)

    assert dataset.train.lengths.tolist() == [0, 0, 1]
    assert [token > 0 for token in dataset.validation] == [False, True, True]
    assert [token > 0 for token in dataset.test] == [True, True, True]


def test_exact_duplicates_go_and_repeats_at_another_time_stay(tmp_path):
    rows = [("u", "x", "a", 1), ("u", "x", "a", 1), ("u", "x", "a", 1), ("u", "x", "a", 2), ("v", "x", "a", 1)]
    report, dataset = prepared(tmp_path, rows, KEEP_ALL)

    assert report.rows_duplicate == 2
    assert items(dataset) == {"u": ["x", "x"], "v": ["x"]}


def test_a_domain_that_lost_all_its_rows_is_counted_with_nothing(tmp_path):
    rows = [*(("u", f"a{n}", "a", n) for n in range(3)), ("u", "b1", "b", 9)]
    report, _ = prepared(tmp_path, rows, PreparationConfig(min_item_interactions=1, overlap="any"))
    [full, empty] = report.result.domains

    assert (full.users, full.items, full.interactions, full.mean_length) == (1, 3, 3, 3.0)
    assert (empty.domain, empty.users, empty.items, empty.interactions, empty.mean_length) == ("b", 0, 0, 0, 0.0)
    assert (report.result.items, report.result.mean_length) == (3, 3.0)


def test_duplicates_do_not_count_towards_a_threshold(tmp_path):
    """Item x has two rows, not three, and item y three."""
    rows = [("u", "x", "a", 1), ("u", "x", "a", 1), ("v", "x", "a", 1), *((u, "y", "a", 5) for u in "uvw")]
    config = PreparationConfig(min_user_interactions=1, min_item_interactions=3, overlap="any")
    _, dataset = prepared(tmp_path, rows, config)

    assert dataset.vocabulary.item_ids == (("y",),)


def test_the_item_threshold_keeps_items_with_exactly_that_many_rows(tmp_path):
    rows = [(f"u{n}", item, "a", n) for item, count in (("two", 2), ("three", 3)) for n in range(count)]
    config = PreparationConfig(min_user_interactions=1, min_item_interactions=3, overlap="any")
    report, dataset = prepared(tmp_path, rows, config)

    assert dataset.vocabulary.item_ids == (("three",),)
    assert report.removed.by_item_threshold == 2


def test_the_user_threshold_counts_each_domain_for_itself(tmp_path):
    """2 + 3 rows: per domain the two go, in total five are enough."""
    rows = [*(("u", f"a{n}", "a", n) for n in range(2)), *(("u", f"b{n}", "b", n) for n in range(3))]
    per_domain = PreparationConfig(min_item_interactions=1, overlap="any")
    total = PreparationConfig(min_item_interactions=1, overlap="any", user_threshold="total")

    report, dataset = prepared(tmp_path, rows, per_domain)
    assert report.removed.by_user_threshold == 2
    assert {domain for domain, _ in sequences(dataset)["u"]} == {"b"}
    assert prepared(tmp_path, rows, total)[0].result.interactions == 5


def test_overlap_all_keeps_users_of_every_domain_and_any_keeps_everyone(tmp_path):
    rows = [("both", "x", "a", 1), ("both", "y", "b", 2), ("one", "x", "a", 1)]
    every = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="all")

    report, dataset = prepared(tmp_path, rows, every)
    assert dataset.user_ids == ("both",)
    assert report.removed.by_overlap == 1
    assert prepared(tmp_path, rows, KEEP_ALL)[1].user_ids == ("both", "one")


def test_thresholds_repeat_until_nothing_changes(tmp_path):
    """
    A chain: u0 has one row, so goes; then its item x0 has one row left, so goes; then u1, and so on to the end.

    One pass over items and users would leave most of it.
    """
    chain = [(f"u{n}", f"x{n}", "a", 1) for n in range(6)] + [(f"u{n + 1}", f"x{n}", "a", 2) for n in range(6)]
    core = [(user, item, "a", 3) for user in ("v", "w") for item in ("y", "z")]
    config = PreparationConfig(min_user_interactions=2, min_item_interactions=2, overlap="any")
    report, dataset = prepared(tmp_path, chain + core, config)

    assert dataset.user_ids == ("v", "w")
    assert report.removed.total == len(chain)


def test_the_last_rows_are_kept_and_the_thresholds_applied_once_more(tmp_path):
    """
    u's 5 rows are cut to the last 3, which takes o1 and o2 below two rows, and then v below two.
    """
    rows = [("u", "o1", "a", 1), ("u", "o2", "a", 2), *(("u", f"n{t}", "a", t) for t in (3, 4, 5))]
    rows += [("v", "o1", "a", 1), ("v", "o2", "a", 2), *(("w", f"n{t}", "a", t) for t in (3, 4, 5))]
    config = PreparationConfig(min_user_interactions=2, min_item_interactions=2, overlap="any", max_length=3)
    report, dataset = prepared(tmp_path, rows, config)

    assert report.before_cut.interactions == 10
    assert report.rows_cut == 2
    assert report.removed_after_cut.total == 2
    assert items(dataset) == {"u": ["n3", "n4", "n5"], "w": ["n3", "n4", "n5"]}


def test_the_defaults_are_those_of_the_paper():
    config = PreparationConfig()

    assert (config.min_user_interactions, config.min_item_interactions, config.max_length) == (3, 3, 128)
    assert (config.user_threshold, config.overlap, config.ties) == ("per_domain", "all", "hash")


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_user_interactions": 0},
        {"min_item_interactions": 0},
        {"max_length": 2},
        {"max_bad_row_share": 1.5},
        {"overlap": "some"},
        {"ties": "random"},
        {"user_threshold": "both"},
        {"numbering": "alphabetical"},
        {"split": "by halves"},
        {"numbering": "first-appearance", "numbering_seed": 1},
        {"validation_from": "2024-01-01"},
        {"test_from": "2024-01-01"},
    ],
)
def test_a_value_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreparationConfig(**wrong)


def test_no_bad_row_or_nothing_but_bad_rows_may_be_allowed():
    assert [PreparationConfig(max_bad_row_share=share).max_bad_row_share for share in (0, 1)] == [0, 1]


def test_the_dates_of_a_split_by_time_are_of_no_other():
    PreparationConfig(split="time", validation_from="2024-01-01", test_from="2024-02-01")

    with pytest.raises(ValueError, match="are of a split by time"):
        PreparationConfig(validation_from="2024-01-01", test_from="2024-02-01")


# -- Ties in time, item numbers

TIED = [("u", f"{domain}{n}", domain, 7) for domain in "ab" for n in range(20)]


def test_tied_rows_do_not_depend_on_the_order_of_the_file(tmp_path):
    straight, backwards = (prepared(tmp_path, rows, KEEP_ALL)[1] for rows in (TIED, TIED[::-1]))

    assert straight.fingerprint == backwards.fingerprint
    for name in ("train.parquet", "validation.parquet", "test.parquet", "vocabulary.parquet"):
        assert (straight.directory / name).read_bytes() == (backwards.directory / name).read_bytes()


def test_tied_rows_do_not_come_domain_by_domain_or_by_item_name(tmp_path):
    """20 + 20 tied rows in random order change domain 20 times on average; domain by domain, once."""
    _, dataset = prepared(tmp_path, TIED, KEEP_ALL)
    domains = [domain for domain, _ in sequences(dataset)["u"]]

    assert 10 <= sum(a != b for a, b in pairwise(domains)) <= 30
    assert items(dataset)["u"] != sorted(items(dataset)["u"])


def test_two_users_break_the_same_tie_differently(tmp_path):
    """The hash is of user and item: an item that always came first would carry a label."""
    _, dataset = prepared(tmp_path, TIED + [("v", *row[1:]) for row in TIED], KEEP_ALL)

    assert items(dataset)["u"] != items(dataset)["v"]


def test_the_seed_changes_the_order_of_tied_rows(tmp_path):
    other = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any", seed=1)

    assert items(prepared(tmp_path, TIED, KEEP_ALL)[1]) != items(prepared(tmp_path, TIED, other)[1])


def test_the_tie_hash_is_the_same_on_every_version(tmp_path):
    """Golden: BLAKE2b of the strings and SplitMix64; neither polars nor numpy nor Python's hash decides."""
    _, dataset = prepared(tmp_path, [("u", item, "a", 7) for item in "pqrstu"], KEEP_ALL)

    assert items(dataset) == {"u": list("usptqr")}
    assert dataset.vocabulary.item_ids == (tuple("upqsrt"),)


def test_ties_input_keeps_the_order_of_the_file(tmp_path):
    config = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any", ties="input")
    rows = [*TIED[::3], *TIED[1::3], *TIED[2::3]]
    _, dataset = prepared(tmp_path, rows, config)

    assert items(dataset)["u"] == [item for _, item, _, _ in rows]


def test_items_are_numbered_neither_by_name_nor_by_appearance(tmp_path):
    rows = [("u", f"i{n:03}", "a", n) for n in range(100)]
    _, dataset = prepared(tmp_path, rows, KEEP_ALL)
    numbers = [dataset.vocabulary.token_id("a", f"i{n:03}") for n in range(100)]

    assert sorted(numbers) == list(range(1, 101))
    # 1 of 50 neighbours would follow one another by chance.
    assert sum(abs(a - b) == 1 for a, b in pairwise(numbers)) < 10


def test_the_numbering_seed_changes_nothing_but_the_numbers(tmp_path):
    renumbered = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any", numbering_seed=1)
    one, other = (prepared(tmp_path, TIED, config)[1] for config in (KEEP_ALL, renumbered))

    assert sequences(one) == sequences(other)
    assert one.vocabulary.item_ids != other.vocabulary.item_ids


FIRST_APPEARANCE = PreparationConfig(
    min_user_interactions=1, min_item_interactions=1, overlap="any", numbering="first-appearance"
)


def test_first_appearance_numbers_items_as_the_sequences_name_them_held_out_items_included(tmp_path):
    """
    u: a9 b5 a3 a1, v: a3 b8 b5 a7. Domain a appears as 9 3 1 (u's validation and test items), 7; domain b as 5 8.
    """
    rows = [("u", "a9", "a", 1), ("u", "b5", "b", 2), ("u", "a3", "a", 3), ("u", "a1", "a", 4)]
    rows += [("v", "a3", "a", 1), ("v", "b8", "b", 2), ("v", "b5", "b", 3), ("v", "a7", "a", 4)]
    _, dataset = prepared(tmp_path, rows[::-1], FIRST_APPEARANCE)

    assert dataset.vocabulary.item_ids == (("a9", "a3", "a1", "a7"), ("b5", "b8"))
    assert dataset.manifest["config"]["numbering"] == "first-appearance"
    # The leak: u's test item is the number after its validation item.
    assert dataset.test[0] == dataset.validation[0] + 1


def test_numbers_are_shuffled_unless_asked_otherwise(tmp_path):
    """Golden: the fingerprint of the sample, which holds every number, as it was before there was a choice."""
    report = prepare(SAMPLE, tmp_path / "sample", PreparationConfig())
    asked = prepare(SAMPLE, tmp_path / "asked", PreparationConfig(numbering="shuffled"))

    assert report.fingerprint[:12] == "8e6913e07654"
    assert asked.fingerprint == report.fingerprint
    assert load_dataset(tmp_path / "sample").manifest["config"]["numbering"] == "shuffled"


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(*map(st.sampled_from, (("u", "v"), "pqrstxyz"))), min_size=1, max_size=40))
def test_sequences_hold_the_same_items_under_both_numberings(rows):
    table: list[Row] = [(user, item, "a" if item < "t" else "b", time) for time, (user, item) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        (first, one), (shuffled, other) = (
            prepared(Path(folder), table, config) for config in (FIRST_APPEARANCE, KEEP_ALL)
        )

        assert sequences(one) == sequences(other)
        assert one.vocabulary.domains == other.vocabulary.domains
        same_numbers = one.vocabulary.item_ids == other.vocabulary.item_ids
        assert (first.fingerprint == shuffled.fingerprint) == same_numbers


# -- Nothing of the held-out part leaks


def held_out_poisoned(rows: list[Row]) -> list[Row]:
    """Each user's last two rows (times 90, 91) get the next user's items: all items still exist."""
    held = {(user, time): (item, domain) for user, item, domain, time in rows if time >= 90}
    users = sorted({user for user, *_ in rows})
    following = dict(zip(users, users[1:] + users[:1], strict=True))
    return [(u, *(held[following[u], t] if t >= 90 else (i, d)), t) for u, i, d, t in rows]


def test_other_held_out_items_leave_the_training_part_unchanged(tmp_path):
    rows = [(f"u{n}", f"{d}{(n + k) % 8}", d, 10 * k + (d == "b")) for n in range(8) for d in "ab" for k in range(5)]
    rows += [(f"u{n}", f"{d}{(3 * n) % 8}", d, 90 + (d == "b")) for n in range(8) for d in "ab"]
    poisoned = held_out_poisoned(rows)
    clean, dirty = (prepared(tmp_path, table, PreparationConfig())[1] for table in (rows, poisoned))

    assert len(clean.train) == 8
    assert clean.test.tolist() != dirty.test.tolist()
    for name in ("train.parquet", "vocabulary.parquet"):
        assert (clean.directory / name).read_bytes() == (dirty.directory / name).read_bytes()


def test_held_out_items_of_the_sample_leave_the_training_part_unchanged(tmp_path):
    """Real sequences, made exact in time; then the test items of all users are permuted inside their domain."""
    prepare(SAMPLE, tmp_path / "sample", PreparationConfig())
    rows: list[Row] = [
        (user, item, domain, place)
        for user, sequence in sequences(load_dataset(tmp_path / "sample")).items()
        for place, (domain, item) in enumerate(sequence)
    ]
    last = {user: place for user, _, _, place in rows}
    held = {d: [i for i, row in enumerate(rows) if row[3] == last[row[0]] and row[2] == d] for d in ("food", "kitchen")}
    poisoned = list(rows)
    for places in held.values():
        for here, there in zip(places, places[1:] + places[:1], strict=True):
            poisoned[here] = (rows[here][0], rows[there][1], *rows[here][2:])
    clean, dirty = (prepared(tmp_path, table, PreparationConfig())[1] for table in (rows, poisoned))

    assert (clean.test != dirty.test).sum() > 1_000
    for name in ("train.parquet", "validation.parquet", "vocabulary.parquet"):
        assert (clean.directory / name).read_bytes() == (dirty.directory / name).read_bytes()

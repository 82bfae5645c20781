"""Preparation: every rule by arithmetic on tiny tables, properties on random ones, counts on real ones."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, PreparationReport, prepare
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Columns, Layout
from models.errors import BadRowsError, EmptyDatasetError, InputFormatError, OutputExistsError

REPOSITORY = Path(__file__).parents[3]
SAMPLE = REPOSITORY / "examples" / "food-kitchen-sample.csv.gz"
SHARED_DATA = Path(os.environ.get("TAESAR_REAL_TABLES", REPOSITORY.parent / "shared" / "data"))

# The clock's time would give the test that it names another id in every process.
TORN = gzip.compress(b"user,item,domain,timestamp\n" + b"u,x,a,1\n" * 99, mtime=0)[:-9]

Row = tuple[str, str, str, float]  # user, item, domain, timestamp

KEEP_ALL = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any")


def write_csv(path: Path, rows: list[Row]) -> Path:
    path.write_text("user,item,domain,timestamp\n" + "".join(f"{u},{i},{d},{t}\n" for u, i, d, t in rows))
    return path


def prepared(folder: Path, rows: list[Row], config: PreparationConfig) -> tuple[PreparationReport, Dataset]:
    out = Path(tempfile.mkdtemp(dir=folder)) / "dataset"
    report = prepare(write_csv(folder / "input.csv", rows), out, config)
    return report, load_dataset(out)


def sequences(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    """Each user's whole mixed sequence as (domain, item), put together from the three files."""
    return {
        user: [dataset.vocabulary.external_id(int(token)) for token in (*train, validation, test) if token]
        for user, train, validation, test in zip(
            dataset.user_ids, dataset.train, dataset.validation, dataset.test, strict=True
        )
    }


def items(dataset: Dataset) -> dict[str, list[str]]:
    return {user: [item for _domain, item in sequence] for user, sequence in sequences(dataset).items()}


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
        {"numbering": "first-appearance", "numbering_seed": 1},
    ],
)
def test_a_value_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreparationConfig(**wrong)


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


# -- Properties

DOMAINS = {"a": 4, "b": 3}
row_strategy = st.sampled_from(sorted(DOMAINS)).flatmap(
    lambda domain: st.tuples(
        st.integers(0, 4).map("u{}".format),
        st.integers(0, DOMAINS[domain] - 1).map((domain + "{}").format),
        st.just(domain),
        st.integers(0, 6),
    )
)
rows_strategy = st.lists(row_strategy, min_size=1, max_size=80)
config_strategy = st.builds(
    PreparationConfig,
    min_user_interactions=st.integers(1, 3),
    min_item_interactions=st.integers(1, 3),
    user_threshold=st.sampled_from(["per_domain", "total"]),
    overlap=st.sampled_from(["all", "any"]),
    max_length=st.sampled_from([3, 6, 128]),
)


def surviving(rows: list[Row], config: PreparationConfig) -> list[Row]:
    """The definition, row by row: remove one offending row after another until none offends."""
    domains = {domain for _, _, domain, _ in rows}
    kept = sorted(set(rows))
    while True:
        per_item = Counter(item for _, item, _, _ in kept)
        per_cell = Counter((user, domain) for user, _, domain, _ in kept)
        per_user = Counter(user for user, *_ in kept)

        def offends(row: Row, per_item=per_item, per_cell=per_cell, per_user=per_user) -> bool:
            user, item, domain, _ = row
            count = per_user[user] if config.user_threshold == "total" else per_cell[user, domain]
            return (
                per_item[item] < config.min_item_interactions
                or count < config.min_user_interactions
                or (config.overlap == "all" and any(per_cell[user, other] == 0 for other in domains))
            )

        offending = next((row for row in kept if offends(row)), None)
        if offending is None:
            return kept
        kept.remove(offending)


@settings(max_examples=60, deadline=None)
@given(rows=rows_strategy, config=config_strategy)
def test_what_survives_before_the_cut_is_the_largest_set_that_meets_the_thresholds(rows, config):
    expected = surviving(rows, config)
    with tempfile.TemporaryDirectory() as folder:
        if not expected:
            with pytest.raises(EmptyDatasetError):
                prepared(Path(folder), rows, config)
            return
        try:
            report, dataset = prepared(Path(folder), rows, config)
        except EmptyDatasetError as error:
            if "after keeping" not in str(error):
                raise
            return
        mixed = sequences(dataset)
    accounted = report.rows_bad + report.rows_duplicate + report.removed.total + report.rows_cut
    accounted += report.removed_after_cut.total + report.result.interactions

    assert report.before_cut.interactions == len(expected)
    assert report.rows_read == len(rows) == accounted
    if report.rows_cut == 0:
        got = Counter((user, item) for user, sequence in mixed.items() for _, item in sequence)
        assert got == Counter((user, item) for user, item, _, _ in expected)


@settings(max_examples=60, deadline=None)
@given(rows=rows_strategy, config=config_strategy)
def test_sequences_meet_every_threshold_in_time_order_and_at_most_max_length(rows, config):
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, dataset = prepared(Path(folder), rows, config)
        except EmptyDatasetError:
            return
        mixed = sequences(dataset)
    per_item = Counter(step for sequence in mixed.values() for step in sequence)

    assert min(per_item.values()) >= config.min_item_interactions
    for user, sequence in mixed.items():
        per_domain = Counter(domain for domain, _ in sequence)
        assert len(sequence) <= config.max_length
        if config.user_threshold == "total":
            assert len(sequence) >= config.min_user_interactions
        else:
            assert min(per_domain.values()) >= config.min_user_interactions
        if config.overlap == "all":
            assert len(per_domain) == len({domain for _, _, domain, _ in rows})
        now = 0.0
        unused = {(i, t) for u, i, _, t in rows if u == user}
        for _, item in sequence:
            now = min(time for other, time in unused if other == item and time >= now)
            unused.remove((item, now))


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, config=config_strategy, random=st.randoms(use_true_random=False))
def test_preparing_is_blind_to_row_order_and_idempotent(rows, config, random):
    """Shuffled rows give the same content, and so does the result when it is prepared again."""
    shuffled = list(rows)
    random.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, dataset = prepared(Path(folder), rows, config)
        except EmptyDatasetError:
            return
        again: list[Row] = [
            (user, item, domain, place)
            for user, sequence in sequences(dataset).items()
            for place, (domain, item) in enumerate(sequence)
        ]
        assert prepared(Path(folder), shuffled, config)[1].fingerprint == dataset.fingerprint
        assert prepared(Path(folder), again, config)[1].fingerprint == dataset.fingerprint


# -- Input formats

TINY: list[Row] = [("u1", "x", "a", 1), ("u1", "y", "b", 2), ("u2", "x", "a", 3), ("u2", "z", "b", 1)]


def fingerprint_of(source: Path, **config) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dataset"
        kept = {"min_user_interactions": 1, "min_item_interactions": 1, "overlap": "any"}
        return prepare(source, out, PreparationConfig(**kept, **config)).fingerprint


def test_every_format_of_the_same_rows_gives_the_same_dataset(tmp_path):
    expected = fingerprint_of(write_csv(tmp_path / "plain.csv", TINY))
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.csv").read_bytes())
    (tmp_path / "quoted.csv").write_text(
        '"user","item","domain","timestamp"\r\n' + "".join(f'"{u}","{i}","{d}",{t}\r\n' for u, i, d, t in TINY)
    )
    lines = ["user_id:token\titem_id:token\tdomain:token\ttimestamp:float", *("\t".join(map(str, r)) for r in TINY)]
    (tmp_path / "recbole.inter").write_text("\n".join(lines) + "\n")
    (tmp_path / "packed.inter.gz").write_bytes(gzip.compress((tmp_path / "recbole.inter").read_bytes()))
    columns = {
        "extra": [0] * 4,
        **dict(zip(("user", "item", "domain", "timestamp"), zip(*TINY, strict=True), strict=True)),
    }
    table = pl.DataFrame({name: list(values) for name, values in columns.items()})
    table.write_parquet(tmp_path / "integers.parquet")
    table.with_columns(pl.from_epoch("timestamp"), pl.col("domain").cast(pl.Categorical)).write_parquet(
        tmp_path / "datetimes.parquet"
    )
    table.with_columns(pl.col("timestamp").cast(pl.String)).write_parquet(tmp_path / "texts.parquet")

    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 9
    for name in names:
        assert (name, fingerprint_of(tmp_path / name)) == (name, expected)


def test_a_line_break_in_a_quoted_field_of_another_column_is_no_harm(tmp_path):
    (tmp_path / "t.csv").write_text('text,user,item,domain,timestamp\n"two\nlines",u,x,a,1\n"one",u,y,a,2\n')
    rows = read_interactions(tmp_path / "t.csv", max_bad_row_share=0)

    assert (rows.num_rows, rows.ids.items.to_list()) == (2, ["x", "y"])


def test_columns_are_found_by_the_configured_names_in_any_order(tmp_path):
    (tmp_path / "plain.csv").write_text(
        "when,shop,who,rating,what\n" + "".join(f"{t},{d},{u},5,{i}\n" for u, i, d, t in TINY)
    )
    columns = Columns(user="who", item="what", domain="shop", timestamp="when")

    assert fingerprint_of(tmp_path / "plain.csv", layout=Layout(columns=columns)) == fingerprint_of(
        write_csv(tmp_path / "t.csv", TINY)
    )


def test_integer_identifiers_of_parquet_read_as_their_digits(tmp_path):
    pl.DataFrame({"user": [7], "item": [8], "domain": ["a"], "timestamp": [1.5]}).write_parquet(tmp_path / "t.parquet")
    rows = read_interactions(tmp_path / "t.parquet", max_bad_row_share=0)

    assert (rows.ids.users.to_list(), rows.ids.items.to_list(), rows.times_N.tolist()) == (["7"], ["8"], [1.5])


def test_identifiers_are_exact_strings(tmp_path):
    """No number, case, blank or accent is touched; tabs divide .inter and quotes there are text."""
    (tmp_path / "t.inter").write_text(
        'user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n007\t"x, é\tA b\t1e3\n'
    )
    rows = read_interactions(tmp_path / "t.inter", max_bad_row_share=0)

    assert (rows.ids.users.to_list(), rows.ids.items.to_list()) == (["007"], ['"x, é'])
    assert (rows.ids.domains.to_list(), rows.times_N.tolist()) == (["A b"], [1000.0])


# -- Bad input, each kind its own error


def bad_rows_of(tmp_path: Path, body: bytes, *, num_good: int = 4) -> list[tuple[int, str]]:
    """(line, reason) of bad_rows.csv for a header, *num_good* good rows and then *body*."""
    good = "".join(f"u{n},x,a,{n}\n" for n in range(num_good)).encode()
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + good + body)
    config = PreparationConfig(
        min_user_interactions=1, min_item_interactions=1, overlap="all", max_bad_row_share=1, max_length=3
    )
    report = prepare(tmp_path / "input.csv", tmp_path / "dataset", config)
    table = pl.read_csv(tmp_path / "dataset" / "bad_rows.csv", schema={"line": pl.Int64, "reason": pl.String})

    assert report.rows_bad == table.height == len(report.bad_rows)
    assert report.rows_read == num_good + table.height
    assert report.result.interactions == num_good
    return table.rows()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b",x,a,1\n", "missing user"),
        (b"u,,a,1\n", "missing item"),
        (b"u,x,,1\n", "missing domain"),
        (b"u,x,a,\n", "missing timestamp"),
        (b",,a,\n", "missing user, item, timestamp"),
        (b"\n", "empty line"),
        (b"u,x,a\n", "3 fields instead of 4"),
        (b"u,x,a,1,2\n", "5 fields instead of 4"),
        (b"u,x,a,yesterday\n", "timestamp is neither a number nor a date of ISO 8601: 'yesterday'"),
        (b"u,x,a,nan\n", "timestamp is not finite: 'nan'"),
        (b"u,x,a,-inf\n", "timestamp is not finite: '-inf'"),
        (b"\xff\xfe,x,a,1\n", "not UTF-8: user"),
        (b"u,caf\xe9,\xe9,1\n", "not UTF-8: item, domain"),
        (
            b"u,x,b,1\n",
            "item 'x' is claimed for domain 'b', but most of its rows name another; where "
            "domains number their items alike, put the domain before the item (--prefix-items)",
        ),
    ],
)
def test_a_bad_row_is_named_by_line_and_reason(tmp_path, line, reason):
    assert bad_rows_of(tmp_path, line) == [(6, reason)]


def test_a_small_file_may_end_in_a_blank_line(tmp_path):
    """One line of four is far above the share, but nothing is lost with it."""
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\nu,x,a,1\nu,y,a,2\nv,x,a,3\n\n")
    read = read_interactions(tmp_path / "input.csv", max_bad_row_share=0.0)

    assert [(row.line, row.reason) for row in read.bad_rows] == [(5, "empty line")]
    assert len(read.users_N) == 3


def test_blank_lines_do_not_dilute_the_share_of_bad_rows(tmp_path):
    """One bad row of four is 25 %, however many lines between them are empty."""
    body = b"u,x,a,1\nu,y,a,2\nv,x,a,3\nv,y,a,never\n" + 10 * b"\n"
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + body)

    with pytest.raises(BadRowsError, match="1 of 4 rows are bad"):
        read_interactions(tmp_path / "input.csv", max_bad_row_share=0.2)


def test_line_numbers_hold_when_bad_rows_of_all_kinds_mix(tmp_path):
    """Rows that the parser skips, rows that it returns and good rows each count one line."""
    body = b"u,x\nu,x,a,9,9\nu,x,a,never\n\nv,x,a\nv,,a,1\n"
    lines = [line for line, _ in bad_rows_of(tmp_path, body)]

    assert lines == [6, 7, 8, 9, 10, 11]


def test_bad_rows_with_windows_line_ends_are_named_like_any_other(tmp_path):
    assert bad_rows_of(tmp_path, b"u,x\r\n,x,a,1\r\n") == [(6, "2 fields instead of 4"), (7, "missing user")]


def test_line_numbers_hold_across_the_blocks_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.reading.text_blocks.BLOCK_BYTES", 1024)
    lines = [f"user{n % 50},item{n % 70},a,{n}" for n in range(2_000)]
    for n in range(100, 2_000, 100):
        lines[n] = "short,row" if n % 200 else f"user1,item1,a,x{n}"
    (tmp_path / "input.csv").write_text("user,item,domain,timestamp\n" + "\n".join(lines))
    rows = read_interactions(tmp_path / "input.csv", max_bad_row_share=0.01)

    assert [row.line for row in rows.bad_rows] == [n + 2 for n in range(100, 2_000, 100)]
    assert len(rows.times_N) == 2_000 - 19
    assert rows.ids.users.to_list() == sorted(f"user{n}" for n in range(50))


def test_bad_rows_of_parquet_are_named_by_row(tmp_path):
    table = pl.DataFrame(
        {
            "user": ["u", None, "u", "u", "u"],
            "item": ["x", "x", "", "x", "x"],
            "domain": ["a"] * 5,
            "timestamp": [1.0, 2.0, 3.0, float("nan"), None],
        }
    )
    table.write_parquet(tmp_path / "input.parquet")
    rows = read_interactions(tmp_path / "input.parquet", max_bad_row_share=1)

    assert [(row.line, row.reason) for row in rows.bad_rows] == [
        (2, "missing user"),
        (3, "missing item"),
        (4, "timestamp is not finite: 'nan'"),
        (5, "missing timestamp"),
    ]


def claimed(tmp_path: Path, rows: list[Row]) -> tuple[tuple[str, ...], list[int]]:
    """Domains that keep item x, and the bad lines."""
    interactions = read_interactions(write_csv(tmp_path / "input.csv", rows), max_bad_row_share=1)
    domains = tuple(interactions.ids.domains.gather(interactions.domains_N).unique().sort())
    return domains, [row.line for row in interactions.bad_rows]


def test_an_item_of_two_domains_belongs_to_the_one_that_most_distinct_rows_claim(tmp_path):
    """b is written three times but once in substance."""
    rows = [("u", "x", "b", 1)] * 3 + [("u", "x", "a", 1), ("v", "x", "a", 1)]

    assert claimed(tmp_path, rows) == (("a",), [2, 3, 4])


def test_an_item_claimed_equally_often_belongs_to_the_domain_first_by_name(tmp_path):
    rows = [("u", "x", "b", 1), ("v", "x", "a", 1)]

    assert claimed(tmp_path, rows) == (("a",), [2])
    assert claimed(tmp_path, rows[::-1]) == (("a",), [3])


def test_too_many_bad_rows_are_refused_with_the_first_lines(tmp_path):
    rows = [("u", "x", "a", t) for t in (1, 2, 3)]
    source = write_csv(tmp_path / "input.csv", [*rows, ("u", "x", "a", "soon"), ("", "x", "a", 4)])

    with pytest.raises(
        BadRowsError,
        match=r"2 of 5 rows.*0\.01.*line 5: timestamp is neither a number nor a date of ISO 8601: 'soon'; line 6: mis",
    ):
        prepare(source, tmp_path / "dataset", KEEP_ALL)
    assert not (tmp_path / "dataset").exists()


def test_a_share_of_bad_rows_at_the_limit_passes(tmp_path):
    source = write_csv(tmp_path / "input.csv", [("u", "x", "a", t) for t in (1, 2, 3, "soon")])

    assert len(read_interactions(source, max_bad_row_share=0.25).bad_rows) == 1
    with pytest.raises(BadRowsError, match="line 5"):
        read_interactions(source, max_bad_row_share=0.24)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("input.xlsx", b"user,item,domain,timestamp\nu,x,a,1\n", "unknown suffix"),
        ("input.csv", b"", "expected a header"),
        ("input.csv", b"user,item,time\nu,x,1\n", "no column for the domain; columns found: user, item, time"),
        ("input.csv", b"user,item,item,domain,timestamp\n", "more than one column named 'item'"),
        ("input.csv", "user,item,domain,timestamp\n".encode("utf-16"), "not UTF-8"),
        ("input.csv", b"PK\x03\x04", "a zip archive"),
        ("input.csv.gz", TORN, "damaged gzip data"),
        ("input.inter", b"user:token\tthing:token\n", "no column for the item; columns found: user, thing"),
        ("input.csv", b"user,item,domain,timestamp\ru,x,a,1\r", "a carriage return without a line feed"),
        ("input.parquet", b"PAR1 but no more", "not a readable Parquet file"),
    ],
)
def test_an_unreadable_input_names_the_file_and_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputFormatError, match=message) as raised:
        prepare(tmp_path / name, tmp_path / "dataset")
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("body", "bad"),
    [
        (b'u,"x,a,1\nu,y,a,2\nu,z,a,3', [(2, "not a valid row: a quote is opened and not closed")]),
        (b'u,"x,a,1\nu,y",a,2\nu,z,a,3\n', [(2, "item runs over a line break: is a quote left open?")]),
        (b'u,"x"y,a,1\nu,y,a,2\nu,z,a,3\n', [(2, "not a valid row: ',' expected after '\"'")]),
        (b'u,x,a,1,"\nu,y,a,2\nu,z,a,3\n', [(2, "not a valid row: a quote is opened and not closed")]),
    ],
)
def test_a_quote_left_open_costs_its_line_and_swallows_no_other(tmp_path, body, bad):
    (tmp_path / "input.csv").write_bytes(b"user,item,domain,timestamp\n" + body)
    rows = read_interactions(tmp_path / "input.csv", max_bad_row_share=1)

    assert [(row.line, row.reason) for row in rows.bad_rows] == bad
    assert rows.num_rows == 3
    assert len(rows.times_N) == 2


def test_a_parquet_file_without_a_column_names_those_it_has(tmp_path):
    pl.DataFrame({"user": ["u"], "item": ["x"]}).write_parquet(tmp_path / "input.parquet")

    with pytest.raises(InputFormatError, match="no column for the domain; columns found: user, item"):
        prepare(tmp_path / "input.parquet", tmp_path / "dataset")


def test_a_parquet_column_that_holds_no_identifiers_is_refused(tmp_path):
    pl.DataFrame({"user": [["u"]], "item": ["x"], "domain": ["a"], "timestamp": [1]}).write_parquet(
        tmp_path / "t.parquet"
    )

    with pytest.raises(InputFormatError, match=r"t\.parquet"):
        prepare(tmp_path / "t.parquet", tmp_path / "dataset")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputFormatError, match=r"absent\.csv: no such file"):
        prepare(tmp_path / "absent.csv", tmp_path / "dataset")


def test_a_file_without_rows_is_an_empty_dataset(tmp_path):
    for name in ("input.csv", "input.parquet"):
        table = pl.DataFrame(schema=dict.fromkeys(("user", "item", "domain", "timestamp"), pl.String))
        getattr(table, f"write_{name.split('.')[1]}")(tmp_path / name)

        with pytest.raises(EmptyDatasetError, match="no row to begin with"):
            prepare(tmp_path / name, tmp_path / "dataset")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"min_item_interactions": 3},
            "of 2 users, 3 items, 4 inter.*'at least 3 interactions per item' removed the last 4",
        ),
        ({"min_user_interactions": 2}, "'at least 2 interactions per user in a domain' removed the last"),
        (
            {"min_user_interactions": 5, "user_threshold": "total"},
            "'at least 5 interactions per user' removed the last",
        ),
        (
            {"min_item_interactions": 2, "overlap": "all"},
            r"'users present in every domain \(a, b\)' removed the last 2",
        ),
    ],
)
def test_an_emptied_dataset_names_the_threshold_that_emptied_it(tmp_path, config, message):
    permissive = {"min_user_interactions": 1, "min_item_interactions": 1, "overlap": "any"}

    with pytest.raises(EmptyDatasetError, match=message):
        prepare(
            write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset", PreparationConfig(**{**permissive, **config})
        )
    assert not (tmp_path / "dataset").exists()


# -- The folder


def test_the_manifest_tells_rules_counts_and_source(tmp_path):
    source = write_csv(tmp_path / "t.csv", [*TINY, TINY[0]])
    report = prepare(source, tmp_path / "dataset", KEEP_ALL)
    manifest = json.loads((tmp_path / "dataset" / "dataset.json").read_text())

    assert manifest["config"] == json.loads(json.dumps(asdict(KEEP_ALL)))
    assert manifest["source"]["name"] == "t.csv"
    assert manifest["fingerprint"] == report.fingerprint
    assert manifest["statistics"]["rows_duplicate"] == 1
    assert manifest["statistics"]["result"]["domains"] == [
        {"domain": "a", "users": 2, "items": 1, "interactions": 2, "mean_length": 1.0},
        {"domain": "b", "users": 2, "items": 2, "interactions": 2, "mean_length": 1.0},
    ]
    assert list(manifest["files"]) == [
        "bad_rows.csv", "test.parquet", "times.parquet", "train.parquet", "validation.parquet", "vocabulary.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "period"),
    [
        pytest.param((1_400_000_000, 1_500_000_000), ("2014-05-13", "2017-07-14"), id="seconds"),
        pytest.param((1_400_000_000_000, 1_500_000_000_000), ("2014-05-13", "2017-07-14"), id="milliseconds"),
        pytest.param((1_400_000_000_000_000, 1.5e15), ("2014-05-13", "2017-07-14"), id="microseconds"),
        pytest.param((1, 2), ("1970-01-01", "1970-01-01"), id="places instead of times"),
    ],
)
def test_a_dataset_says_what_time_it_covers_and_what_it_is_called(tmp_path, times, period):
    rows: list[Row] = [("u", "x", "a", times[0]), ("u", "y", "b", times[1])]
    prepare(write_csv(tmp_path / "t.csv", rows), tmp_path / "dataset", KEEP_ALL, name="spring")
    manifest = json.loads((tmp_path / "dataset" / "dataset.json").read_text())

    assert manifest["name"] == "spring"
    assert (manifest["period"]["first"], manifest["period"]["last"]) == times
    assert (manifest["period"]["first_date"], manifest["period"]["last_date"]) == period


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        prepare(SAMPLE, tmp_path / name)

    for path in sorted((tmp_path / "one").iterdir()):
        if path.name != "dataset.json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    one, two = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("one", "two"))
    assert (one.pop("name"), two.pop("name")) == ("one", "two")
    assert one | {"created": ""} == two | {"created": ""}


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path):
    source, out = write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset"
    prepare(source, out, KEEP_ALL)
    first = load_dataset(out).fingerprint
    write_csv(source, TINY[:-1])

    with pytest.raises(OutputExistsError, match="holds a dataset already"):
        prepare(source, out, KEEP_ALL)
    assert load_dataset(out).fingerprint == first
    report = prepare(source, out, KEEP_ALL, overwrite=True)
    assert load_dataset(out).fingerprint == report.fingerprint != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "t.csv"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")

    with pytest.raises(OutputExistsError, match="not a dataset"):
        prepare(write_csv(tmp_path / "t.csv", TINY), tmp_path / "thesis", KEEP_ALL, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_failed_write_leaves_the_former_dataset_and_no_rubbish(tmp_path, monkeypatch):
    source, out = write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset"
    first = prepare(source, out, KEEP_ALL).fingerprint

    def full_disk(_path):
        raise OSError("no space left on device")

    monkeypatch.setattr("models.data.preparation.sha256_of", full_disk)
    with pytest.raises(OSError, match="no space"):
        prepare(source, out, KEEP_ALL, overwrite=True)
    monkeypatch.undo()
    assert load_dataset(out).fingerprint == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "t.csv"]


def test_progress_names_the_stages_and_stays_between_0_and_1(tmp_path):
    seen: list[tuple[str, float]] = []
    prepare(SAMPLE, tmp_path / "dataset", progress=lambda stage, fraction: seen.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in seen))

    assert stages[0] == "reading"
    assert seen[-1] == ("writing", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in seen)
    assert ("reading", 1.0) in seen
    assert [step for step in seen if step[0] != "reading"] == [
        ("dropping duplicates", 0.0),
        ("applying thresholds", 0.0),
        ("merging by time", 0.0),
        ("numbering items", 0.0),
        ("writing", 0.0),
        ("writing", 1.0),
    ]


# -- Real tables


def test_the_bundled_sample_has_the_counts_that_its_readme_states(tmp_path):
    report = prepare(SAMPLE, tmp_path / "dataset")

    assert SAMPLE.stat().st_size <= 1_000_000
    assert (report.rows_read, report.rows_bad, report.rows_duplicate) == (52_450, 0, 0)
    assert (report.result.users, report.result.interactions) == (1_400, 43_855)
    assert [(d.domain, d.items) for d in report.result.domains] == [("food", 784), ("kitchen", 1_811)]


@pytest.mark.real_tables
@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real tables in {SHARED_DATA}; set TAESAR_REAL_TABLES")
@pytest.mark.parametrize(
    ("table", "config", "users", "items_per_domain", "interactions"),
    [
        ("amazon-food-kitchen", {}, 7_043, (6_752, 8_675), 153_896),
        ("amazon4", {}, 1_556, (1_007, 3_240, 1_040, 2_155), 92_438),
        ("amazon4", {"min_user_interactions": 1, "overlap": "any"}, 9_624, (3_853, 6_064, 6_807, 8_745), 249_374),
    ],
)
def test_real_tables_have_their_known_counts_before_the_cut(
    tmp_path, table, config, users, items_per_domain, interactions
):
    source = SHARED_DATA / table / "interactions.csv.gz"
    before_cut = prepare(source, tmp_path / "dataset", PreparationConfig(**config)).before_cut

    assert (before_cut.users, before_cut.interactions) == (users, interactions)
    assert tuple(domain.items for domain in before_cut.domains) == items_per_domain

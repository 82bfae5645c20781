"""Preparation: properties on random tables, counts on real ones."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.preparation import PreparationConfig, prepare
from models.errors import EmptyDatasetError
from tests.prepared_tables import REPOSITORY, SAMPLE, Row, prepared, sequences

SHARED_DATA = Path(os.environ.get("TAESAR_REAL_TABLES", REPOSITORY.parent / "shared" / "data"))


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

"""The synthetic world has the shape and the planted structure that it claims."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.synthetic import SyntheticConfig, correspondence, generate

SMALL = SyntheticConfig(num_users=300, num_items=4_000, num_interactions=12_000, num_interests=20)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return generate(SMALL)


def test_users_interactions_and_catalogue_are_as_asked(table: pl.DataFrame) -> None:
    assert table.height == 12_000
    assert table["user"].n_unique() == 300
    assert table["domain"].n_unique() == 4
    assert SMALL.domain_sizes.tolist() == [1600, 1200, 800, 400]
    numbers = table.with_columns(pl.col("item").str.split("-").list.last().cast(pl.Int64).alias("number"))
    largest = numbers.group_by("domain").agg(pl.col("number").max(), pl.col("number").min().alias("least"))
    for domain, most, least in largest.iter_rows():
        assert 0 <= least <= most < SMALL.domain_sizes[int(domain.removeprefix("synthetic-"))]


def test_every_user_meets_the_papers_threshold_in_every_domain(table: pl.DataFrame) -> None:
    counts = table.group_by("user", "domain").len()
    assert counts.height == 300 * 4
    assert counts["len"].min() >= 3


def test_every_identifier_says_synthetic(table: pl.DataFrame) -> None:
    for column in ("user", "item", "domain"):
        assert table[column].str.starts_with("synthetic-").all()


def test_the_same_seed_gives_the_same_world_and_another_another(table: pl.DataFrame) -> None:
    assert table.equals(generate(SMALL))
    other = SyntheticConfig(num_users=300, num_items=4_000, num_interactions=12_000, num_interests=20, seed=1)
    assert not table.equals(generate(other))


def test_times_rise_inside_each_user(table: pl.DataFrame) -> None:
    gaps = table.select(pl.col("timestamp").diff().over("user"))["timestamp"].drop_nulls()
    assert len(gaps) == 12_000 - 300
    assert (gaps > 0).all()


def test_the_planted_share_of_interactions_follows_the_correspondence(table: pl.DataFrame) -> None:
    numbers = table["item"].str.split("-").list.last().cast(pl.Int64).to_numpy()
    sizes = SMALL.domain_sizes[table["domain"].str.slice(10).cast(pl.Int64).to_numpy()]
    same_user = table["user"].to_numpy()[1:] == table["user"].to_numpy()[:-1]
    expected = correspondence(numbers[:-1], sizes[:-1], sizes[1:])
    share = (numbers[1:] == expected)[same_user].mean()
    # 40 % are planted; items that only happen to correspond add a little.
    assert 0.38 < share < 0.5


def test_popularity_has_a_long_tail(table: pl.DataFrame) -> None:
    counts = np.sort(table["item"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()


def test_scaling_multiplies_users_and_catalogue_alone() -> None:
    scaled = SyntheticConfig().scaled(users=10, items=5)
    assert (scaled.num_users, scaled.num_interactions, scaled.num_items) == (401_650, 17_000_000, 924_300)

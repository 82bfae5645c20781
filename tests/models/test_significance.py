"""The paired bootstrap: exact where it can be, calibrated where it is random."""

import numpy as np
import pytest

from models.significance import bootstrap_means


def test_identical_arms_have_an_interval_of_exactly_zero():
    """No difference for any user, none in any resample."""
    (interval,) = bootstrap_means(np.zeros((50, 1)), seed=0)

    assert (interval.mean, interval.low, interval.high) == (0, 0, 0)
    assert not interval.excludes_zero


def test_a_difference_shared_by_every_user_is_certain():
    """A constant difference has no spread."""
    (interval,) = bootstrap_means(np.full((50, 1), 0.25), seed=0)

    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))
    assert interval.excludes_zero


def test_the_interval_of_a_normal_mean_is_that_of_theory():
    """Half-width 1.96 sd / sqrt(N), within the noise of 5,000 resamples."""
    values = np.random.default_rng(1).normal(size=(400, 1))
    (interval,) = bootstrap_means(values, seed=0)
    half_width = 1.96 * values.std() / 20

    assert interval.low == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)


def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time():
    """200 samples of 100 users around 0.3: binomial sd 1.5 %, four of them allowed."""
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        (interval,) = bootstrap_means(generator.normal(0.3, 1, size=(100, 1)), seed=trial, resamples=600)
        covered += interval.low <= 0.3 <= interval.high

    assert 0.89 <= covered / 200 <= 1.0


def test_the_same_seed_gives_the_same_intervals_and_columns_share_their_users():
    """Repeatable; a column twice as large has an interval twice as wide, resample by resample."""
    column = np.random.default_rng(3).normal(size=200)
    values = np.stack([column, 2 * column], axis=1)
    first, second = bootstrap_means(values, seed=5)

    assert [first, second] == bootstrap_means(values, seed=5)
    assert second.low == pytest.approx(2 * first.low)
    assert second.high == pytest.approx(2 * first.high)

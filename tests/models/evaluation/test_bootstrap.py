"""The paired bootstrap: exact where it can be, calibrated where it is random."""

import numpy as np
import pytest

from models.evaluation.bootstrap import bootstrap_gains, bootstrap_mean_gain, bootstrap_means


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


def test_a_relative_gain_knows_its_baseline_no_better_than_the_gain():
    """Delta method: sd of d/b is that of (d - g b)/b, wider than d's alone where baseline and gain are independent."""
    generator = np.random.default_rng(4)
    baselines, differences = generator.gamma(2, 1, size=(400, 1)), generator.normal(1, 1, size=(400, 1))
    ((difference, relative),) = bootstrap_gains(differences, baselines, seed=0)
    gain = differences.mean() / baselines.mean()
    half_width = 1.96 * (differences - gain * baselines).std() / 20 / baselines.mean()

    assert difference == bootstrap_means(np.hstack([differences, baselines]), seed=0)[0]
    assert relative is not None
    assert relative.mean == pytest.approx(gain)
    assert relative.low == pytest.approx(gain - half_width, abs=0.15 * half_width)
    assert relative.high == pytest.approx(gain + half_width, abs=0.15 * half_width)
    assert relative.high - relative.low > 1.05 * (difference.high - difference.low) / baselines.mean()


def test_a_gain_that_is_a_fixed_share_of_the_baseline_is_certain():
    """Whoever is drawn, a quarter more stays a quarter more."""
    baselines = np.random.default_rng(5).gamma(2, 1, size=(200, 1))
    ((_, relative),) = bootstrap_gains(baselines / 4, baselines, seed=0)

    assert relative is not None
    assert (relative.mean, relative.low, relative.high) == pytest.approx((0.25, 0.25, 0.25))


def test_there_is_no_relative_gain_over_a_baseline_that_few_users_make():
    """Of 50 users one is hit, so that resamples without it have nothing to divide by."""
    baselines = np.zeros((50, 2))
    baselines[0, 1] = 1
    gains = bootstrap_gains(np.ones((50, 2)), baselines, seed=0)

    assert [relative for _, relative in gains] == [None, None]
    assert [difference.mean for difference, _ in gains] == [1, 1]


def test_the_mean_gain_is_that_of_the_tables_ratios():
    """Two tables of other people: 3 / 2 and 1 / 2 of the baseline, whose gains +50 % and -50 % cancel; no spread."""
    baselines = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
    # Enough people that every resample has some of both.
    values, baselines = np.tile(baselines * [1.5, 0.5], (10, 1)), np.tile(baselines, (10, 1))
    interval = bootstrap_mean_gain(values, baselines, seed=0)

    assert (interval.mean, interval.low, interval.high) == pytest.approx((0, 0, 0))


def test_tables_that_share_their_people_are_no_independent_evidence():
    """The mean of a table and its copy is as uncertain as the table; with other people it is sqrt(2) times surer."""
    generator = np.random.default_rng(3)
    baselines = np.ones((400, 1))
    first, second = (baselines + generator.normal(0.2, 1, size=(400, 1)) for _ in range(2))

    def width(values, baselines):
        interval = bootstrap_mean_gain(values, baselines, seed=0)
        return interval.high - interval.low

    alone, nobody = width(first, baselines), np.zeros((400, 1))
    copied = width(np.hstack([first, first]), np.hstack([baselines, baselines]))
    apart = width(np.block([[first, nobody], [nobody, second]]), np.block([[baselines, nobody], [nobody, baselines]]))

    assert copied == pytest.approx(alone)
    assert apart == pytest.approx(alone / np.sqrt(2), rel=0.15)

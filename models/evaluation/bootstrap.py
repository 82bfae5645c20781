"""
How sure a difference is: paired bootstrap over users.

Both arms rank the same users, so the user is the unit: per user, the metric's difference (averaged over seeds) is
resampled with replacement. The interval says how the difference would move had other users of the same kind been
drawn; how much it moves with the seed is reported beside it, as the differences of the single seeds. A gain in percent
of the baseline moves with the baseline too, so its interval is of the ratio, both resampled together.

Ours although ``scipy.stats.bootstrap`` has percentile intervals of paired samples: it copies the values of every drawn
user for every metric, where a product of drawn counts and values does all metrics at once, and its interval of a ratio
would be NaN where the baseline of one resample is 0.

Shapes: N = users, M = metrics, R = resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 5_000
CONFIDENCE = 0.95
# Resamples whose user counts are held at once: 256 x 10,000 users x 4 bytes = 10 MB.
RESAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True if the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def bootstrap_means(
    values_NM: npt.NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """
    Percentile bootstrap interval of each column's mean; every column is resampled with the same users.

    Args:
        values_NM: one row per user, N >= 1; for a comparison, the paired differences.
        seed: of the resampling.
        resamples: R.
        confidence: mass between low and high, in (0, 1).

    Returns:
        One interval per column.
    """
    return _intervals(values_NM.mean(axis=0), _resampled_means(values_NM, seed, resamples), confidence)


def bootstrap_gains(
    differences_NM: npt.NDArray[np.float64],
    baselines_NM: npt.NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[tuple[Interval, Interval | None]]:
    """
    Per column, the interval of the mean difference and that of the relative gain, mean difference / mean baseline.

    Args:
        differences_NM: one row per user, N >= 1.
        baselines_NM: the same users' baseline, >= 0.
        seed, resamples, confidence: as in ``bootstrap_means``.

    Returns:
        One pair per column. There is no relative gain (None) where the baseline's mean is 0, in the sample or in any
        resample: too few users hit for a ratio to mean anything.
    """
    M = differences_NM.shape[1]
    both_NM = np.hstack([differences_NM, baselines_NM])
    means_M, means_RM = both_NM.mean(axis=0), _resampled_means(both_NM, seed, resamples)
    there_M = (means_M[M:] > 0) & (means_RM[:, M:] > 0).all(axis=0)
    divisors_M, divisors_RM = np.where(there_M, means_M[M:], 1), np.where(there_M, means_RM[:, M:], 1)
    differences = _intervals(means_M[:M], means_RM[:, :M], confidence)
    relatives = _intervals(means_M[:M] / divisors_M, means_RM[:, :M] / divisors_RM, confidence)
    return [
        (difference, relative if there else None)
        for difference, relative, there in zip(differences, relatives, there_M, strict=True)
    ]


def bootstrap_mean_gain(
    values_PK: npt.NDArray[np.float64],
    baselines_PK: npt.NDArray[np.float64],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """
    Mean over K tables of the relative gain, sum of values / sum of baselines - 1, with people drawn for all at once.

    Whoever is drawn is drawn into every table that has them, so tables that share people are not taken for
    independent ones.

    Args:
        values_PK: one row per person, one column per table; 0 where the table does not have the person.
        baselines_PK: likewise; every column's sum is positive, in every resample too.
        seed, resamples, confidence: as in ``bootstrap_means``.
    """
    K = values_PK.shape[1]
    both_PM = np.hstack([values_PK, baselines_PK])
    means_M, means_RM = both_PM.mean(axis=0), _resampled_means(both_PM, seed, resamples)
    assert (means_RM[:, K:] > 0).all()
    gains_R = (means_RM[:, :K] / means_RM[:, K:]).mean(axis=1) - 1
    gain = float((means_M[:K] / means_M[K:]).mean()) - 1
    return _intervals(np.asarray([gain]), gains_R[:, None], confidence)[0]


def _resampled_means(values_NM: npt.NDArray[np.float64], seed: int, resamples: int) -> npt.NDArray[np.float64]:
    N, M = values_NM.shape
    assert N > 0
    generator = np.random.default_rng(seed)
    means_RM = np.empty((resamples, M))
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn = generator.integers(N, size=(rows, N))
        # Drawn user counts times values: one product for all metrics.
        shifted = (drawn + np.arange(rows)[:, None] * N).ravel()
        counts_RN = np.bincount(shifted, minlength=rows * N).reshape(rows, N)
        means_RM[start : start + rows] = counts_RN @ values_NM / N
    return means_RM


def _intervals(
    means_M: npt.NDArray[np.float64], means_RM: npt.NDArray[np.float64], confidence: float
) -> list[Interval]:
    tail = (1 - confidence) / 2
    lows_M, highs_M = np.quantile(means_RM, [tail, 1 - tail], axis=0)
    return [
        Interval(float(mean), float(low), float(high)) for mean, low, high in zip(means_M, lows_M, highs_M, strict=True)
    ]

"""
How sure a difference is: paired bootstrap over users.

Both arms rank the same users, so the user is the unit: per user, the metric's difference (averaged over seeds) is
resampled with replacement. The interval says how the difference would move had other users of the same kind been
drawn; how much it moves with the seed is reported beside it, as the differences of the single seeds.

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
    tail = (1 - confidence) / 2
    lows_M, highs_M = np.quantile(means_RM, [tail, 1 - tail], axis=0)
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(values_NM.mean(axis=0), lows_M, highs_M, strict=True)
    ]

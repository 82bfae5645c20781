"""In which order an epoch takes its rows, and from which seeds everything random in it is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

# Batches whose rows are sorted together by length: enough for nearly even lengths inside a batch, few enough that
# what shares a batch still changes from epoch to epoch.
BUCKET_BATCHES = 16


def epoch_generator(seed: int, name: str, epoch: int) -> np.random.Generator:
    """The NumPy generator of one epoch, a function of its arguments alone."""
    return np.random.default_rng(epoch_seed(seed, name, epoch))


def length_bucketed_batches(
    lengths_U: npt.NDArray[np.int64], batch_size: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """
    Row numbers of every batch of one epoch: shuffled, similar lengths together, batches in random order.

    Each row appears exactly once. Sorting happens inside windows of 16 batches of a fresh shuffle.
    """
    rows_U = generator.permutation(len(lengths_U))
    for start in range(0, len(rows_U), batch_size * BUCKET_BATCHES):
        window = rows_U[start : start + batch_size * BUCKET_BATCHES]
        window[:] = window[np.argsort(lengths_U[window], kind="stable")]
    num_batches = -(-len(rows_U) // batch_size)
    return (rows_U[number * batch_size : (number + 1) * batch_size] for number in generator.permutation(num_batches))


def epoch_seed(seed: int, name: str, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}:{epoch}".encode()).digest()[:8], "big") >> 1

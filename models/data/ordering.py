"""
The order of rows within a sequence, and of numbers within a domain: by time, and by seeded hashes of ids.

Shapes: N = rows, U = users, I = items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.thresholds import Rows

Hashes = npt.NDArray[np.uint64]


def text_hashes(texts: Iterable[str]) -> Hashes:
    """A 64-bit hash of each text, uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def mixed(hashes: Hashes, seed: int) -> Hashes:
    """Scramble 64-bit numbers by a seed: one step of the SplitMix64 generator. Same on every platform and version."""
    state = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def ordered(rows: Rows, tie_N: Hashes) -> Rows:
    """Every user's rows by time; where times are equal, by *tie_N*."""
    # The item's code settles the one case in 2**64 where two hashes are equal.
    keys = pl.DataFrame({"user": rows.users_N, "time": rows.times_N, "tie": tie_N, "item": rows.items_N})
    order = keys.select(pl.arg_sort_by("user", "time", "tie", "item")).to_series().to_numpy()
    return rows.take(order)


def ties_by_hash(rows: Rows, user_hash_U: Hashes, item_hash_I: Hashes, seed: int) -> Hashes:
    """A key per row that is a function of its user's and its item's id and the seed."""
    return mixed(user_hash_U[rows.users_N] ^ mixed(item_hash_I[rows.items_N], seed), seed)


def ties_by_input(rows: Rows) -> Hashes:
    """The place of each row in the input."""
    return rows.positions_N.astype(np.uint64)


def last_rows(rows: Rows, max_length: int) -> Rows:
    """Each user's last *max_length* rows; *rows* are sorted by user."""
    ends_U = np.cumsum(np.bincount(rows.users_N))
    from_end_N = ends_U[rows.users_N] - np.arange(len(rows))
    keep = from_end_N <= max_length
    return rows if keep.all() else rows.take(keep)

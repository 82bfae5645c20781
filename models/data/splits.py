"""
What of each sequence is held out: its last two items, or what comes after a date.

Leave-one-out (the paper's): s[:n-2] to train on, s[n-2] to validate, s[n-1] to test.

By time: everything before one date to train on; the first item from that date on to validate, the first from a second
date on to test. What a recommender would know when it is asked for the test item, everything before the second date, is
kept as well (``Dataset.before_test``), and so is what comes after it. This is how a shop meets tomorrow: no model has
seen anything of the time that it is tested in, and items may be new. Users have no validation or test item where they
did nothing in that time.

Shapes: N = rows, U = users.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import TOKENS, Sequences, SequenceTimes, Times, TokenArray
from models.data.period import moment_of, nanoseconds_per_unit
from models.data.thresholds import Rows
from models.errors import ConfigurationError, EmptyDatasetError
from models.vocabulary import Vocabulary, counted_text

SplitName = Literal["leave-one-out", "time"]
# Where no dates are given, the last tenth of the interactions tests, and the tenth before it validates.
VALIDATION_QUANTILE, TEST_QUANTILE = 0.8, 0.9


@dataclass(frozen=True)
class TimeBounds:
    """The two dates of a split by time, as numbers of the log: validation begins at one, test at the other."""

    validation_from: float
    test_from: float

    def described(self) -> dict[str, Any]:
        """For the manifest, as numbers and as dates."""
        per_unit = nanoseconds_per_unit(max(abs(self.validation_from), abs(self.test_from)))
        return {
            "name": "time",
            "validation_from": self.validation_from,
            "test_from": self.test_from,
            "validation_from_date": moment_of(self.validation_from * per_unit / 1e9),
            "test_from_date": moment_of(self.test_from * per_unit / 1e9),
        }


@dataclass(frozen=True)
class Split:
    """
    The mixed sequences, divided; users in their order, 0 where a user has no such item.

    Args:
        user_ids: one per sequence.
        train: to train on.
        validation_U, test_U: held-out tokens.
        later: what follows ``train``, of a split by time; None for leave-one-out.
        before_test_U: how many items of ``later`` come before the second date.
        times_N: of whole sequences, flat.
        offsets: of the users in ``times_N``, int64 [U + 1].
    """

    user_ids: pl.Series
    train: Sequences
    validation_U: TokenArray
    test_U: TokenArray
    later: Sequences | None
    before_test_U: npt.NDArray[np.int64]
    times_N: Times
    offsets: npt.NDArray[np.int64]

    @property
    def train_places(self) -> npt.NDArray[np.int64]:
        """Where the items to train on stand among the rows of whole sequences."""
        return SequenceTimes(self.times_N, self.offsets).places_of_first(self.train.lengths)

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """SHA-256 over vocabulary, users and tokens: equal for equal content, whatever wrote the files."""
        digest = hashlib.sha256(vocabulary.fingerprint.encode())
        for user_id in self.user_ids:
            digest.update(counted_text(user_id))
        for array in self.arrays():
            digest.update(little_endian(array))
        return digest.hexdigest()

    def arrays(self) -> list[npt.NDArray[Any]]:
        """What the fingerprint is taken over beside vocabulary and users, in its order."""
        arrays: list[npt.NDArray[Any]] = [self.train.offsets, self.train.token_ids, self.validation_U, self.test_U]
        if self.later is not None:
            arrays += [self.later.offsets, self.later.token_ids, self.before_test_U]
        return arrays


def little_endian(array: npt.NDArray[Any]) -> bytes:
    """The bytes of *array*, the same on every machine."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


class KnownTimes(Protocol):
    """What a split by time asks of the times of all rows."""

    def quantile(self, share: float) -> float:
        """The time below which *share* of the rows lie, between two rows by linear interpolation."""
        ...

    def num_before(self, time: float) -> int:
        """How many rows lie before *time*."""
        ...

    def __len__(self) -> int: ...

    def largest(self) -> float:
        """The largest distance from 0."""
        ...


@dataclass(frozen=True)
class TimesInMemory:
    """Times of all rows, one array."""

    times_N: Times

    def quantile(self, share: float) -> float:
        """See ``KnownTimes``."""
        return float(np.quantile(self.times_N, share))

    def num_before(self, time: float) -> int:
        """See ``KnownTimes``."""
        return int(np.count_nonzero(self.times_N < time))

    def __len__(self) -> int:
        return len(self.times_N)

    def largest(self) -> float:
        """See ``KnownTimes``."""
        return float(np.abs(self.times_N).max(initial=0))


def parse_bound(text: str, times: KnownTimes) -> float:
    """
    A date of ISO 8601 (UTC without a zone), or a number of the log, in the unit of *times*.

    Raises:
        ConfigurationError: it is neither.
    """
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is neither a date of ISO 8601 nor a number: {error}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.timestamp() * 1e9 / nanoseconds_per_unit(times.largest())


def time_bounds(times: KnownTimes, *, validation_from: str | None, test_from: str | None) -> TimeBounds:
    """
    The dates of a split by time: those given, else by the quantiles at the top of this file.

    Raises:
        ConfigurationError: a date cannot be read, or validation does not begin before test.
        EmptyDatasetError: nothing lies before the first date, or nothing from the second on.
    """
    test = times.quantile(TEST_QUANTILE) if test_from is None else parse_bound(test_from, times)
    if validation_from is None:
        # As long a stretch before the test as there is for it
        before = times.num_before(test) / len(times)
        share = max(before / 2, before - (1 - before))
        validation = times.quantile(min(share, VALIDATION_QUANTILE))
    else:
        validation = parse_bound(validation_from, times)
    if not validation < test:
        raise ConfigurationError(f"validation begins at {validation:g}, which is not before the test's {test:g}")
    is_empty = times.num_before(validation) == 0, times.num_before(test) == len(times)
    for empty, what in zip(is_empty, ("before validation", "in the time of the test"), strict=True):
        if empty:
            raise EmptyDatasetError(f"no interaction lies {what} ({validation:g}, {test:g})")
    return TimeBounds(validation, test)


def divide(rows: Rows, user_ids: pl.Series, token_of_item: TokenArray, bounds: TimeBounds | None) -> Split:
    """
    Divide every sequence; *rows* are sorted by user, then in sequence order.

    Args:
        token_of_item: token of each item code.
        bounds: of a split by time; None for leave-one-out.
    """
    tokens_N = token_of_item[rows.items_N]
    lengths_U = np.bincount(rows.users_N)
    users = np.flatnonzero(lengths_U)
    lengths_U = lengths_U[users]
    ends_U = np.cumsum(lengths_U)
    starts_U = ends_U - lengths_U
    if bounds is None:
        train_lengths_U, before_test_U = np.maximum(lengths_U - 2, 0), np.zeros(len(users), dtype=np.int64)
        validation_U = np.where(lengths_U >= 2, tokens_N[np.maximum(ends_U - 2, 0)], 0)
        test_U = tokens_N[ends_U - 1]
    else:
        train_lengths_U, until_test_U = (
            np.add.reduceat(rows.times_N < bound, starts_U, dtype=np.int64)
            for bound in (bounds.validation_from, bounds.test_from)
        )
        before_test_U = until_test_U - train_lengths_U
        last_N = len(tokens_N) - 1
        validation_U = np.where(before_test_U > 0, tokens_N[np.minimum(starts_U + train_lengths_U, last_N)], 0)
        test_U = np.where(until_test_U < lengths_U, tokens_N[np.minimum(starts_U + until_test_U, last_N)], 0)
    in_train_N = np.arange(len(rows)) < np.repeat(starts_U + train_lengths_U, lengths_U)
    later = None if bounds is None else Sequences(tokens_N[~in_train_N], _offsets(lengths_U - train_lengths_U))
    return Split(
        user_ids.gather(users),
        Sequences(tokens_N[in_train_N], _offsets(train_lengths_U)),
        validation_U.astype(TOKENS),
        test_U.astype(TOKENS),
        later,
        before_test_U,
        rows.times_N,
        _offsets(lengths_U),
    )


def _offsets(lengths_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)

"""
The interactions of a dataset as a bundle meets them: in its tokens, and further ones for items that it does not know.

A dataset that the bundle was trained on has nothing unknown. One prepared from a newer log may: its unknown items of
the target domain get tokens beyond the bundle's, because they stay in place; others are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import TOKENS, Dataset, Sequences, Times, TokenArray
from models.errors import VocabularyError
from models.histories import ReadHistory
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class MixedLog:
    """
    Mixed sequences to regenerate.

    Args:
        user_ids: one per sequence.
        sequences: in the tokens of ``vocabulary`` and, from its ``num_tokens`` on, those of ``newer_items``.
        times_N: of every item, flat; None where the dataset has none.
        skipped_U: items left out of each sequence: of other domains, and unknown.
        vocabulary: the bundle's.
        target: name of the target domain.
        newer_items: ids of the target's items that the bundle does not know.
        carried: further columns of the log, a row for every item; None where the dataset has none.
    """

    user_ids: tuple[str, ...]
    sequences: Sequences
    times_N: Times | None
    skipped_U: npt.NDArray[np.int64]
    vocabulary: Vocabulary
    target: str
    newer_items: tuple[str, ...]
    carried: pl.DataFrame | None = None

    def history(self, user: int, max_items: int) -> ReadHistory:
        """What the bundle reads of one sequence; items of the target stay, however old, for they need no rewriting."""
        sequence = self.sequences[user]
        known = np.flatnonzero(sequence < self.vocabulary.num_tokens)
        unknown = np.flatnonzero(sequence >= self.vocabulary.num_tokens)
        first_read = int(known[-max_items]) if len(known) > max_items else 0
        read = known[-max_items:]
        older = known[known < first_read]
        older_of_target = older[self.of_target(sequence[older])]
        passed = np.sort(np.concatenate([unknown, older_of_target]))
        return ReadHistory(
            token_ids=sequence[read],
            positions=tuple(read.tolist()),
            unknown_positions=tuple(unknown.tolist()),
            passed_positions=tuple(passed.tolist()),
            num_skipped=int(self.skipped_U[user]),
            num_truncated=len(older) - len(older_of_target),
        )

    def of_target(self, sequence: TokenArray) -> npt.NDArray[np.bool_]:
        """Which items of a sequence are of the target domain."""
        target = self.vocabulary.token_range(self.target)
        return target.mask(sequence) | (sequence >= self.vocabulary.num_tokens)

    def item_ids_of(self, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Item ids of tokens, newer ones included."""
        last = self.vocabulary.num_tokens
        if not self.newer_items:
            return self.vocabulary.item_ids_of(token_ids)
        return [
            self.newer_items[int(token) - last] if token >= last else self.vocabulary.item_ids_of([token])[0]
            for token in token_ids
        ]

    def times_of(self, user: int) -> Times | None:
        """The times of one sequence's items."""
        if self.times_N is None:
            return None
        return self.times_N[self.sequences.offsets[user] : self.sequences.offsets[user + 1]]


@dataclass(frozen=True)
class LogReader:
    """
    Reads sequences of one dataset, in any portions, for a bundle of one vocabulary; made once, since its table of items
    is as long as the vocabulary.

    Args:
        vocabulary: the bundle's.
        target: a domain of it.
        everything: whether all interactions are read, held-out ones too; else those to train on.
        token_of: our token of each of the dataset's, 0 where it is unknown and left out; None where they are the same.
        newer_items: ids of the target's items that the bundle does not know; their tokens are beyond its vocabulary.
    """

    vocabulary: Vocabulary
    target: str
    everything: bool
    token_of: TokenArray | None
    newer_items: tuple[str, ...]

    @classmethod
    def of(cls, theirs: Vocabulary, ours: Vocabulary, target: str, *, everything: bool) -> LogReader:
        """For a dataset of the vocabulary *theirs* and a bundle of *ours*."""
        if theirs == ours:
            return cls(ours, target, everything, None, ())
        token_of, newer = _translation(theirs, ours, target)
        return cls(ours, target, everything, token_of, newer)

    def read(self, dataset: Dataset) -> MixedLog:
        """The sequences of *dataset*, all or a range of its users."""
        sequences = dataset.complete if self.everything else dataset.train
        times_N = dataset.times.of_first(sequences.lengths) if dataset.has_times else None
        carried = dataset.carried
        if carried is not None:
            carried = carried[dataset.times.places_of_first(sequences.lengths).tolist()]
        skipped_U = np.zeros(len(sequences), dtype=np.int64)
        if self.token_of is not None:
            translated_N = self.token_of[sequences.token_ids]
            stays_N = translated_N != 0
            kept_before = np.concatenate([[0], np.cumsum(stays_N)]).astype(np.int64)
            offsets = kept_before[sequences.offsets]
            skipped_U = sequences.lengths - np.diff(offsets)
            sequences = Sequences(translated_N[stays_N], offsets)
            times_N = None if times_N is None else times_N[stays_N]
            carried = None if carried is None else carried.filter(pl.Series(stays_N))
        return MixedLog(
            dataset.user_ids,
            sequences,
            times_N,
            skipped_U,
            self.vocabulary,
            self.target,
            self.newer_items,
            carried,
        )


def _translation(theirs: Vocabulary, ours: Vocabulary, target: str) -> tuple[TokenArray, tuple[str, ...]]:
    """Our token of each of theirs (0: unknown and left out), and the items whose token is beyond our vocabulary."""
    token_of = np.zeros(theirs.num_tokens, dtype=TOKENS)
    newer: list[str] = []
    for domain, items, token_range in zip(theirs.domains, theirs.item_ids, theirs.token_ranges, strict=True):
        for token, item_id in enumerate(items, start=token_range.first):
            try:
                token_of[token] = ours.token_id(domain, item_id)
            except VocabularyError:
                if domain == target:
                    token_of[token] = ours.num_tokens + len(newer)
                    newer.append(item_id)
    return token_of, tuple(newer)

"""
A prepared dataset: what ``taesar prepare`` writes and every later stage reads.

Folder layout (format version 1):
    dataset.json        manifest: format version, preparation configuration, statistics, fingerprint, file hashes
    vocabulary.parquet  token_id, domain, item_id
    train.parquet       user_id, token_ids: the mixed sequence without its last two items, s[:n-2]
    validation.parquet  user_id, token_id: s[n-2]
    test.parquet        user_id, token_id: s[n-1]
    times.parquet       user_id, times: those of s[:n], as the log had them; absent in datasets of earlier versions
    later.parquet       user_id, token_ids, before_test: what follows the training items in a split by time, and how
                        many of it precede the test; ``validation`` and ``test`` are two of them
    waiting.parquet     user, item, domain, time: rows that a threshold set aside, for an extension to count again
    carried.parquet     further columns of the log, a row for every item of s[:n], user by user; where asked for
    joined.parquet      extension: a row for every training item, user by user: the extension by which it became one,
                        counted from 1, and 0 for those of the first preparation; only in an extension
The three parts of a sequence live in three files so that training, adaptation, regeneration and mapping, which get
only ``Dataset.train``, cannot read a held-out item: ``validation`` and ``test`` are read from disk when asked for.

Shapes: U = users, B = batch, T = positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from models.errors import DatasetFormatError
from models.vocabulary import PADDING, TokenRange, Vocabulary

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
TIMES = "times.parquet"
LATER = "later.parquet"
WAITING = "waiting.parquet"
CARRIED = "carried.parquet"
JOINED = "joined.parquet"
REQUIRED_FILES = ("vocabulary.parquet", "train.parquet", "validation.parquet", "test.parquet")
TOKENS = np.int32
# Entries of the manifest that say where the dataset comes from: what is made of it repeats them.
DATASET_FACTS = ("name", "fingerprint", "created", "period", "source", "split", "extends")

TokenArray = npt.NDArray[np.int32]
Times = npt.NDArray[np.float64]


class SequencesByNumber(Protocol):
    """Token sequences by number: ``Sequences``, all of whose tokens are one array, or a list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenArray: ...

    def __iter__(self) -> Iterator[TokenArray]: ...


@dataclass(frozen=True)
class Sequences:
    """
    Ragged token sequences, one per user, in one flat array.

    Args:
        token_ids: all tokens, int32, shape [sum of lengths].
        offsets: int64, shape [U + 1]; sequence u is ``token_ids[offsets[u]:offsets[u + 1]]``.

    >>> Sequences.from_lists([[1, 2], [], [3]])[0].tolist()
    [1, 2]
    """

    token_ids: TokenArray
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_lists(cls, lists: Iterable[Iterable[int]]) -> Sequences:
        """Build from one iterable of tokens per sequence."""
        arrays = [np.asarray(list(tokens), dtype=TOKENS) for tokens in lists]
        lengths = np.asarray([0, *(len(a) for a in arrays)], dtype=np.int64)
        flat = np.concatenate(arrays) if arrays else np.zeros(0, dtype=TOKENS)
        return cls(flat, np.cumsum(lengths))

    @classmethod
    def from_column(cls, lists: pl.Series) -> Sequences:
        """A polars list column of tokens, one list per sequence, without nulls."""
        lengths = lists.list.len().to_numpy().astype(np.int64)
        flat = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy().astype(TOKENS)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> TokenArray:
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[TokenArray]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of every sequence, shape [U]."""
        return np.diff(self.offsets)

    def at(self, rows: npt.NDArray[np.integer]) -> Sequences:
        """
        The sequences of these numbers, in their order, repeats allowed.

        >>> [s.tolist() for s in Sequences.from_lists([[1, 2], [], [3]]).at(np.array([2, 0, 2]))]
        [[3], [1, 2], [3]]
        """
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Sequences(self.token_ids[np.repeat(self.offsets[rows], lengths) + within], offsets)

    def inside(self, domain: TokenRange) -> Sequences:
        """
        As many sequences, with the tokens of *domain* alone.

        >>> [s.tolist() for s in Sequences.from_lists([[5, 1, 6], [2]]).inside(TokenRange(5, 9))]
        [[5, 6], []]
        """
        inside = domain.mask(self.token_ids)
        kept_before = np.concatenate([[0], np.cumsum(inside)])
        return Sequences(self.token_ids[inside], kept_before[self.offsets].astype(np.int64))

    def followed_by(self, last_U: TokenArray) -> Sequences:
        """
        Every sequence with one token more at its end, where there is one: *last_U*, shape [U], is 0 where not.

        >>> [s.tolist() for s in Sequences.from_lists([[1, 2], [3]]).followed_by(np.array([7, 0]))]
        [[1, 2, 7], [3]]
        """
        present_U = last_U != PADDING
        offsets = np.concatenate([[0], np.cumsum(self.lengths + present_U)]).astype(np.int64)
        ends = self.offsets[1:][present_U]
        return Sequences(np.insert(self.token_ids, ends, last_U[present_U]).astype(TOKENS), offsets)

    def joined(self, others: Sequences) -> Sequences:
        """
        Every sequence with that of *others* at its end.

        >>> [s.tolist() for s in Sequences.from_lists([[1], [2]]).joined(Sequences.from_lists([[], [3, 4]]))]
        [[1], [2, 3, 4]]
        """
        places = np.repeat(self.offsets[1:], others.lengths)
        return Sequences(
            np.insert(self.token_ids, places, others.token_ids).astype(TOKENS), self.offsets + others.offsets
        )

    def first(self, counts_U: npt.NDArray[np.int64]) -> Sequences:
        """
        The first so many tokens of each sequence.

        >>> [s.tolist() for s in Sequences.from_lists([[1, 2], [3, 4]]).first(np.array([2, 1]))]
        [[1, 2], [3]]
        """
        within = np.arange(len(self.token_ids)) - np.repeat(self.offsets[:-1], self.lengths)
        offsets = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
        return Sequences(self.token_ids[within < np.repeat(counts_U, self.lengths)], offsets)


@dataclass(frozen=True)
class ChosenSequences:
    """
    Some of other sequences, in any order, without a copy of them.

    >>> [s.tolist() for s in ChosenSequences(Sequences.from_lists([[1, 2], [], [3]]), np.array([2, 0]))]
    [[3], [1, 2]]
    """

    sequences: Sequences
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenArray:
        return self.sequences[self.rows[index]]

    def __iter__(self) -> Iterator[TokenArray]:
        return (self.sequences[row] for row in self.rows)


@dataclass(frozen=True)
class SequenceTimes:
    """
    The times of ragged sequences, one flat array; see ``Sequences``.

    Args:
        values: as the log had them, float64, shape [sum of lengths].
        offsets: int64, shape [U + 1].
    """

    values: Times
    offsets: npt.NDArray[np.int64]

    def __getitem__(self, index: int) -> Times:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def of_first(self, lengths_U: npt.NDArray[np.int64]) -> Times:
        """The times of the first so many items of each sequence, flat."""
        times: Times = self.values[self.places_of_first(lengths_U)]
        return times

    def places_of_first(self, lengths_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the first so many items of each sequence stand in the flat array."""
        within = np.arange(int(lengths_U.sum())) - np.repeat(np.cumsum(lengths_U) - lengths_U, lengths_U)
        places: npt.NDArray[np.int64] = np.repeat(self.offsets[:-1], lengths_U) + within
        return places


@dataclass(frozen=True)
class UserRange:
    """
    Users of a dataset that follow one another in its files.

    Args:
        first, end: rows of ``train.parquet``, from 0; *end* is not among them.
        first_interaction: how many times the users before them have in ``times.parquet``: ``carried.parquet`` has a row
            for each.
    """

    first: int
    end: int
    first_interaction: int

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class DatasetDescription:
    """
    All of a prepared dataset but its sequences; ``describe_dataset`` makes one.

    Args:
        directory: where it lies.
        vocabulary: every item, numbered.
        fingerprint: hash of its content.
        manifest: ``dataset.json``.
    """

    directory: Path
    vocabulary: Vocabulary
    fingerprint: str
    manifest: Mapping[str, Any]

    @property
    def is_split_by_time(self) -> bool:
        """Whether items are held out by dates, not as each user's last two."""
        return bool(self.manifest.get("split", {}).get("name") == "time")

    @property
    def split_sentence(self) -> str:
        """How items are held out, in words."""
        if not self.is_split_by_time:
            return "Held out for test is each user's last interaction, for validation the one before it."
        split = self.manifest["split"]
        return (
            f"Split by time: trained before {split['validation_from_date']}, validated from then on, tested from "
            f"{split['test_from_date']} on."
        )

    @property
    def has_times(self) -> bool:
        """Whether the folder holds the interactions' times."""
        return TIMES in self.manifest["files"]


@dataclass(frozen=True)
class Dataset(DatasetDescription):
    """
    A prepared dataset; ``load_dataset`` makes one.

    Args:
        user_ids: one per sequence.
        train: the sequences to train on.
        users: whose these are in the folder's files; None: all.
    """

    user_ids: tuple[str, ...]
    train: Sequences
    users: UserRange | None = None

    @cached_property
    def validation(self) -> TokenArray:
        """The item to validate by of every user, shape [U], s[n-2] unless split by time; 0 where there is none."""
        return _read_held_out(self.directory / "validation.parquet", self.user_ids, self.users)

    @cached_property
    def test(self) -> TokenArray:
        """The item to test by of every user, shape [U], s[n-1] unless split by time; 0 where there is none."""
        return _read_held_out(self.directory / "test.parquet", self.user_ids, self.users)

    @cached_property
    def complete(self) -> Sequences:
        """s[:n] of every user, held-out items included: for production, never for what is evaluated here."""
        if not self.is_split_by_time:
            return self.train.followed_by(self.validation).followed_by(self.test)
        later, _ = self._later
        return self.train.joined(later)

    @cached_property
    def before_test(self) -> Sequences:
        """What comes before each test item, validation item included."""
        if not self.is_split_by_time:
            return self.train.followed_by(self.validation)
        later, before_test_U = self._later
        return self.train.joined(later.first(before_test_U))

    @cached_property
    def _later(self) -> tuple[Sequences, npt.NDArray[np.int64]]:
        path = self.directory / LATER
        try:
            table = _rows_of(path, ["user_id", "token_ids", "before_test"], self.users)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetFormatError(f"{path}: not a readable table of later items: {error}") from error
        if tuple(table["user_id"].to_list()) != self.user_ids:
            raise DatasetFormatError(f"{path}: its users differ from train.parquet's")
        return Sequences.from_column(table["token_ids"]), table["before_test"].to_numpy().astype(np.int64)

    @cached_property
    def times(self) -> SequenceTimes:
        """
        The time of every item of s[:n]; reads no held-out item.

        Raises:
            DatasetFormatError: the dataset is of a version that kept no times, or they do not fit.
        """
        if not self.has_times:
            raise DatasetFormatError(
                f"{self.directory}: prepared by an earlier version, which kept no times: `taesar prepare` its log again"
            )
        held_out = None if self.is_split_by_time else 2
        return _read_times(self.directory / TIMES, self.user_ids, self.train, held_out, self.users)

    @cached_property
    def carried(self) -> pl.DataFrame | None:
        """
        Further columns of the log, texts, a row for every item as ``times`` has them; None where none were asked for.

        Raises:
            DatasetFormatError: they do not fit.
        """
        if CARRIED not in self.manifest["files"]:
            return None
        path = self.directory / CARRIED
        first, count = (0, None) if self.users is None else (self.users.first_interaction, len(self.times.values))
        try:
            table = pl.scan_parquet(path).slice(first, count).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DatasetFormatError(f"{path}: not a readable table: {error}") from error
        if len(table) != len(self.times.values):
            raise DatasetFormatError(f"{path}: its rows are not one for every interaction")
        return table


def load_dataset(directory: Path) -> Dataset:
    """
    Open a prepared dataset; held-out items stay on disk until asked for.

    Raises:
        DatasetFormatError: a file is missing, damaged or does not match the manifest; the message names it.
    """
    return read_users(describe_dataset(directory))


def describe_dataset(directory: Path, *, checked: bool = True) -> DatasetDescription:
    """
    Open a prepared dataset without its sequences: nothing of it grows with the number of users.

    Args:
        directory: the folder.
        checked: read every file once to compare its hash; without, only what the manifest says is looked at.

    Raises:
        DatasetFormatError: as ``load_dataset``.
    """
    manifest_path = directory / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        files = dict(manifest["files"])
        fingerprint = manifest["fingerprint"]
    except FileNotFoundError as error:
        raise DatasetFormatError(f"{manifest_path}: not found; not a folder that `taesar prepare` wrote") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetFormatError(f"{manifest_path}: not a dataset manifest: {error}") from error
    if version != FORMAT_VERSION:
        raise DatasetFormatError(f"{manifest_path}: format version {version}, this code reads {FORMAT_VERSION}")
    for name in REQUIRED_FILES:
        if name not in files:
            raise DatasetFormatError(f"{manifest_path}: does not list {name}; damaged or edited")
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise DatasetFormatError(f"{path}: missing")
        if checked and sha256_of(path) != expected:
            raise DatasetFormatError(f"{path}: its SHA-256 differs from the manifest's; damaged or edited")
    return DatasetDescription(directory, Vocabulary.load(directory / "vocabulary.parquet"), fingerprint, manifest)


def read_users(described: DatasetDescription, users: UserRange | None = None) -> Dataset:
    """
    A dataset with the sequences of *users* alone, or of all.

    Raises:
        DatasetFormatError: ``train.parquet`` cannot be read.
    """
    user_ids, train = _read_train(described.directory / "train.parquet", users)
    own = {field.name: getattr(described, field.name) for field in fields(DatasetDescription)}
    return Dataset(**own, user_ids=user_ids, train=train, users=users)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pad_right(sequences: Iterable[TokenArray], length: int | None = None) -> torch.Tensor:
    """
    Sequences as one int64 matrix [B, T], zeros on the right; T = *length* or the longest (at least 1).

    A sequence longer than T keeps its last T tokens.
    """
    import torch  # 180 MB that a preparation does without

    rows = list(sequences)
    width = length if length is not None else max(1, max((len(row) for row in rows), default=1))
    padded = np.full((len(rows), width), PADDING, dtype=np.int64)
    for index, row in enumerate(rows):
        tail = row[-width:]
        padded[index, : len(tail)] = tail
    return torch.from_numpy(padded)


def _rows_of(path: Path, columns: list[str], users: UserRange | None) -> pl.DataFrame:
    if users is None:
        return pl.read_parquet(path, columns=columns)
    return pl.scan_parquet(path).select(columns).slice(users.first, len(users)).collect()


def _read_train(path: Path, users: UserRange | None) -> tuple[tuple[str, ...], Sequences]:
    try:
        table = _rows_of(path, ["user_id", "token_ids"], users)
        user_ids, sequences = tuple(table["user_id"].to_list()), Sequences.from_column(table["token_ids"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(f"{path}: not a readable table of sequences: {error}") from error
    return user_ids, sequences


def _read_held_out(path: Path, user_ids: tuple[str, ...], users: UserRange | None) -> TokenArray:
    try:
        table = _rows_of(path, ["user_id", "token_id"], users)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(f"{path}: not a readable table of held-out items: {error}") from error
    if tuple(table["user_id"].to_list()) != user_ids:
        raise DatasetFormatError(f"{path}: its users differ from train.parquet's")
    return table["token_id"].to_numpy().astype(TOKENS)


def _read_times(
    path: Path, user_ids: tuple[str, ...], train: Sequences, held_out: int | None, users: UserRange | None
) -> SequenceTimes:
    """Times of whole sequences, of which *held_out* items are no training items (None: any number)."""
    try:
        table = _rows_of(path, ["user_id", "times"], users)
        lists = table["times"]
        lengths = lists.list.len().to_numpy().astype(np.int64)
        expected = train.lengths if held_out is None else np.maximum(lengths - held_out, 0)
        fits = (
            tuple(table["user_id"].to_list()) == user_ids
            and np.array_equal(expected, train.lengths)
            and bool((lengths >= train.lengths).all())
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(f"{path}: not a readable table of times: {error}") from error
    if not fits:
        raise DatasetFormatError(f"{path}: its users or their numbers of times differ from the sequences'")
    values = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy().astype(np.float64)
    return SequenceTimes(values, np.concatenate([[0], np.cumsum(lengths)]))

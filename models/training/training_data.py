"""
What training reads of a dataset, and a way to read it that does not hold it: from a file that the kernel pages in.

Shapes: U = users.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.data.dataset import TOKENS, Dataset, DatasetDescription, Sequences, TokenArray, read_users
from models.data.user_ranges import user_ranges
from models.errors import TrainingError
from models.vocabulary import Vocabulary

OnUsers = Callable[[int, int], None]
"""Hears how many users were read, and of how many."""

# What is read at once while the file is written: some 100 MB.
RANGE_USERS = 1 << 17
RANGE_INTERACTIONS = 1 << 21


class TrainableData(Protocol):
    """A dataset as training needs it: a ``Dataset`` holds it, ``StoredData`` has it in a file."""

    @property
    def directory(self) -> Path:
        """Where the dataset lies."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Every item, numbered."""

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset's content."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """``dataset.json``."""

    @property
    def train(self) -> Sequences:
        """The sequences to train on."""

    @property
    def validation(self) -> TokenArray:
        """The item to validate by of every user, shape [U]; 0 where there is none."""


@dataclass(frozen=True)
class StoredData(DatasetDescription):
    """
    A dataset's training sequences in a file without a name, which ends with the process: 4 bytes an interaction.

    In memory are 12 bytes a user, and of the file what was read lately and nobody else needs the room for.

    Args:
        train: the sequences; their tokens are pages of the file.
        validation: the item to validate by of every user, shape [U].
        scratch: the folder whose disk holds the file.
    """

    train: Sequences
    validation: TokenArray
    scratch: Path

    @classmethod
    def of(cls, described: DatasetDescription, scratch: Path, on_users: OnUsers | None = None) -> StoredData:
        """
        Read the dataset once, range by range of users, and tell *on_users* after each.

        Raises:
            DatasetFormatError: it cannot be read, or its files do not fit one another.
            TrainingError: the disk of *scratch* is full.
        """
        held_out: list[TokenArray] = []

        def divided(part: Dataset) -> Sequences:
            held_out.append(part.validation)
            return part.train

        train = _stored(described, scratch, divided, on_users)
        validation = np.concatenate([np.zeros(0, dtype=TOKENS), *held_out])
        return cls(**_fields_of(described), train=train, validation=validation, scratch=scratch)

    def undivided(self) -> StoredData:
        """All of the dataset to train on, and nothing held out; reads it again, and raises as ``of``."""
        train = _stored(self, self.scratch, lambda part: part.complete)
        own = _fields_of(self) | {"fingerprint": _undivided(self.fingerprint)}
        return StoredData(**own, train=train, validation=np.zeros(len(train), dtype=TOKENS), scratch=self.scratch)


class NothingHeldOut(Dataset):
    """A dataset in memory whose users have nothing to validate or to test by."""

    @cached_property
    def validation(self) -> TokenArray:
        """Nobody has a validation item."""
        return np.zeros(len(self.user_ids), dtype=TOKENS)

    @cached_property
    def test(self) -> TokenArray:
        """Nobody has a test item."""
        return np.zeros(len(self.user_ids), dtype=TOKENS)


class UndividedDataset(NothingHeldOut):
    """A dataset in memory of which everything is to train on."""

    @classmethod
    def of(cls, dataset: Dataset) -> UndividedDataset:
        """All of *dataset*."""
        values = {field.name: getattr(dataset, field.name) for field in fields(Dataset)}
        return cls(**values | {"train": dataset.complete, "fingerprint": _undivided(dataset.fingerprint)})


def undivided(data: TrainableData) -> TrainableData:
    """All of *data* to train on and nothing held out, as a refit wants it."""
    if isinstance(data, StoredData):
        return data.undivided()
    assert isinstance(data, Dataset)
    return UndividedDataset.of(data)


def _undivided(fingerprint: str) -> str:
    return f"{fingerprint} undivided"


def _fields_of(described: DatasetDescription) -> dict[str, Any]:
    return {field.name: getattr(described, field.name) for field in fields(DatasetDescription)}


def _stored(
    described: DatasetDescription,
    scratch: Path,
    sequences_of: Callable[[Dataset], Sequences],
    on_users: OnUsers | None = None,
) -> Sequences:
    """The sequences of all users, whose tokens are a mapped file; 131,072 users and their items are held at a time."""
    lengths = [np.zeros(1, dtype=np.int64)]
    ranges = user_ranges(described, max_users=RANGE_USERS, max_interactions=RANGE_INTERACTIONS)
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            for users in ranges:
                sequences = sequences_of(read_users(described, users))
                lengths.append(sequences.lengths)
                file.write(sequences.token_ids.tobytes())
                if on_users is not None:
                    on_users(users.end, ranges[-1].end)
            file.flush()
            offsets = np.cumsum(np.concatenate(lengths))
            # An array of NumPy's own: every slice of a memmap is another memmap, which costs more.
            tokens = np.asarray(np.memmap(file, dtype=TOKENS, mode="r")) if offsets[-1] else np.zeros(0, dtype=TOKENS)
    except OSError as error:
        raise TrainingError(
            f"{scratch}: training keeps its sequences on this disk while it runs, 4 bytes an item: {error.strerror}"
        ) from error
    return Sequences(tokens, offsets)

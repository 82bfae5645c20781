"""The fingerprint of sequences that come some users at a time: that of ``models.data.splits.Split``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from models.data.splits import Split, little_endian
from models.vocabulary import counted_text

_BLOCK_BYTES = 1 << 20
# Of ``Split.arrays``, those that say where sequences end: they count from the first user of all.
_OFFSETS = (0, 4)


class RunningFingerprint:
    """
    SHA-256 over vocabulary, users and arrays; the arrays wait on disk, as users come before all of them.

    Args:
        vocabulary: its fingerprint.
        folder: for the arrays.
    """

    def __init__(self, vocabulary: str, folder: Path) -> None:
        self._digest = hashlib.sha256(vocabulary.encode())
        self._folder = folder
        self._ends: dict[int, int] = {}
        self._paths: list[Path] = []

    def add(self, split: Split) -> None:
        """The next users."""
        for user_id in split.user_ids:
            self._digest.update(counted_text(user_id))
        arrays = split.arrays()
        self._paths = [self._folder / f"fingerprint-{index}" for index in range(len(arrays))]
        for index, (array, path) in enumerate(zip(arrays, self._paths, strict=True)):
            if index in _OFFSETS:
                before = self._ends.get(index)
                self._ends[index] = int(array[-1]) + (before or 0)
                array = array if before is None else array[1:] + np.int64(before)
            with path.open("ab") as file:
                file.write(little_endian(array))

    def hexdigest(self) -> str:
        """The fingerprint, once every user was added."""
        for path in self._paths:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    self._digest.update(block)
        return self._digest.hexdigest()

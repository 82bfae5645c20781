"""What a split by time asks of times that lie on disk: exact quantiles without sorting them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.data.out_of_core.user_chunks import KEPT, UserChunk, UserChunks


@dataclass(frozen=True)
class TimesOnDisk:
    """The times of the rows that are kept, as ``models.data.splits.KnownTimes`` has them."""

    chunks: UserChunks

    def _each(self) -> list[UserChunk]:
        return list(self.chunks)

    def _of(self, chunk: UserChunk) -> npt.NDArray[np.float64]:
        times: npt.NDArray[np.float64] = chunk.read("times")[chunk.read("fates") == KEPT]
        return times

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(chunk.read("fates") == KEPT)) for chunk in self._each())

    def num_before(self, time: float) -> int:
        """See ``KnownTimes``."""
        return sum(int(np.count_nonzero(self._of(chunk) < time)) for chunk in self._each())

    def largest(self) -> float:
        """See ``KnownTimes``."""
        return max((float(np.abs(self._of(chunk)).max(initial=0)) for chunk in self._each()), default=0.0)

    def quantile(self, share: float) -> float:
        """See ``KnownTimes``: numpy's own arithmetic between the two rows that it falls between."""
        place = (len(self) - 1) * share
        below = int(np.floor(place))
        one = self._sorted_at(below)
        other = self._sorted_at(min(below + 1, len(self) - 1))
        return float(np.quantile(np.array([one, other]), place - below))

    def _sorted_at(self, place: int) -> float:
        """The time that would stand at *place* if all were sorted: 16 bits of it by each pass over the chunks."""
        prefix = 0
        for shift in (48, 32, 16, 0):
            counts = np.zeros(1 << 16, dtype=np.int64)
            for chunk in self._each():
                keys = _sortable(self._of(chunk))
                if shift < 48:
                    keys = keys[keys >> np.uint64(shift + 16) == prefix]
                counts += np.bincount(
                    (keys >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16
                )
            ends = np.cumsum(counts)
            digit = int(np.searchsorted(ends, place, side="right"))
            place -= int(ends[digit - 1]) if digit else 0
            prefix = prefix << 16 | digit
        return _from_sortable(prefix)


_SIGN = np.uint64(1 << 63)


def _sortable(times: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Whole numbers in the order of *times*."""
    bits = times.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_sortable(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else key ^ (1 << 64) - 1
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])

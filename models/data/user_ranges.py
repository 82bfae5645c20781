"""A dataset cut into ranges of users, each small enough to be held: what bounded memory and resuming stand on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.dataset import TIMES, DatasetDescription, UserRange
from models.errors import DatasetFormatError

# Users whose lengths are read at a time.
_BATCH = 1 << 14


def user_ranges(described: DatasetDescription, *, max_users: int, max_interactions: int) -> list[UserRange]:
    """
    All users of a dataset, in its order, as ranges of at most so many users and interactions.

    Only a user who alone has more interactions than that makes a longer range. The same numbers cut the same dataset in
    the same places. Reads the sequences' lengths once, batch by batch.

    Raises:
        DatasetFormatError: the sequences cannot be read.
    """
    assert max_users > 0
    assert max_interactions > 0
    ranges: list[UserRange] = []
    first = user = before = held = 0
    for lengths in _lengths(described):
        for length in lengths.tolist():
            if user > first and (user - first == max_users or held + length > max_interactions):
                ranges.append(UserRange(first, user, before))
                first, before, held = user, before + held, 0
            held += length
            user += 1
    return [*ranges, UserRange(first, user, before)] if user > first else ranges


def _lengths(described: DatasetDescription) -> Iterator[npt.NDArray[np.int64]]:
    """Of whole sequences where times are kept, else of what is to train on."""
    name, column = (TIMES, "times") if described.has_times else ("train.parquet", "token_ids")
    path = described.directory / name
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=[column]):
                yield batch.column(0).value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    except (OSError, pa.ArrowException) as error:
        raise DatasetFormatError(f"{path}: its lengths cannot be read: {error}") from error

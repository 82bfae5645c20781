"""
What regeneration decided for every user, kept beside the result, so that the next one redoes only what changed.

A sequence's result depends on what was read of it, on the bundle, the rule and the dial, and on nothing else; so where
those are the same, the decisions are. ``decisions.parquet`` holds, per user: user_id; read, a hash of the tokens that
were read; positions of the source items among them; replacements, the target tokens, 0 for deleted ones; scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from models.data.dataset import TOKENS, TokenArray
from models.decoding.regenerator import Regenerated, Steps, without_repeats
from models.vocabulary import PADDING

DECISIONS = "decisions.parquet"
SCHEMA: dict[str, Any] = {
    "user_id": pl.String,
    "read": pl.String,
    "positions": pl.List(pl.Int64),
    "replacements": pl.List(pl.Int32),
    "scores": pl.List(pl.Float32),
}


@dataclass(frozen=True)
class KeptDecisions:
    """The decisions of an earlier result, by user."""

    rows: Mapping[str, tuple[str, Sequence[int], Sequence[int], Sequence[float]]]

    @classmethod
    def read(cls, folder: Path, user_ids: Sequence[str]) -> KeptDecisions:
        """
        What a result of the same bundle, rule and dial decided for *user_ids*; nothing where its file cannot be read.

        Users of both results come sorted, so only the row groups between the first and the last of them are read.
        """
        if not user_ids:
            return cls({})
        user = pl.col("user_id")
        rows = pl.scan_parquet(folder / DECISIONS).select(list(SCHEMA))
        nearby = rows.filter(user.is_between(pl.lit(min(user_ids)), pl.lit(max(user_ids))))
        try:
            table = nearby.filter(user.is_in(list(user_ids))).collect(engine="streaming")
        except (OSError, pl.exceptions.PolarsError):
            return cls({})
        return cls({user: tuple(rest) for user, *rest in table.iter_rows()})

    def of(self, user_id: str, read: TokenArray) -> Regenerated | None:
        """What was decided when this very sequence was read; None where it was not."""
        kept = self.rows.get(user_id)
        if kept is None or kept[0] != read_hash(read):
            return None
        _, positions, replacements, scores = kept
        return _regenerated(
            read,
            np.asarray(positions, dtype=np.int64),
            np.asarray(replacements, dtype=TOKENS),
            np.asarray(scores, dtype=np.float32),
        )


def read_hash(read: TokenArray) -> str:
    """
    A hash of what was read.

    >>> read_hash(np.array([1, 2], dtype=TOKENS)) == read_hash(np.array([2, 1], dtype=TOKENS))
    False
    """
    return hashlib.blake2b(read.astype("<i4").tobytes(), digest_size=16).hexdigest()


def decisions_table(
    user_ids: Sequence[str], reads: Sequence[TokenArray], results: Sequence[Regenerated]
) -> pl.DataFrame:
    """The decisions of some users, as ``SCHEMA`` has them; *reads* is what was read of each sequence."""
    return pl.DataFrame(
        {
            "user_id": list(user_ids),
            "read": [read_hash(read) for read in reads],
            "positions": _lists([result.steps.positions for result in results], np.int64),
            "replacements": _lists([result.steps.replacements for result in results], np.int32),
            "scores": _lists([result.steps.score for result in results], np.float32),
        },
        schema=SCHEMA,
    )


def _lists(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> pl.Series:
    """A column of lists, one per array."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in arrays])]).astype(np.int64)
    flat = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)))


def _regenerated(
    read: TokenArray,
    positions: npt.NDArray[np.int64],
    replacements: TokenArray,
    scores: npt.NDArray[np.float32],
) -> Regenerated:
    rewritten = read.copy()
    rewritten[positions] = replacements
    unknown = np.full(len(positions), np.nan, dtype=np.float32)
    steps = Steps(positions, read[positions], replacements, unknown, unknown, scores, unknown)
    return Regenerated(without_repeats(rewritten[rewritten != PADDING]), len(read), steps)

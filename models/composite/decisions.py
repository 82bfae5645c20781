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
    def read(cls, folder: Path) -> KeptDecisions:
        """Those of a result of the same bundle, rule and dial; none where the file is not there or not readable."""
        try:
            table = pl.read_parquet(folder / DECISIONS, columns=list(SCHEMA))
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


def write_decisions(
    path: Path, user_ids: Sequence[str], reads: Sequence[TokenArray], results: Sequence[Regenerated]
) -> None:
    """Write the decisions of all users; *reads* is what was read of each sequence."""
    pl.DataFrame(
        {
            "user_id": list(user_ids),
            "read": [read_hash(read) for read in reads],
            "positions": [result.steps.positions.tolist() for result in results],
            "replacements": [result.steps.replacements.tolist() for result in results],
            "scores": [result.steps.score.tolist() for result in results],
        },
        schema=SCHEMA,
    ).write_parquet(path)


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

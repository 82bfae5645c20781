"""
The source -> target dictionary of many regenerated sequences, counted portion by portion and put together at the end.

What a portion counted is a file that is far smaller than its sequences. Scores are summed as whole numbers, so the sum
of a source item's decisions is the same to the bit, however the sequences were cut into portions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from models.decoding.regenerator import Regenerated
from models.vocabulary import Vocabulary

SCHEMA = pa.schema(
    [
        ("source_domain", pa.string()),
        ("source_item", pa.string()),
        ("target_item", pa.string()),
        ("count", pa.int64()),
        ("mean_score", pa.float64()),
        ("share", pa.float64()),
    ]
)
# A score is this many whole units: every float32 above 2^-40 is exact in them, and 2^63 scores of 1 fit into a sum.
SCORE_UNITS = 2.0**64
# Rows of portions that are put together at a time.
ROWS_AT_A_TIME = 1 << 21
# Rows of a file that a reader of a few source items can leave out.
_GROUP_ROWS = 1 << 14


@dataclass(frozen=True)
class SourceOrder:
    """
    The order of the dictionary: by domain, then by item id.

    Args:
        rank_V: place of every token, 0 for padding, from 1.
        names: columns domain and item, a row for every token; padding's are null.
    """

    rank_V: npt.NDArray[np.int32]
    names: pl.DataFrame

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> SourceOrder:
        """That of a vocabulary's items."""
        domains = (d for d, ids in zip(vocabulary.domains, vocabulary.item_ids, strict=True) for _ in ids)
        items = (item for ids in vocabulary.item_ids for item in ids)
        names = pl.DataFrame(
            {
                "domain": [None, *domains],
                "item": [None, *items],
            },
            schema={"domain": pl.String, "item": pl.String},
        )
        tokens = names.with_row_index("token").sort("domain", "item", nulls_last=False)["token"].to_numpy()
        rank_V = np.empty(len(tokens), dtype=np.int32)
        rank_V[tokens] = np.arange(len(tokens), dtype=np.int32)
        return cls(rank_V, names)


def write_counted(path: Path, regenerated: Sequence[Regenerated], order: SourceOrder) -> None:
    """
    Count the decisions of one portion into a file that ``mapping_tables`` reads.

    Columns: rank of the source item, target (0: deleted), count, scored (decisions that have a score), units of score.
    """
    steps = [result.steps for result in regenerated]
    sources = _concatenate([step.source_tokens for step in steps], np.int32)
    decisions = pl.DataFrame(
        {
            "rank": order.rank_V[sources],
            "target": _concatenate([step.replacements for step in steps], np.int32),
            "score": _concatenate([step.score for step in steps], np.float32),
        }
    )
    score = pl.col("score").cast(pl.Float64).fill_nan(None)
    decisions.group_by("rank", "target").agg(
        pl.len().cast(pl.Int64).alias("count"),
        score.count().cast(pl.Int64).alias("scored"),
        (score * SCORE_UNITS).cast(pl.Int128).sum().alias("units"),
    ).sort("rank", "target").write_parquet(path, row_group_size=_GROUP_ROWS)


def mapping_tables(counted: Sequence[Path], order: SourceOrder) -> Iterator[pa.Table]:
    """
    The source -> target dictionary with counts, a few source items at a time.

    Args:
        counted: files of ``write_counted``, all by this *order*.
        order: of the items.

    Returns:
        Tables of ``SCHEMA``: target_item null where deleted, mean_score null where no decision was scored (at position
        0, and of what rule ``anticipate`` deletes), share the count over all decisions of the source item; sorted by
        source domain and item, then falling count.
    """
    for first, last in pairwise(_bounds(counted, len(order.rank_V))):
        rows = pl.scan_parquet(list(counted)).filter((pl.col("rank") >= first) & (pl.col("rank") < last)).collect()
        yield _named(rows, order).to_arrow().cast(SCHEMA)


def _bounds(counted: Sequence[Path], num_ranks: int) -> list[int]:
    """Ranks between which a bounded number of rows lie; one source item's are never cut."""
    rows_R = np.zeros(num_ranks, dtype=np.int64)
    for path in counted:
        ranks = pl.read_parquet(path, columns=["rank"])["rank"].to_numpy()
        rows_R += np.bincount(ranks, minlength=num_ranks)
    bounds, held = [0], 0
    for rank in np.flatnonzero(rows_R).tolist():
        rows = int(rows_R[rank])
        if held and held + rows > ROWS_AT_A_TIME:
            bounds.append(rank)
            held = 0
        held += rows
    return [*bounds, num_ranks] if held else [0]


def _named(rows: pl.DataFrame, order: SourceOrder) -> pl.DataFrame:
    names = order.names
    token_of_rank = np.empty(len(order.rank_V), dtype=np.int64)
    token_of_rank[order.rank_V] = np.arange(len(order.rank_V))
    counted = (
        rows.group_by("rank", "target")
        .agg(pl.col("count", "scored", "units").sum())
        .sort(["rank", "count", "target"], descending=[False, True, False])
    )
    sources = token_of_rank[counted["rank"].to_numpy()]
    targets = counted["target"].to_numpy()
    return counted.select(
        names["domain"].gather(sources).alias("source_domain"),
        names["item"].gather(sources).alias("source_item"),
        names["item"].gather(targets).alias("target_item"),
        "count",
        # No score at all: null, not 0 / 0
        pl.when(pl.col("scored") > 0)
        .then(pl.col("units").cast(pl.Float64) / SCORE_UNITS / pl.col("scored"))
        .alias("mean_score"),
        (pl.col("count") / pl.col("count").sum().over("rank")).alias("share"),
    )


def _concatenate(arrays: Sequence[npt.NDArray[np.generic]], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype=dtype)

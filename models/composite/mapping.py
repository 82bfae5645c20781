"""The source -> target dictionary of many regenerated sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from models.decoding.regenerator import Regenerated
from models.vocabulary import Vocabulary


def mapping_table(regenerated: Sequence[Regenerated], vocabulary: Vocabulary) -> pl.DataFrame:
    """
    The source -> target dictionary with counts.

    Returns:
        Columns source_domain, source_item, target_item (null: deleted), count, mean_score (null where no decision
        was scored: at position 0, and of what rule ``anticipate`` deletes), share (count over all
        decisions of the source item), sorted by source domain and
        item, then falling count.
    """
    steps = [result.steps for result in regenerated]
    decisions = pl.DataFrame(
        {
            "source": _concatenate([step.source_tokens for step in steps], np.int32),
            "target": _concatenate([step.replacements for step in steps], np.int32),
            "score": _concatenate([step.score for step in steps], np.float32),
        }
    )
    names = pl.DataFrame(
        {
            "token": np.arange(1, vocabulary.num_tokens, dtype=np.int32),
            "domain": [d for d, ids in zip(vocabulary.domains, vocabulary.item_ids, strict=True) for _ in ids],
            "item": [item for ids in vocabulary.item_ids for item in ids],
        }
    )
    return (
        decisions.group_by("source", "target")
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            pl.col("score").cast(pl.Float64).fill_nan(None).mean().alias("mean_score"),
        )
        .with_columns((pl.col("count") / pl.col("count").sum().over("source")).alias("share"))
        .join(names, left_on="source", right_on="token")
        .join(names.select("token", target_item="item"), left_on="target", right_on="token", how="left")
        .sort(["domain", "item", "count", "target"], descending=[False, False, True, False])
        .select(
            pl.col("domain").alias("source_domain"),
            pl.col("item").alias("source_item"),
            "target_item",
            "count",
            "mean_score",
            "share",
        )
    )


def _concatenate(arrays: Sequence[npt.NDArray[np.generic]], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype=dtype)

"""
Draw ``food-kitchen-sample.csv.gz`` from the full Food-Kitchen table; see ``README.md`` beside this file.

    python examples/draw_sample.py ../shared/data/amazon-food-kitchen/interactions.csv.gz

A random subset of users would leave almost every item with one or two interactions, and nothing to learn. So the
sample holds whole histories of the users who met the popular items of both domains most often.
"""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path

import polars as pl

SEED = 2025
NUM_USERS = 1_400
POPULAR_ITEMS_PER_DOMAIN = 400
SAMPLE = Path(__file__).with_name("food-kitchen-sample.csv.gz")


def draw_users(table: pl.DataFrame) -> list[str]:
    """The users with the most popular items in their weaker domain; equal ones in a seeded random order."""
    popularity = table.group_by("domain", "item").agg(pl.col("user").n_unique().alias("users"))
    popular = (
        popularity.sort("domain", "users", "item", descending=[False, True, False])
        .group_by("domain", maintain_order=True)
        .head(POPULAR_ITEMS_PER_DOMAIN)
    )
    met = table.join(popular, on=["domain", "item"]).group_by("user", "domain").len()
    weaker = met.group_by("user").agg(pl.col("len").min(), pl.len().alias("domains"))
    scores = dict(weaker.filter(pl.col("domains") == 2).select("user", "len").iter_rows())
    users = sorted(scores)
    random.Random(SEED).shuffle(users)
    return sorted(users, key=lambda user: scores[user], reverse=True)[:NUM_USERS]


def main(source: Path) -> None:
    """Write the sample: the drawn users' rows, sorted, as a gzip file without name or date."""
    table = pl.read_csv(source, infer_schema=False)
    drawn = table.filter(pl.col("user").is_in(draw_users(table)))
    rows = drawn.sort("user", pl.col("timestamp").cast(pl.Int64), "item")
    with SAMPLE.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(rows.write_csv().encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

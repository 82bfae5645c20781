"""
The team's own recommender in a check: what it is given as files, and ranks from the lists that it gives back.

    train-original.parquet, train-duplicated.parquet, train-regenerated.parquet
                  row, item_ids: training sequences of target items, oldest first, one file for each model to train
    test.parquet  query, item_ids: histories to recommend after; every held-out item is asked for twice, after the
                  target's own items and after the regenerated history
    scores        query, item_id, score: the best items of every query, as many as the recommender likes; what is not
                  listed ranks last. In one file of all three models a column ``rows`` says which of them it was.

No file holds a held-out item. Items that the user has had are left out of the lists here, as from every ranking of a
check.

Shapes: N = held-out rows.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import Sequences, sha256_of
from models.errors import OwnRecommenderError
from models.evaluation.arms import Arm, Queries
from models.files import replace_file
from models.vocabulary import Vocabulary

TEST = "test.parquet"
COMMAND_PARTS = ("{train}", "{test}", "{out}")
SCORES_SCHEMA: dict[str, Any] = {"query": pl.Int64, "item_id": pl.String, "score": pl.Float64}
Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Exchange:
    """
    The files that the team's recommender gets.

    Args:
        folder: where they lie.
        arms: by name; ``regenerated`` has served histories.
        item_ids: the target's, in the order of the arms' numbers from 1.
    """

    folder: Path
    arms: Mapping[str, Arm]
    item_ids: tuple[str, ...]

    @property
    def queries(self) -> Queries:
        """What is ranked, after target-only histories."""
        return self.arms["original"].test

    @property
    def test_file(self) -> Path:
        """Histories to recommend after."""
        return self.folder / TEST

    def train_file(self, arm: str) -> Path:
        """Training sequences of one arm."""
        return self.folder / f"train-{arm}.parquet"


def write_exchange(folder: Path, arms: Sequence[Arm], vocabulary: Vocabulary, target: str) -> Exchange:
    """Write training sequences and histories into *folder*; the same content gives the same bytes."""
    item_ids = vocabulary.item_ids[vocabulary.domain_index(target)]
    exchange = Exchange(folder, {arm.name: arm for arm in arms}, item_ids)
    for arm in arms:
        rows = _lists(arm.rows, item_ids)
        _write(exchange.train_file(arm.name), pl.DataFrame({"row": np.arange(len(rows)), "item_ids": rows}))
    served = exchange.arms["regenerated"].served
    assert served is not None
    histories = [*_lists(exchange.queries.histories, item_ids), *_lists(served.histories, item_ids)]
    _write(exchange.test_file, pl.DataFrame({"query": np.arange(len(histories)), "item_ids": histories}))
    return exchange


def run_command(exchange: Exchange, command: str, tell: Callable[[str], None]) -> dict[str, pl.DataFrame]:
    """
    Train and ask the team's recommender once for each arm; what has been done before is read back.

    Raises:
        OwnRecommenderError: *command* lacks one of ``COMMAND_PARTS``, fails, or writes something else than scores.
    """
    missing = [part for part in COMMAND_PARTS if part not in command]
    if missing:
        raise OwnRecommenderError(f"--recommender-command lacks {', '.join(missing)}: {command}")
    scores = {}
    for name in exchange.arms:
        train, out = exchange.train_file(name), exchange.folder / f"scores-{name}.parquet"
        made_of = hashlib.sha256(
            json.dumps([command, sha256_of(train), sha256_of(exchange.test_file)]).encode()
        ).hexdigest()
        stamp = exchange.folder / f"scores-{name}.made-of"
        if not (out.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of):
            places = {"{train}": train, "{test}": exchange.test_file, "{out}": out}
            parts = [_filled(part, places) for part in shlex.split(command)]
            tell(f"your recommender on rows {name}: {shlex.join(parts)}")
            try:
                done = subprocess.run(parts, check=False)
            except OSError as error:
                raise OwnRecommenderError(f"{parts[0]}: cannot be run: {error}") from error
            if done.returncode:
                raise OwnRecommenderError(f"{shlex.join(parts)}: ended with exit code {done.returncode}")
            with replace_file(stamp) as partial:
                partial.write_text(made_of, encoding="utf-8")
        scores[name] = _read(out)
    return scores


def read_scores(path: Path) -> dict[str, pl.DataFrame]:
    """
    The scores of one file, by arm.

    Raises:
        OwnRecommenderError: not such a file, or none of its rows are of arm ``original``.
    """
    table = _read(path, extra={"rows": pl.String})
    found = {str(name): part.drop("rows") for (name,), part in table.group_by("rows", maintain_order=True)}
    if "original" not in found or "regenerated" not in found:
        raise OwnRecommenderError(
            f"{path}: column rows must name original and regenerated, it names {', '.join(found)}"
        )
    return found


def ranks_of_lists(scores: pl.DataFrame, exchange: Exchange, *, served: bool) -> Ranks:
    """Pessimistic ranks [N] of the held-out items among the items that the user has not had."""
    queries, X = exchange.queries, len(exchange.item_ids)
    first = len(queries) if served else 0
    numbers = pl.DataFrame({"item_id": list(exchange.item_ids), "item": np.arange(1, X + 1)})
    known = scores.join(numbers, on="item_id").with_columns(pl.col("query") - first)
    known = known.filter((pl.col("query") >= 0) & (pl.col("query") < len(queries)))
    users = np.repeat(np.arange(len(queries)), queries.seen.lengths)
    had = pl.DataFrame({"query": users, "item": queries.seen.token_ids.astype(np.int64)})
    unseen = known.join(had, on=["query", "item"], how="anti")
    asked = pl.DataFrame({"query": np.arange(len(queries)), "asked": queries.targets.astype(np.int64)})
    own = (
        unseen.join(asked, left_on=["query", "item"], right_on=["query", "asked"])
        .group_by("query")
        .agg(pl.col("score").max().alias("own"))
    )
    ahead = (
        unseen.join(own, on="query")
        .filter(pl.col("score") >= pl.col("own"))
        .group_by("query")
        .agg(pl.col("item").n_unique().alias("rank"))
    )
    ranks_N: Ranks = np.full(len(queries), X, dtype=np.int64)
    ranks_N[ahead["query"].to_numpy()] = ahead["rank"].to_numpy()
    return ranks_N


def _filled(part: str, places: Mapping[str, Path]) -> str:
    for name, path in places.items():
        part = part.replace(name, str(path))
    return part


def _lists(sequences: Sequences, item_ids: tuple[str, ...]) -> list[list[str]]:
    return [[item_ids[int(item) - 1] for item in row] for row in sequences]


def _write(path: Path, table: pl.DataFrame) -> None:
    with replace_file(path) as partial:
        table.cast({"item_ids": pl.List(pl.String)}).write_parquet(partial)


def _read(path: Path, extra: Mapping[str, Any] | None = None) -> pl.DataFrame:
    schema = pl.Schema({**(extra or {}), **SCORES_SCHEMA})
    try:
        table = pl.read_parquet(path, columns=list(schema)).cast(schema)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OwnRecommenderError(f"{path}: no table of {', '.join(schema)}: {error}") from error
    if table.null_count().sum_horizontal().sum() or not table["score"].is_finite().all():
        raise OwnRecommenderError(f"{path}: a value is missing, or a score is not finite")
    return table

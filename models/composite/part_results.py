"""
One part of a composite: the results of a range of users, made by themselves and kept in a folder of their own.

    sequences.parquet     rows of composite.parquet
    sequences.inter       rows of TARGET.inter, without the header
    interactions.parquet  rows of interactions/
    users.parquet         rows of decisions.parquet and counts.parquet, and ``stays``: rows of each in interactions
    mapped.parquet        decisions counted (``mapping``)
    part.json             totals; a folder without it is no part

A part depends on its users, the bundle and the options, not on the other parts nor on who makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.bundle import Bundle, BundleDescription
from models.composite.decisions import KeptDecisions, decisions_table
from models.composite.log_regeneration import RegeneratedStep, regenerate_steps
from models.composite.mapping import SourceOrder, write_counted
from models.composite.mixed_log import LogReader, MixedLog
from models.composite.regenerated_rows import (
    COUNTS,
    ORIGINAL,
    CompositeRow,
    RegeneratedUser,
    composite_rows,
    interaction_schema_of,
    interaction_table,
)
from models.data.dataset import DatasetDescription, UserRange, read_users
from models.decoding.regenerator import Regenerator
from models.decoding.rules import Dial, Rule
from models.exports.as_inter import inter_lines
from models.files import replace_folder

SEQUENCES = "sequences.parquet"
INTER = "sequences.inter"
STAYED = "interactions.parquet"
USERS = "users.parquet"
MAPPED = "mapped.parquet"
PART = "part.json"

SEQUENCES_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("origin", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Part:
    """Users that are regenerated together, and the number of their part, from 0."""

    number: int
    users: UserRange

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"part-{self.number:06d}"


@dataclass(frozen=True)
class PartTotals:
    """What ``part.json`` says of a part: users, those taken over, rows, and ``COUNTS`` in their order."""

    users: int
    users_taken_over: int
    original_rows: int
    regenerated_rows: int
    counts: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> PartTotals | None:
        """Those of a finished part; None where *folder* is none."""
        try:
            content = json.loads((folder / PART).read_text(encoding="utf-8"))
            return cls(**content | {"counts": tuple(content["counts"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class PartRecipe:
    """
    All that parts are made of; goes from process to process.

    Args:
        dataset: to regenerate.
        bundle: what decides, with or without its networks.
        target, rule, dial: as of ``write_composite``.
        everything: whether all interactions are read; else those to train on.
        kept: an earlier result whose decisions are the same today; None where there is none.
        work: the folder that parts are written to.
    """

    dataset: DatasetDescription
    bundle: BundleDescription
    target: str
    rule: Rule
    dial: Dial
    everything: bool
    kept: Path | None
    work: Path


class PartMaker:
    """
    Makes parts, one after the other; holds the bundle and tables as long as the vocabulary, and one part at a time.

    Args:
        recipe: what of.
        bundle: the recipe's, loaded.
    """

    def __init__(self, recipe: PartRecipe, bundle: Bundle) -> None:
        self.recipe = recipe
        self._regenerator = Regenerator(bundle, recipe.rule, dial=recipe.dial)
        self._reader = LogReader.of(
            recipe.dataset.vocabulary, bundle.vocabulary, recipe.target, everything=recipe.everything
        )
        self._order = SourceOrder.of(bundle.vocabulary)

    def make(self, part: Part) -> Iterator[int]:
        """Make *part* and write its folder; yields how many of its users are done, as the work goes on."""
        log = self._reader.read(read_users(self.recipe.dataset, part.users))
        kept = None if self.recipe.kept is None else KeptDecisions.read(self.recipe.kept, log.user_ids)
        steps, done = [], 0
        for step in regenerate_steps(log, self._regenerator, kept):
            steps.append(step)
            done += len(step.users)
            yield done
        with replace_folder(self.recipe.work / part.name, durable=True) as folder:
            self._write(folder, log, steps)

    def _write(self, folder: Path, log: MixedLog, steps: Sequence[RegeneratedStep]) -> None:
        users = [user for step in steps for user in step.users]
        rows = composite_rows(log, users)
        _write_sequences(folder, log, rows)
        pq.write_table(interaction_table(log, users, interaction_schema_of(log)), folder / STAYED)
        counts_UC = np.asarray([user.counts for user in users], dtype=np.int64).reshape(-1, len(COUNTS))
        _write_users(folder, log, users, counts_UC, steps)
        write_counted(folder / MAPPED, [user.result for user in users], self._order)
        original_rows = sum(row.origin == ORIGINAL for row in rows)
        totals = PartTotals(
            users=len(users),
            users_taken_over=sum(step.taken_over for step in steps),
            original_rows=original_rows,
            regenerated_rows=len(rows) - original_rows,
            counts=tuple(counts_UC.sum(axis=0).tolist()),
        )
        (folder / PART).write_text(json.dumps(asdict(totals)) + "\n", encoding="utf-8")


def _write_sequences(folder: Path, log: MixedLog, rows: Sequence[CompositeRow]) -> None:
    user_ids = [log.user_ids[row.user] for row in rows]
    item_ids = [log.item_ids_of(row.token_ids) for row in rows]
    # Tokens beyond the vocabulary are nobody else's
    token_ids = [None if log.newer_items else row.token_ids.tolist() for row in rows]
    columns = [user_ids, [row.origin for row in rows], item_ids, token_ids]
    pq.write_table(
        pa.table([pa.array(c, f.type) for c, f in zip(columns, SEQUENCES_SCHEMA, strict=True)], SEQUENCES_SCHEMA),
        folder / SEQUENCES,
    )
    (folder / INTER).write_text("".join(inter_lines(user_ids, item_ids)), encoding="utf-8")


def _write_users(
    folder: Path,
    log: MixedLog,
    users: Sequence[RegeneratedUser],
    counts_UC: npt.NDArray[np.int64],
    steps: Sequence[RegeneratedStep],
) -> None:
    reads = [read for step in steps for read in step.reads]
    decided = decisions_table(log.user_ids, reads, [user.result for user in users])
    counted = [pl.Series(name, column) for name, column in zip(COUNTS, counts_UC.T, strict=True)]
    stays = pl.Series("stays", [len(user.positions) for user in users], dtype=pl.Int64)
    decided.with_columns(*counted, stays).write_parquet(folder / USERS)

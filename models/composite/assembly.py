"""
Finished parts put together: the documented files, written as a stream of parts, with no more than one of them held.

Tables are cut anew on the way, so every file has the same bytes whatever the parts' sizes and whoever made them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.composite.decisions import DECISIONS
from models.composite.decisions import SCHEMA as DECIDED
from models.composite.mapping import SCHEMA as MAPPING_SCHEMA
from models.composite.mapping import SourceOrder, mapping_tables
from models.composite.part_results import INTER, MAPPED, SEQUENCES, SEQUENCES_SCHEMA, STAYED, USERS, Part
from models.composite.regenerated_rows import COUNTS
from models.exports.as_inter import SEQUENCES_HEADER
from models.exports.as_parquet import write_groups, write_parts
from models.exports.encoding import INTERACTION_COLUMNS, interactions_schema

COMPOSITE = "composite.parquet"
INTERACTIONS = "interactions"
COUNTED = "counts.parquet"
MAPPING = "mapping.parquet"
# Sequences, or users, of one row group: lists are long.
LISTS_PER_GROUP = 1 << 15
# Users of one table of interactions: a library's frame is made of one at a time.
USERS_PER_TABLE = 4096

OnPart = Callable[[], None]
"""Called whenever one more part has been read through for one of the files."""


@dataclass(frozen=True)
class FinishedParts:
    """
    All parts of a composite.

    Args:
        folders: of the parts, in order.
        on_part: see there.
    """

    folders: tuple[Path, ...]
    on_part: OnPart

    @classmethod
    def of(cls, work: Path, parts: Sequence[Part], on_part: OnPart) -> FinishedParts:
        """Those of a work folder."""
        return cls(tuple(work / part.name for part in parts), on_part)

    def sequences(self) -> Iterator[pa.Table]:
        """Rows of composite.parquet, a table a part."""
        return self._tables(SEQUENCES)

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """(user, items) of every row of composite.parquet."""
        for table in self.sequences():
            for batch in table.select(["user_id", "item_ids"]).to_batches(max_chunksize=USERS_PER_TABLE):
                yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)

    def interaction_schema(self) -> pa.Schema:
        """Of all interactions: times are whole numbers where they are in every part."""
        schemas = [pq.read_schema(folder / STAYED) for folder in self.folders]
        whole = all(pa.types.is_integer(schema.field("timestamp").type) for schema in schemas)
        return interactions_schema(whole_times=whole, carried=schemas[0].names[len(INTERACTION_COLUMNS) :])

    def interactions(self) -> Iterator[pa.Table]:
        """Every item that stays, user by user: tables of ``USERS_PER_TABLE`` users, wherever parts end."""
        schema = self.interaction_schema()
        held, users = schema.empty_table(), 0
        for folder, table in zip(self.folders, self._tables(STAYED), strict=True):
            ends_U = np.cumsum(pl.read_parquet(folder / USERS, columns=["stays"])["stays"].to_numpy())
            table, first, begin = table.cast(schema), 0, 0
            while len(ends_U) - first >= USERS_PER_TABLE - users:
                first += USERS_PER_TABLE - users
                end = int(ends_U[first - 1])
                yield pa.concat_tables([held, table.slice(begin, end - begin)])
                held, users, begin = schema.empty_table(), 0, end
            held, users = pa.concat_tables([held, table.slice(begin)]), users + len(ends_U) - first
        if users:
            yield held

    def users(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of what is kept of every user."""
        return self._tables(USERS, columns)

    def _tables(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        for folder in self.folders:
            yield pq.read_table(folder / name, columns=None if columns is None else list(columns))
            self.on_part()


# How often every part is read through for the files of ``write_files``, the mapping not counted.
PASSES = 5


def write_files(folder: Path, parts: FinishedParts, order: SourceOrder, *, inter: str) -> None:
    """Write everything but the summary and the exports into *folder*; *inter* is the name of the file for RecBole."""
    write_groups(folder / COMPOSITE, SEQUENCES_SCHEMA, parts.sequences(), group_rows=LISTS_PER_GROUP)
    with (folder / inter).open("wb") as file:
        file.write(SEQUENCES_HEADER.encode())
        for part in parts.folders:
            with (part / INTER).open("rb") as lines:
                shutil.copyfileobj(lines, file)
            parts.on_part()
    counts = pa.schema([("user_id", pa.string()), *((name, pa.int64()) for name in COUNTS)])
    _write_users(folder / COUNTED, parts, counts)
    _write_users(folder / DECISIONS, parts, pl.DataFrame(schema=DECIDED).to_arrow().schema)
    write_parts(folder / INTERACTIONS, parts.interaction_schema(), parts.interactions())
    counted = [part / MAPPED for part in parts.folders]
    write_groups(folder / MAPPING, MAPPING_SCHEMA, mapping_tables(counted, order))


def _write_users(path: Path, parts: FinishedParts, schema: pa.Schema) -> None:
    tables = (table.cast(schema) for table in parts.users(schema.names))
    write_groups(path, schema, tables, group_rows=LISTS_PER_GROUP)

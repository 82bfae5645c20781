"""
What an output format is, and the tables that it is given.

Interactions have one row per item that stays: ``user, item, timestamp, origin (kept | replaced), source_item,
source_domain, score``, users in order and each user's rows in the order of the sequence, repeats included. A kept row
has no source. Sequences have one row per sequence: a user, its items as a list, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

FileParts = Generator[bytes, None, None]
"""A file, part by part. Closing it lets go of what it is made from."""

Encoder = Callable[[pa.Schema, Iterable[pa.Table]], FileParts]
"""Tables of one schema, in order, as one file; holds no more than one of them."""

ResultView = Literal["sequences", "interactions"]
"""What a row of a result is: a sequence, or an item that stays."""

KEPT, REPLACED = "kept", "replaced"
INTERACTION_COLUMNS = ("user", "item", "timestamp", "origin", "source_item", "source_domain", "score")


@dataclass(frozen=True)
class HeldOutItem:
    """The item that a user met next, and the items of the target domain met before it, oldest first."""

    user: str
    history: Sequence[str]
    item: str
    time: float | None


@dataclass(frozen=True)
class TrainingData:
    """
    All that a library's files are made of.

    Args:
        target: name of the target domain.
        rows: (user, items) of the composite, user by user: original and regenerated sequences.
        schema: of ``interactions``.
        interactions: tables of interactions.
        validation, test: what is held out, user by user; nothing where nothing is.
        prefixes: whether each row stands once for every item that it can predict, instead of for its last one.
        directory: where the folder will lie when it is finished.

    What is called is read anew each time, a part at a time: none of it need be held whole.
    """

    target: str
    rows: Callable[[], Iterable[tuple[str, Sequence[str]]]]
    schema: pa.Schema
    interactions: Callable[[], Iterable[pa.Table]]
    validation: Callable[[], Iterable[HeldOutItem]]
    test: Callable[[], Iterable[HeldOutItem]]
    prefixes: bool
    directory: Path


@dataclass(frozen=True)
class ExportFormat:
    """
    How one format writes.

    Args:
        interactions: one file of interactions; None where the format is a folder.
        sequences: one file of sequences; None where there is none.
        folder: a library's training data into an empty folder; None where one file of interactions is all.
    """

    interactions: Encoder | None = None
    sequences: Encoder | None = None
    folder: Callable[[TrainingData, Path], None] | None = None


def interactions_schema(*, whole_times: bool = False, carried: Sequence[str] = ()) -> pa.Schema:
    """
    The schema of interactions.

    Args:
        whole_times: every time is a whole number: int64, as logs have them, else double.
        carried: columns of the input that come along, as texts.
    """
    text = pa.string()
    fields = [
        pa.field("user", text, nullable=False),
        pa.field("item", text, nullable=False),
        pa.field("timestamp", pa.int64() if whole_times else pa.float64()),
        pa.field("origin", text, nullable=False),
        pa.field("source_item", text),
        pa.field("source_domain", text),
        pa.field("score", pa.float32()),
    ]
    return pa.schema([*fields, *((name, text) for name in carried)])


def plain(value: object) -> object:
    """
    A number as people write it: whole ones without a fraction, others by seven digits where they are scores.

    >>> plain(1400000000.0), plain(0.5), plain("x"), plain(None)
    (1400000000, 0.5, 'x', None)
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain_rows(table: pa.Table) -> list[tuple[object, ...]]:
    """The rows of *table*, numbers plain; single precision is written by the digits that it has."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        values = column.to_pylist()
        if pa.types.is_float32(field.type):
            values = [None if value is None else float(f"{value:.7g}") for value in values]
        columns.append([plain(value) for value in values] if pa.types.is_floating(field.type) else values)
    return list(zip(*columns, strict=True))

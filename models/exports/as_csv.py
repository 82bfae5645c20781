"""
Comma-separated text with a header; quoted where needed, lines end with a line feed, nothing stands for null.

Every identifier is written as it is, so that what is read back is what was written. One that begins with =, +, - or @
is a formula to a spreadsheet; it is not changed, for then it would be another id (docs/files.md).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from models.exports.encoding import ExportFormat, FileParts, plain_rows


def to_csv(names: Sequence[str], rows: Iterable[Sequence[Sequence[object]]]) -> FileParts:
    """A header of *names*, then every row of every block."""
    yield _lines([names])
    for block in rows:
        if block:
            yield _lines(block)


def positions_of(tables: Iterable[pa.Table]) -> Iterator[list[tuple[str, str, int]]]:
    """(user, item, position from 1) of every item of sequences: the long form that CSV and .inter share."""
    for table in tables:
        users, items = table["user_id"].to_pylist(), table["items"].to_pylist()
        yield [
            (user, item, position)
            for user, sequence in zip(users, items, strict=True)
            for position, item in enumerate(sequence, start=1)
        ]


def _interactions(schema: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    return to_csv(schema.names, (plain_rows(table) for table in tables))


def _sequences(_: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    return to_csv(("user_id", "item_id", "timestamp"), positions_of(tables))


def _lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


FORMAT = ExportFormat(interactions=_interactions, sequences=_sequences)

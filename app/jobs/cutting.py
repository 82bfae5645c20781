"""Cuts a job's input into parts, each the rows of one chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from app.jobs.formats import BadRow, SequenceRow
from models.errors import InputFormatError

# Held in memory and written in one transaction: 17 MB of them. A compressed input of nothing else would fill both.
MAX_BAD_ROWS = 100_000


@dataclass
class ChunkRows:
    """Rows for one chunk, and what was read on the way to them."""

    rows: list[SequenceRow] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    rows_read: int = 0


def cut_rows(entries: Iterable[SequenceRow | BadRow], chunk_sequences: int) -> Iterator[ChunkRows]:
    """
    *entries* in parts of *chunk_sequences* good rows; the last may hold fewer, or only bad ones.

    Raises:
        InputFormatError: more than MAX_BAD_ROWS of them are bad on the way to one part.
    """
    part = ChunkRows()
    for entry in entries:
        if isinstance(entry, BadRow):
            if len(part.bad) == MAX_BAD_ROWS:
                raise InputFormatError(
                    f"more than {MAX_BAD_ROWS:,} bad rows among fewer than {chunk_sequences:,} good ones; the first is "
                    f"line {part.bad[0].line}: {part.bad[0].reason}"
                )
            part.bad.append(entry)
            part.rows_read += entry.num_rows
            continue
        part.rows.append(entry)
        part.rows_read += entry.num_rows
        if len(part.rows) == chunk_sequences:
            yield part
            part = ChunkRows()
    if part.rows_read:
        yield part

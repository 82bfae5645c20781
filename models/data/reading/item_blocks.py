"""Ratings in blocks, as the Netflix prize has them: a line ``ITEM:``, then a line ``user,rating,date`` each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from models.data.reading.layouts import Columns
from models.data.reading.raw_tables import BadLine, RawBatch
from models.data.reading.text_blocks import Resumed, TextBlock, TextBlocks

BLOCK_HEADER = re.compile(r"(\d+):")
NAMES = ("item", "user", "rating", "date")


class ItemBlocks:
    """
    An open table of such blocks. The line that names an item is no row of its own.

    Args:
        stream: stands at the first line, which names an item.
    """

    names: Sequence[str] = NAMES
    usual: Columns | None = None

    def __init__(self, stream: Resumed) -> None:
        self._stream = stream
        self._item = ""

    def check(self, columns: Sequence[str]) -> None:
        """See ``RawTable``: the first lines have told everything."""

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        """See ``RawTable``."""
        for block in TextBlocks(self._stream):  # type: ignore[arg-type]
            yield self._rows(block, columns)

    def _rows(self, block: TextBlock, columns: Sequence[str]) -> RawBatch:
        values: dict[str, list[bytes]] = {name: [] for name in NAMES}
        lines: list[int] = []
        bad: list[BadLine] = list(block.broken)
        texts = block.content.decode("utf-8", "surrogateescape").split("\n")
        for line, text in zip(block.lines_N.tolist(), texts, strict=False):
            header = BLOCK_HEADER.fullmatch(text.rstrip("\r"))
            if header is not None:
                self._item = header[1]
                continue
            cells = text.rstrip("\r").split(",")
            if len(cells) != len(NAMES) - 1:
                bad.append(BadLine(line, f"{len(cells)} fields instead of {len(NAMES) - 1}"))
                continue
            for name, value in zip(NAMES, (self._item, *cells), strict=True):
                values[name].append(value.encode("utf-8", "surrogateescape"))
            lines.append(line)
        bad.sort(key=lambda row: row.line)
        chosen: dict[str, pa.Array | list[object]] = {name: pa.array(values[name], pa.binary()) for name in columns}
        return RawBatch(chosen, np.array(lines, dtype=np.int64), tuple(bad), block.blank_lines)

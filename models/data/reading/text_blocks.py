"""
Text as blocks of whole lines, numbered: what CSV, ``.inter`` and JSON lines have in common.

A line ends with a line feed, before which a carriage return is passed over. Empty lines and lines that are too long are
taken out and told, so that what is left are rows; nothing depends on where one block ends and the next begins.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from models.data.reading.raw_tables import BadLine, Lines
from models.errors import InputFormatError

# Large enough that a block's dictionaries are small beside its rows, small enough to report progress.
BLOCK_BYTES = 16 << 20
MAX_LINE_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LINE_FEED, CARRIAGE_RETURN = 10, 13


@dataclass(frozen=True)
class TextBlock:
    """
    Whole lines.

    Args:
        content: the lines that may be rows; the last may lack its line feed.
        lines_N: their numbers.
        is_last: no block follows.
    """

    content: bytes
    lines_N: Lines
    blank_lines: Lines
    broken: tuple[BadLine, ...]
    is_last: bool


class TextBlocks:
    """
    Reads *stream* block by block.

    Args:
        first_line: the number of its first line.
    """

    def __init__(self, stream: BinaryIO, *, first_line: int = 1) -> None:
        self._stream = stream
        self._next_line = first_line

    def __iter__(self) -> Iterator[TextBlock]:
        rest = b""
        ended = False
        overlong: int | None = None  # bytes of a line whose end has not come, beyond what any line may have
        while not ended:
            read = self._stream.read(BLOCK_BYTES)
            ended = not read
            if overlong is not None:
                end = read.find(b"\n")
                if end < 0 and not ended:
                    continue
                read, overlong = read[end + 1 :] if end >= 0 else b"", None
                yield self._too_long(is_last=ended)
                if ended:
                    return
            content = rest + read
            cut = len(content) if ended else content.rfind(b"\n") + 1
            content, rest = content[:cut], content[cut:]
            if len(rest) > MAX_LINE_BYTES:
                rest, overlong = b"", len(rest)
            if content or ended:
                yield self._block(content, is_last=ended)

    def _too_long(self, *, is_last: bool) -> TextBlock:
        bad = BadLine(self._next_line, f"longer than {MAX_LINE_BYTES} bytes")
        self._next_line += 1
        none = np.zeros(0, dtype=np.int64)
        return TextBlock(b"", none, none, (bad,), is_last)

    def _block(self, content: bytes, *, is_last: bool) -> TextBlock:
        text = np.frombuffer(content, dtype=np.uint8)
        ends = np.flatnonzero(text == LINE_FEED)
        if len(content) and content[-1] != LINE_FEED:
            ends = np.append(ends, len(content))
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
        lengths = ends - starts
        filled = lengths > 0
        lengths[filled] -= text[ends[filled] - 1] == CARRIAGE_RETURN
        lines = np.arange(self._next_line, self._next_line + len(ends), dtype=np.int64)
        self._next_line += len(ends)
        is_blank, is_long = lengths == 0, lengths > MAX_LINE_BYTES
        odd = is_blank | is_long
        broken = tuple(BadLine(line, f"longer than {MAX_LINE_BYTES} bytes") for line in lines[is_long].tolist())
        if odd.any():
            kept = np.flatnonzero(~odd)
            places = zip(starts[kept].tolist(), ends[kept].tolist(), strict=True)
            content = b"".join(content[start:end] + b"\n" for start, end in places)
        return TextBlock(content, lines[~odd], lines[is_blank], broken, is_last)


class Resumed(io.RawIOBase):
    """A stream whose first lines, *head*, were read: given back."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        head, self._head = self._head, b""
        return head + self._stream.read(-1 if size is None else size)


def first_line(stream: BinaryIO) -> bytes:
    """
    The first line without its end or a byte order mark; *stream* stands after it.

    Raises:
        InputFormatError: there is none, or it is empty or longer than a line may be.
    """
    line = stream.readline(MAX_LINE_BYTES)
    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
        raise InputFormatError(f"line 1 is longer than {MAX_LINE_BYTES} bytes")
    line = line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
    if not line.strip():
        raise InputFormatError("empty, or its first line is; expected a header or a row")
    return line

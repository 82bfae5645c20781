"""What a format makes of a file: a table whose columns have names, read a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.data.reading.layouts import Columns, Layout
from models.errors import InputTooLargeError

Lines = npt.NDArray[np.int64]
BLANK = "empty line"


@dataclass(frozen=True)
class BadLine:
    """One row that cannot be used: its 1-based line (in Parquet, row), why, and its file where there are several."""

    line: int
    reason: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file + ' ' if self.file else ''}line {self.line}: {self.reason}"


@dataclass
class Budget:
    """
    What reading one input may cost; counted down while it is read.

    Args:
        expanded_bytes: left, after decompression and decoding; None without end.
    """

    expanded_bytes: int | None = None
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.limit = self.expanded_bytes or 0

    def spend(self, num_bytes: int) -> None:
        """Raise InputTooLargeError when more is spent than there is."""
        if self.expanded_bytes is None:
            return
        self.expanded_bytes -= num_bytes
        self.allow(0)

    def allow(self, num_bytes: int) -> None:
        """Raise InputTooLargeError when *num_bytes* are more than is left; spends nothing."""
        if self.expanded_bytes is not None and num_bytes > self.expanded_bytes:
            raise InputTooLargeError("the input expands to more bytes", self.limit)


@dataclass(frozen=True)
class RawBatch:
    """
    Some rows of a table, as they stand.

    Args:
        columns: arrays of N values, or lists of Python's, by name.
        lines_N: 1-based line of each row.
        broken: lines that are no row of the table.
        blank_lines: lines that hold nothing.
    """

    columns: dict[str, pa.Array | list[object]]
    lines_N: Lines
    broken: tuple[BadLine, ...] = ()
    blank_lines: Lines = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class RawTable(Protocol):
    """An open table."""

    @property
    def names(self) -> Sequence[str]:
        """Names of its columns."""
        ...

    @property
    def usual(self) -> Columns | None:
        """The format's own names, which come before the well-known ones."""
        ...

    def check(self, columns: Sequence[str]) -> None:
        """Raise at once what ``batches`` would before its first row."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        """All rows in order, with *columns*; several batches, none of them large."""
        ...


class InputFormat(Protocol):
    """One way to write a table into a file: one module, and one line in ``INPUT_FORMATS``."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of names, in lower case."""
        ...

    def open(self, file: BinaryIO, layout: Layout, budget: Budget) -> RawTable:
        """
        Look at the beginning of *file*, which stays open until the table has been read.

        Raises:
            InputFormatError: it is no such table.
            InputTooLargeError: it is larger than *budget*.
        """
        ...

"""
What preparing an input will cost, told before it is read: rows, memory, disk.

Parquet says how many rows it has; of text the first part is looked at. So rows of text are an estimate, and of packed
text a rough one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.out_of_core.memory_share import BASE_BYTES
from models.data.reading.compression import expanded
from models.data.reading.input_formats import PARQUET_MAGIC
from models.data.reading.places import InputFile
from models.data.reading.raw_tables import Budget
from models.errors import DiskTooSmallError, InputFormatError
from models.memory_sizes import size_text

# Measured (docs/scale.md): of a preparation in memory; beside the output while one out of core runs; rows a second.
MEMORY_BYTES_A_ROW = 150
DISK_BYTES_A_ROW = 110
ROWS_A_SECOND = 150_000
_FILES_LOOKED_AT = 16
_BYTES_LOOKED_AT = 8 << 20
_BYTES_A_ROW = 40


@dataclass(frozen=True)
class Forecast:
    """
    What an input will cost.

    Args:
        rows: about so many.
        in_memory_bytes: of a preparation in memory.
        disk_bytes: beside the output, of a preparation out of core, output included.
    """

    rows: int
    in_memory_bytes: int
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """Of processor time, of a preparation out of core, on a machine like the one that was measured."""
        return self.rows / ROWS_A_SECOND

    def check_disk(self, out: Path) -> None:
        """Raise DiskTooSmallError where the disk of *out* has too little left."""
        folder = next(parent for parent in out.resolve().parents if parent.exists())
        free = shutil.disk_usage(folder).free
        if self.disk_bytes > free:
            raise DiskTooSmallError(
                f"about {self.rows:,} rows need about {size_text(self.disk_bytes)} of disk beside {out}, and "
                f"{folder} has {size_text(free)} left: name an OUT on a larger disk, or make room there"
            )


def forecast_of(files: Sequence[InputFile]) -> Forecast:
    """The cost of *files*: of many, the largest are looked at, and the others are taken to be like them."""
    largest = sorted(files, key=lambda file: file.num_bytes, reverse=True)[:_FILES_LOOKED_AT]
    rows = sum(map(_rows_of, largest))
    looked_at = max(1, sum(file.num_bytes for file in largest))
    rows = rows * max(looked_at, sum(file.num_bytes for file in files)) // looked_at
    return Forecast(rows, BASE_BYTES + rows * MEMORY_BYTES_A_ROW, rows * DISK_BYTES_A_ROW)


def _rows_of(file: InputFile) -> int:
    try:
        with file.open() as content:
            head = content.read(len(PARQUET_MAGIC))
            content.seek(0)
            if head == PARQUET_MAGIC:
                return int(pq.read_metadata(content).num_rows)
            stream, lines, num_bytes = expanded(content, Budget()), 0, 0
            while num_bytes < _BYTES_LOOKED_AT:
                block = stream.read(_BYTES_LOOKED_AT)
                if not block:
                    return lines
                lines += block.count(b"\n")
                num_bytes += len(block)
            # How much of the file was read for it, about
            return lines * file.num_bytes // max(1, content.tell())
    except (InputFormatError, OSError, pa.ArrowException):
        return file.num_bytes // _BYTES_A_ROW  # reading will say what is wrong

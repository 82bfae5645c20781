"""How much memory a preparation may have, and what of it goes where."""

from __future__ import annotations

import os
from dataclasses import dataclass

from models.errors import ConfigurationError
from models.memory_sizes import size_text

# Of the interpreter and its libraries, before a row is read.
BASE_BYTES = 200 * 10**6
LEAST_BYTES = 500 * 10**6
# Of a chunk while it is sorted.
BYTES_A_ROW = 200
# Of an item from end to end: what is known of every item is held, its id is not.
BYTES_AN_ITEM = 60


@dataclass(frozen=True)
class MemoryShare:
    """
    What a preparation out of core holds at a time.

    Args:
        engine_bytes: of the engine that spills.
        engine_threads: of it; each needs memory of its own.
        chunk_rows: rows that are sorted at a time; a chunk holds whole users.
    """

    engine_bytes: int
    engine_threads: int
    chunk_rows: int

    @classmethod
    def of(cls, num_bytes: int, threads: int | None = None) -> MemoryShare:
        """
        The parts of *num_bytes* for the whole process.

        Raises:
            ConfigurationError: they are too few.
        """
        if num_bytes < LEAST_BYTES:
            raise ConfigurationError(
                f"--memory {size_text(num_bytes)} is too little: the program itself takes {size_text(BASE_BYTES)}, and "
                f"{size_text(LEAST_BYTES)} is the least"
            )
        # The engine has ended its work before the first chunk is sorted, yet the system may not have its memory back.
        free = num_bytes - BASE_BYTES
        engine = free // 2
        cores = threads or os.cpu_count() or 1
        return cls(engine, max(1, min(cores, engine // (128 << 20))), max(1, free // 2 // BYTES_A_ROW))

    def check_items(self, num_items: int) -> None:
        """
        Raise ConfigurationError where what is known of so many items does not fit.

        Chunks and items are held at the same time: the items may have the engine's part.
        """
        needed = num_items * BYTES_AN_ITEM
        if needed > self.engine_bytes:
            raise ConfigurationError(
                f"{num_items:,} items take {size_text(needed)} ({BYTES_AN_ITEM} bytes each): give more --memory"
            )

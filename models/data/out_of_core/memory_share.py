"""How much memory a preparation may have, and what of it goes where."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigurationError

# Of the interpreter and its libraries, before a row is read.
BASE_BYTES = 200 * 10**6
LEAST_BYTES = 500 * 10**6
# Of a chunk while it is sorted.
BYTES_A_ROW = 200
# Of an item from end to end: what is known of every item is held, its id is not.
BYTES_AN_ITEM = 60
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 1 << 10 * power for power, unit in enumerate("KMGT", start=1)}
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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


def available_bytes() -> int:
    """Memory that this process may take: what the machine has free, or its container's limit where that is less."""
    found = [_of_machine(), *filter(None, map(_of_cgroup, _CGROUPS))]
    return min(found)


def _of_machine() -> int:
    try:
        memory = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(memory.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_cgroup(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def parse_size(text: str) -> int:
    """
    Bytes of a size as people write it.

    Raises:
        ConfigurationError: it is none.

    >>> parse_size("1GB"), parse_size("512 MiB"), parse_size("1.5g")
    (1000000000, 536870912, 1500000000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise ConfigurationError(f"{text!r} is no size of memory, such as 1GB, 800MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(num_bytes: float) -> str:
    """
    A size in three digits.

    >>> size_text(130), size_text(2_640_000_000)
    ('130 B', '2.64 GB')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"

"""How much memory there is, and sizes as people read and write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from models.errors import ConfigurationError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 1 << 10 * power for power, unit in enumerate("KMGT", start=1)}
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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

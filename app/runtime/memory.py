"""How long-running processes keep memory: what the C library returns, and what Python does not look through again."""

from __future__ import annotations

import ctypes
import gc
import sys

_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BYTES = 128 * 1024


def return_large_blocks() -> bool:
    """
    Let every freed block of LARGE_BYTES go back to the system at once; False where the C library cannot.

    glibc learns from the first large block that is freed to keep such blocks, so that bodies of 8 MiB that came at the
    same time leave a heap full of holes: after sixty of them 92 MB more than before, and 15 MB so.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, LARGE_BYTES) == 1


def settle_heap() -> None:
    """
    Leave all that there is now out of every later search for cycles; to be called when a process has started.

    Of half a million objects that the imports left, a full search held up every request for 0.6 s, and a
    download of a large dictionary makes Python begin one. None is made here either: it would find some fifty objects,
    and cost its time at every start of the service and of a model's process.
    """
    gc.freeze()

"""
Files of chunks. Their names, which SQL keeps, hold a digest of their content.

So a repeated or simultaneous attempt writes the same file, and one that is missing, damaged or swapped is found when it
is read, before anything is made of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

from app.errors import ResultDamagedError
from app.storage.job_files import Storage

DIGEST_LENGTH = 32  # hexadecimal digits of SHA-256
# A result of up to so many bytes is read once, larger ones again while they are sent: no more than this is in memory.
HELD_BYTES = 8 * 1024**2


class ChunkFileDamagedError(Exception):
    """A chunk's file does not hold what was written."""


def write_chunk_file(
    storage: Storage, job_id: str, side: Literal["input", "output"], chunk_index: int, content: bytes
) -> str:
    """Put a chunk's input or output where ``read_chunk_file`` finds it; its name inside the job's folder."""
    name = f"{side}/{chunk_index:08d}-{_digest(content)}.parquet"
    storage.write(f"{job_id}/{name}", content)
    return name


def read_chunk_file(storage: Storage, job_id: str, name: str) -> bytes:
    """
    The content that was written under *name*.

    Raises:
        FileNotFoundError: there is no such file.
        ChunkFileDamagedError: it holds something else.
        FilesUnavailableError: the storage does not answer.
    """
    content = storage.read(f"{job_id}/{name}")
    if name.removesuffix(".parquet").rpartition("-")[2] != _digest(content):
        raise ChunkFileDamagedError(f"{name} is damaged")
    return content


def read_result(storage: Storage, job_id: str, names: Sequence[str]) -> Iterator[bytes]:
    """
    The contents of a job's output files, one after the other. Every file is checked before this returns.

    Raises:
        ResultDamagedError: a file is missing or damaged; from the iterator, should that happen later.
        FilesUnavailableError: the storage does not answer.
    """
    held: list[bytes] = []
    num_bytes = 0
    for name in names:
        content = _read_output(storage, job_id, name)
        num_bytes += len(content)
        if num_bytes <= HELD_BYTES:
            held.append(content)
    return _contents(storage, job_id, held, names[len(held) :])


def _contents(storage: Storage, job_id: str, held: list[bytes], names: Sequence[str]) -> Iterator[bytes]:
    yield from held
    for name in names:
        yield _read_output(storage, job_id, name)


def _read_output(storage: Storage, job_id: str, name: str) -> bytes:
    try:
        return read_chunk_file(storage, job_id, name)
    except (FileNotFoundError, ChunkFileDamagedError) as error:
        raise ResultDamagedError(
            f"the file {name} of job {job_id}'s result is missing or damaged; submit the job again"
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]

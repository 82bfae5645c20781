"""A folder of temporary files beside an output: it goes when the work ends or, after a kill, when the next begins."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import ConfigurationError

SUFFIX = ".work"
_LOCK = "lock"


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """
    A new folder ``.NAME.HEX.work`` beside *out*, removed at the end.

    The folders that killed preparations of the same *out* left are removed first: a lock in each tells whether its
    process lives.

    Raises:
        ConfigurationError: the path holds what the engine would take for a pattern.
    """
    parent = out.parent.resolve()
    if any(character in str(parent) for character in "*?["):
        raise ConfigurationError(f"{parent}: out of core, no folder above OUT may be called by *, ? or [")
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{_escaped(out.name)}.*{SUFFIX}"):
        _remove_if_abandoned(left)
    folder = parent / f".{uuid.uuid4().hex}{SUFFIX}.new"
    folder.mkdir()
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        named = folder.with_name(f".{out.name}.{uuid.uuid4().hex}{SUFFIX}")
        folder = folder.rename(named)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _remove_if_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(lock)

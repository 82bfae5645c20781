"""Files and folders that are written whole or not at all, and never over somebody else's."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import OutputExistsError

PARTIAL_SUFFIX = ".partial"


def check_replaceable(out: Path, *, what: str, required: frozenset[str], ours: Callable[[str], bool]) -> None:
    """
    Whether *out* may be written: it is absent, empty, or an earlier output of the same kind and nothing else.

    Args:
        out: the folder to write.
        what: the kind of output, for the message.
        required: names that every output of this kind holds.
        ours: whether a name belongs to this kind of output.

    Raises:
        OutputExistsError: it holds other files, which replacing it would delete.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out}: exists and is a file; name another folder")
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if not ours(name)]
    if foreign or (names and not required <= set(names)):
        found = f" (it holds {foreign[0]!r})" if foreign else ""
        raise OutputExistsError(f"{out}: exists and is not {what}{found}; it will not be replaced")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """
    Give a name beside *path* to write to; the file written takes its place at the end, or vanishes on any error.

    Once this has returned, the file is on the disk, name and content, and stays there through a power cut. A kill in
    between leaves ``.NAME.HEX.partial``. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replace_folder(out: Path, *, durable: bool = False) -> Iterator[Path]:
    """
    Give a new folder beside *out* to fill; it takes its place at the end, or vanishes on any error.

    With *durable*, files that lie in it directly are on the disk before it takes its place, and its name once this has
    returned.

    At every moment the former folder, the new one or both are whole: the former is moved aside, not deleted, until
    the new one stands. A kill in between leaves it as ``.NAME.HEX.former``.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    folder, former = (out.parent / f".{out.name}.{unique}{suffix}" for suffix in (PARTIAL_SUFFIX, ".former"))
    folder.mkdir()
    try:
        yield folder
        if durable:
            for path in (*folder.iterdir(), folder):
                _sync(path)
        if out.exists():
            out.rename(former)
        folder.rename(out)
    except BaseException:
        if former.exists() and not out.exists():
            former.rename(out)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if durable:
        _sync(out.parent)
    shutil.rmtree(former, ignore_errors=True)

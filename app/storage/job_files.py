"""
The place of jobs' files: a local folder or an object store, through fsspec.

A file appears whole or not at all, and stays once ``write`` has returned: locally it is written beside its final name,
synced and renamed; object stores do the same by their nature. Local files and folders are readable by the service's
user only. Names are given by the caller relative to the root.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from app.errors import FilesUnavailableError
from app.storage.private import PRIVATE_FILE, PRIVATE_FOLDER, make_private_folder
from models.files import PARTIAL_SUFFIX, replace_file

COPY_BYTES = 1 << 20
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Storage:
    """
    Files under one root.

    Args:
        uri: a local path, or a URI such as ``s3://bucket/prefix`` whose fsspec backend is installed.
        on_outage: told of every call that it did not answer, or was too full for.
    """

    def __init__(self, uri: str, *, on_outage: Callable[[], None] = lambda: None) -> None:
        self._on_outage = on_outage
        self._filesystem, root = url_to_fs(uri)
        self._root = str(root).rstrip("/")
        self._local = "file" in _protocols(self._filesystem.protocol)
        self._root_was_made = False

    def write(self, name: str, content: bytes) -> None:
        """Put *content* under *name*, replacing what was there; raises FilesUnavailableError."""
        with self._storage_errors():
            if self._local:
                with _private_file(self._make_folder_of(name)) as file:
                    file.write(content)
            else:
                self._filesystem.pipe_file(self._path(name), content)

    def write_stream(self, name: str, source: BinaryIO) -> None:
        """
        Put all that *source* still holds under *name*; never more than 1 MiB of it in memory.

        Raises:
            FilesUnavailableError: the storage does not answer, or is full.
        """
        with self._storage_errors():
            if self._local:
                with _private_file(self._make_folder_of(name)) as file:
                    shutil.copyfileobj(source, file, COPY_BYTES)
            else:
                with self._filesystem.open(self._path(name), "wb") as file:
                    shutil.copyfileobj(source, file, COPY_BYTES)

    def read(self, name: str) -> bytes:
        """The content of *name*; raises FileNotFoundError, FilesUnavailableError."""
        with self._storage_errors():
            return bytes(self._filesystem.cat_file(self._path(name)))

    def open(self, name: str) -> BinaryIO:
        """Open *name* for reading; raises FileNotFoundError, FilesUnavailableError."""
        with self._storage_errors():
            return cast(BinaryIO, self._filesystem.open(self._path(name), "rb"))

    def size(self, name: str) -> int:
        """Bytes of *name*; raises FileNotFoundError, FilesUnavailableError."""
        with self._storage_errors():
            return int(self._filesystem.size(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """The names of every file below *folder*, relative to it, sorted; none when there is no such folder."""
        self._filesystem.invalidate_cache()
        with self._storage_errors():
            try:
                found = self._filesystem.find(self._path(folder))
            except FileNotFoundError:
                return []
        return sorted(str(path).removeprefix(f"{self._path(folder)}/") for path in found)

    def delete_folder(self, name: str) -> None:
        """Remove every file whose name begins with ``name/``; does nothing when there is none."""
        path = self._path(name)
        if self._local:
            shutil.rmtree(path, ignore_errors=True)
        elif self._filesystem.exists(path):
            self._filesystem.rm(path, recursive=True)

    def folders(self) -> list[str]:
        """The folders directly under the root, sorted."""
        if not self._filesystem.exists(self._root):
            return []
        self._filesystem.invalidate_cache()
        entries = self._filesystem.ls(self._root, detail=True)
        return sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def check(self) -> None:
        """Raise FilesUnavailableError unless files can be written (on an object store: looked for)."""
        if not self._local:
            with self._storage_errors():
                self._filesystem.exists(self._root)
            return
        name = f".check-{uuid.uuid4().hex}"
        self.write(name, bytes(os.sysconf("SC_PAGE_SIZE")))  # a full disk still has room for an empty file
        Path(self._path(name)).unlink(missing_ok=True)

    def _make_folder_of(self, name: str) -> Path:
        """The path of *name*, its folder made. The root is made once: if it vanishes later, nothing takes its place."""
        root, path = Path(self._root), Path(self._path(name))
        if not self._root_was_made:
            make_private_folder(root)
            self._root_was_made = True
        if not root.is_dir():
            raise FileNotFoundError(root)
        folder = root
        for part in path.parent.relative_to(root).parts:
            folder /= part
            folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
        return path

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if not self._local or Path(self._root).is_dir():
                raise
            self._on_outage()
            raise FilesUnavailableError("the folder of jobs' files is not there") from error
        except OSError as error:
            self._on_outage()
            reason = error.strerror or type(error).__name__
            raise FilesUnavailableError(f"jobs' files cannot be read or written: {reason}") from error
        except Exception as error:  # the client of an object store raises what it likes
            if self._local:
                raise
            self._on_outage()
            raise FilesUnavailableError(f"jobs' files cannot be read or written: {type(error).__name__}") from error

    def _path(self, name: str) -> str:
        assert ".." not in name.split("/")
        return f"{self._root}/{name}"


@contextmanager
def _private_file(path: Path) -> Iterator[BinaryIO]:
    """A file for *path*, readable by this user only, that gets its name when it is complete and on the disk."""
    with replace_file(path) as partial, os.fdopen(os.open(partial, NEW_FILE, PRIVATE_FILE), "wb") as file:
        yield file


def is_partial_of(name: str, other: str) -> bool:
    """Whether *other* is what has arrived so far of the file *name*."""
    folder, _, last = name.rpartition("/")
    return other.startswith(f"{folder}/.{last}.") and other.endswith(PARTIAL_SUFFIX)


def _protocols(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else protocol

"""
The place of jobs' files: a local folder or an object store, through fsspec.

A file appears whole or not at all, and stays once ``write`` has returned: locally it is written beside its final name,
synced and renamed; object stores do the same by their nature. Names are given by the caller relative to the root.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from models.files import replace_file

COPY_BYTES = 1 << 20


class Storage:
    """
    Files under one root.

    Args:
        uri: a local path, or a URI such as ``s3://bucket/prefix`` whose fsspec backend is installed.
    """

    def __init__(self, uri: str) -> None:
        self._filesystem, root = url_to_fs(uri)
        self._root = str(root).rstrip("/")
        self._local = "file" in _protocols(self._filesystem.protocol)

    def write(self, name: str, content: bytes) -> None:
        """Put *content* under *name*, replacing what was there."""
        if self._local:
            with replace_file(Path(self._path(name))) as partial:
                partial.write_bytes(content)
        else:
            self._filesystem.pipe_file(self._path(name), content)

    def write_stream(self, name: str, source: BinaryIO) -> None:
        """Put all that *source* still holds under *name*; never more than 1 MiB of it in memory."""
        if self._local:
            with replace_file(Path(self._path(name))) as partial, partial.open("wb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)
        else:
            with self._filesystem.open(self._path(name), "wb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)

    def read(self, name: str) -> bytes:
        """The content of *name*; raises FileNotFoundError."""
        return bytes(self._filesystem.cat_file(self._path(name)))

    def open(self, name: str) -> BinaryIO:
        """Open *name* for reading; raises FileNotFoundError."""
        return cast(BinaryIO, self._filesystem.open(self._path(name), "rb"))

    def size(self, name: str) -> int:
        """Bytes of *name*; raises FileNotFoundError."""
        return int(self._filesystem.size(self._path(name)))

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

    def _path(self, name: str) -> str:
        assert ".." not in name.split("/")
        return f"{self._root}/{name}"


def _protocols(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else protocol

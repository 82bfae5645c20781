"""Where a job's input may come from: the allow-list of URIs, and opening what it admits."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from app.errors import InvalidSourceError, RequestTooLargeError, SourceNotAllowedError, SourceNotFoundError
from app.jobs.formats import SourceLimits

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)(/.*)?", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A place that the allow-list admits."""

    filesystem: Any
    path: str
    name: str


@dataclass(frozen=True)
class SourceRoots:
    """
    The allow-list: jobs may read what lies under one of these URIs, nothing else.

    Args:
        roots: URIs of folders, e.g. ``file:///data/in`` or ``s3://bucket/logs``; none admits uploads only.
    """

    roots: tuple[str, ...]

    def resolve(self, uri: str) -> Source:
        """
        Admit *uri* or refuse it, before anything is read.

        Raises:
            InvalidSourceError: not a plain ``scheme://host/path`` URI, or its path climbs.
            SourceNotAllowedError: under none of the roots, also by way of a symbolic link.
            SourceNotFoundError: its symbolic links run in a circle.
        """
        scheme = _check_uri(uri)
        root = next((r for r in map(_without_slash, self.roots) if uri.startswith(f"{r}/")), None)
        if root is None:
            raise SourceNotAllowedError(uri)
        if scheme == "file":
            try:
                real = Path(uri.removeprefix("file://")).resolve()
            except RuntimeError as error:  # links in a circle
                raise SourceNotFoundError(f"{uri}: symbolic links in a circle") from error
            if not real.is_relative_to(Path(root.removeprefix("file://")).resolve()):
                raise SourceNotAllowedError(uri)
        try:
            filesystem, path = url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise InvalidSourceError(f"{uri}: this installation cannot read {scheme}://: {error}") from error
        return Source(filesystem, str(path), posixpath.basename(uri))

    def open(self, uri: str, limits: SourceLimits) -> BinaryIO:
        """
        Open what *uri* names for reading.

        Raises:
            InvalidSourceError, SourceNotAllowedError: see ``resolve``.
            SourceNotFoundError: see there; there is no such file, or it may not be read.
            RequestTooLargeError: it has more bytes than the limit.
        """
        source = self.resolve(uri)
        try:
            if not source.filesystem.isfile(source.path):
                raise SourceNotFoundError(f"{uri}: no such file")
            check_size(int(source.filesystem.size(source.path)), limits)
            return cast(BinaryIO, source.filesystem.open(source.path, "rb"))
        except OSError as error:
            raise SourceNotFoundError(f"{uri}: cannot be read: {type(error).__name__}") from error


def check_size(num_bytes: int, limits: SourceLimits) -> None:
    """Raise RequestTooLargeError when a file of *num_bytes* is over the limit."""
    if num_bytes > limits.max_bytes:
        raise RequestTooLargeError(f"the input has {num_bytes} bytes", limits.max_bytes, "TAESAR_MAX_INPUT_BYTES")


def _check_uri(uri: str) -> str:
    match = _URI.fullmatch(uri)
    if match is None:
        raise InvalidSourceError(f"{uri!r} is not a URI such as file:///folder/file.ndjson")
    scheme, host, path = match[1], match[2], match[3] or ""
    if "::" in uri or any(c in uri for c in "\\%?#") or "@" in host or not uri.isprintable():
        raise InvalidSourceError(f"{uri!r}: no chains (::), escapes (%), queries, user names or control characters")
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise InvalidSourceError(f"{uri!r}: the path holds an empty part, '.' or '..'")
    if scheme == "file" and host:
        raise InvalidSourceError(f"{uri!r}: a file URI has three slashes and no host")
    return scheme


def _without_slash(root: str) -> str:
    return root.rstrip("/")

"""
Where a job's input may come from: the allow-list of URIs, and opening what it admits.

A local file is opened first, and what was opened is then checked by its descriptor: whatever a symbolic link pointed to
a moment before, nothing outside the roots is read.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from app.errors import (
    InvalidSourceError,
    RequestTooLargeError,
    ServiceError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from app.jobs.formats import SourceLimits
from models.data.reading.places import InputFile, facts_of, is_data, with_named_domains

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)(/.*)?", re.DOTALL)
_DOMAIN = re.compile(r"([^=/:]+)=([a-z][a-z0-9+.-]*://.*)", re.DOTALL)
MAX_FILES = 10_000
"""Files of one job, so that a folder of millions is refused and not listed for minutes."""


@dataclass(frozen=True)
class Source:
    """
    A place that the allow-list admits.

    Args:
        root: the folder that admits it, as the filesystem writes paths.
    """

    filesystem: Any
    path: str
    name: str
    root: str
    is_local: bool


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
        except Exception as error:  # a reader raises what it likes, over a setting that it misses, say
            reason = f"{uri}: this installation cannot read {scheme}://: {type(error).__name__}"
            raise InvalidSourceError(reason) from error
        below = root.removeprefix("file://") if scheme == "file" else root
        return Source(filesystem, str(path), posixpath.basename(uri), below, scheme == "file")

    def open(self, uri: str, limits: SourceLimits) -> BinaryIO:
        """
        Open what *uri* names for reading.

        Raises:
            InvalidSourceError, SourceNotAllowedError: see ``resolve``.
            SourceNotFoundError: see there; there is no such file, or it may not be read.
            RequestTooLargeError: it has more bytes than the limit.
        """
        return _open(uri, self.resolve(uri), limits)

    def files(self, places: Sequence[str], limits: SourceLimits) -> list[InputFile]:
        """
        Every file that *places* stand for: URIs of files, folders or globs, each perhaps with ``DOMAIN=`` before it.

        Raises:
            InvalidSourceError, SourceNotAllowedError, SourceNotFoundError: see ``open``; of files later, when opened.
            RequestTooLargeError: they have more bytes than the limit together, or are more than MAX_FILES.
        """
        files: list[InputFile] = []
        for place in places:
            match = _DOMAIN.fullmatch(place)
            domain, uri = (match[1], match[2]) if match else (None, place)
            source = self.resolve(uri)
            with _reader_errors(uri):
                for path in self._paths(source):
                    files.append(_input_file(uri, source, path, domain, limits))
                    if len(files) > MAX_FILES:
                        raise RequestTooLargeError(
                            f"the input has more than {MAX_FILES} files", MAX_FILES, "a constant"
                        )
            if not files:
                raise SourceNotFoundError(f"{uri}: no such file")
        check_size(sum(file.num_bytes for file in files), limits)
        return with_named_domains(files)

    def _paths(self, source: Source) -> Iterable[str]:
        """The file, those of the folder, or those that match; by name, without what is no data."""
        filesystem, path = source.filesystem, source.path
        if filesystem.isfile(path):
            return [path]
        if filesystem.isdir(path):
            return sorted(file for file in map(str, filesystem.find(path)) if is_data(file, path))
        if not any(character in path for character in "*["):
            return []
        # Matched here against what lies below the fixed part: a backend's own globbing may follow links anywhere.
        fixed = posixpath.dirname(re.split(r"[*\[]", path, maxsplit=1)[0])
        found = sorted(map(str, filesystem.find(fixed))) if filesystem.isdir(fixed) else []
        return [file for file in found if _matches(file, path) and is_data(file, fixed)]


def check_size(num_bytes: int, limits: SourceLimits) -> None:
    """Raise RequestTooLargeError when a file of *num_bytes* is over the limit."""
    if num_bytes > limits.max_bytes:
        raise RequestTooLargeError(f"the input has {num_bytes} bytes", limits.max_bytes, "TAESAR_MAX_INPUT_BYTES")


def _matches(file: str, pattern: str) -> bool:
    """Part by part, so that a star is no slash; a folder that matches stands for all below it."""
    parts, wanted = file.split("/"), pattern.split("/")
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _input_file(uri: str, source: Source, path: str, domain: str | None, limits: SourceLimits) -> InputFile:
    name = source.name if path == source.path else posixpath.relpath(path, posixpath.dirname(source.path))
    size = int(source.filesystem.size(path) or 0)
    one = Source(source.filesystem, path, name, source.root, source.is_local)
    return InputFile(facts_of(posixpath.basename(name), path, domain), partial(_open, uri, one, limits), size)


def _open(uri: str, source: Source, limits: SourceLimits) -> BinaryIO:
    with _reader_errors(uri):
        if source.is_local:
            return _open_local(uri, source, limits)
        if not source.filesystem.isfile(source.path):
            raise SourceNotFoundError(f"{uri}: no such file")
        check_size(int(source.filesystem.size(source.path)), limits)
        return cast(BinaryIO, source.filesystem.open(source.path, "rb"))


@contextmanager
def _reader_errors(uri: str) -> Iterator[None]:
    """What a reader raises, which may be anything where it is not of this machine, as a source that cannot be read."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        raise SourceNotFoundError(f"{uri}: cannot be read: {type(error).__name__}") from error


def _open_local(uri: str, source: Source, limits: SourceLimits) -> BinaryIO:
    # Without waiting for the other end, should it be a pipe.
    descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceNotFoundError(f"{uri}: no such file")
        if not _path_of(descriptor, source.path).is_relative_to(Path(source.root).resolve()):
            raise SourceNotAllowedError(uri)
        check_size(status.st_size, limits)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _path_of(descriptor: int, opened: str) -> Path:
    """The path, without links, of the very file that is open."""
    if sys.platform == "linux":
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    real = Path(opened).resolve()
    if not os.path.samestat(real.stat(), os.fstat(descriptor)):
        raise FileNotFoundError(opened)
    return real


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

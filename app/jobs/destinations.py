"""
Where a job's result may go besides its own storage: the allow-list of URIs, and writing what it admits.

A file appears whole or not at all. Locally it is written beside its name, synced and renamed; for an object store it is
made in a temporary file first and then sent, and such stores show nothing before all of it has arrived.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.errors import (
    DestinationNotAllowedError,
    FilesUnavailableError,
    InvalidSourceError,
    SourceNotAllowedError,
    UnsupportedFormatError,
)
from app.jobs.sources import SourceRoots
from models.exports.export_formats import FILE_FORMATS, FileFormatName, load_format
from models.files import replace_file

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class DestinationRoots:
    """
    The allow-list: results may be written under one of these URIs, nowhere else.

    Args:
        roots: URIs of folders, e.g. ``file:///data/out`` or ``s3://bucket/results``; none admits downloads only.
    """

    roots: tuple[str, ...]

    def check(self, uri: str) -> None:
        """
        Whether *uri* may be written.

        Raises:
            InvalidSourceError: not a plain ``scheme://host/path`` URI, or its path climbs.
            DestinationNotAllowedError: under none of the roots, also by way of a symbolic link.
        """
        try:
            SourceRoots(self.roots).resolve(uri)
        except SourceNotAllowedError as error:
            raise DestinationNotAllowedError(uri) from error

    def write(self, uri: str, parts: Iterable[bytes]) -> None:
        """
        Put *parts* under *uri*, replacing what was there.

        Raises:
            InvalidSourceError, DestinationNotAllowedError: see ``check``; a name is too long for the file system.
            FilesUnavailableError: it cannot be written now; nothing of it is there.
        """
        self.check(uri)
        target = SourceRoots(self.roots).resolve(uri)
        try:
            if target.is_local:
                with replace_file(Path(target.path)) as partial, partial.open("wb") as file:
                    file.writelines(parts)
                return
            with tempfile.NamedTemporaryFile() as file:
                file.writelines(parts)
                file.flush()
                target.filesystem.put_file(file.name, target.path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno == errno.ENAMETOOLONG:  # no waiting makes it shorter
                raise InvalidSourceError(
                    f"the result cannot be written to {uri[:SHOWN_CHARACTERS]}...: {reason}"
                ) from error
            raise FilesUnavailableError(f"the result cannot be written to {uri}: {reason}") from error


def format_of_result(uri: str, stated: FileFormatName | None, view: str | None) -> FileFormatName:
    """
    The format that was *stated*, else the one that *uri* ends with.

    Raises:
        UnsupportedFormatError: neither says one, or it has no such *view*.
    """
    by_suffix = sorted(FILE_FORMATS, key=lambda name: -len(FILE_FORMATS[name].suffix))
    found = stated or next((name for name in by_suffix if uri.endswith(FILE_FORMATS[name].suffix)), None)
    if found is None:
        raise UnsupportedFormatError(f"{uri!r} ends with none of the results' formats; state result_format")
    chosen = load_format(found)
    if (view == "sequences" and chosen.sequences is None) or (view == "interactions" and chosen.interactions is None):
        raise UnsupportedFormatError(f"format {found!r} has no view {view!r}")
    return found

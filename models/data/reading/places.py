"""
Where inputs lie: files, folders, globs, partitions and object stores, each file with what its place says of it.

An input is a place, perhaps with a domain before it: ``books=ratings_Books.csv``. A folder stands for all files in it;
names that begin with ``_`` or ``.`` (``_SUCCESS``, ``.part.crc``) are not data. A folder called ``key=value`` is a
column of the files below. Places with ``://`` are read through fsspec, whose backend must be installed.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from models.data.reading.input_formats import stem_and_suffix
from models.data.reading.rows import FileFacts
from models.errors import InputFormatError

_MAGIC = re.compile(r"[*?\[]")
# Names that say which part of a whole a file is, or that it holds a log: of every domain they are the same.
_PART = re.compile(
    r"(part|data|chunk|file|shard)?[-_.]?[0-9][0-9a-f_.-]*.*|part|data|chunk|file|shard"
    r"|ratings?|reviews?|interactions?|events?|clicks?|logs?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class InputFile:
    """
    A file to read.

    Args:
        open: opens it for reading bytes, with ``seek``.
        num_bytes: as stored.
        path: where it lies, if that is this machine.
    """

    facts: FileFacts
    open: Callable[[], BinaryIO]
    num_bytes: int
    path: Path | None = None


def files_of(inputs: Sequence[str | Path]) -> list[InputFile]:
    """
    Every file that *inputs* stand for: in their order, those of a folder or a glob by name.

    Raises:
        InputFormatError: one of them stands for none, two for the same one, or no installed reader knows the scheme.
    """
    files: list[InputFile] = []
    for text in inputs:
        domain, place = (None, str(text)) if isinstance(text, Path) else split_domain(text)
        files += _remote_files(place, domain) if "://" in place else _local_files(place, domain)
    seen: set[str] = set()
    for file in files:
        if file.facts.name in seen:
            raise InputFormatError(f"{file.facts.name} is named twice; its rows would count twice")
        seen.add(file.facts.name)
    return with_named_domains(files)


def with_named_domains(files: list[InputFile]) -> list[InputFile]:
    """*files*, whose names say their domains only if they say several: one name for all would be a guess."""
    if len({file.facts.fallback_domain for file in files}) > 1:
        return files
    return [replace(file, facts=replace(file.facts, fallback_domain=None)) for file in files]


def split_domain(text: str) -> tuple[str | None, str]:
    """
    The domain before ``=`` and the place behind it; None where the whole is a place.

    >>> split_domain("books=ratings_Books.csv"), split_domain("s3://b/domain=*/x.parquet")
    (('books', 'ratings_Books.csv'), (None, 's3://b/domain=*/x.parquet'))
    """
    domain, equals, place = text.partition("=")
    is_place = Path(text).exists() or any(character in domain for character in "/*?[:")
    if not equals or is_place or (_MAGIC.search(text) and matches_of(text)):
        return None, text
    return domain, place


def matches_of(pattern: str) -> list[Path]:
    """The files and folders that a glob matches, by name."""
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - absolute patterns


def partitions_of(path: str) -> tuple[tuple[str, str], ...]:
    """
    The columns that folders of *path* name.

    >>> partitions_of("log/domain=home%20goods/day=1/part-0.parquet")
    (('domain', 'home goods'), ('day', '1'))
    """
    folders = [part.partition("=") for part in path.split("/")[:-1]]
    return tuple((name, unquote(value)) for name, equals, value in folders if equals and name)


def is_data(path: str, root: str) -> bool:
    """Whether a file below the folder *root* is meant as data."""
    below = path.removeprefix(root).strip("/").split("/")
    return not any(part.startswith(("_", ".")) for part in below)


def domain_of_name(path: str) -> str | None:
    """
    What a file's name, or that of the folder of a part, says its domain is.

    >>> [domain_of_name(name) for name in ("ratings_Books.csv", "reviews_Kitchen_5.json.gz")]
    ['Books', 'Kitchen']
    >>> [domain_of_name(name) for name in ("food/part-0.parquet", "toys/ratings.dat")]
    ['food', 'toys']
    """
    stem = stem_and_suffix(path)[0]
    if _PART.fullmatch(stem):
        stem = stem_and_suffix(posixpath.dirname(path).rstrip("/"))[0]
    stem = re.sub(r"^(ratings?|reviews?)[_-](?=.)", "", stem, flags=re.IGNORECASE)
    return re.sub(r"(?<=.)[_-](\d+|ratings?|reviews?)$", "", stem, flags=re.IGNORECASE) or None


def facts_of(name: str, path: str, domain: str | None) -> FileFacts:
    """What the place *path* says of a file; *name* is for messages."""
    return FileFacts(name, domain, partitions_of(path), domain_of_name(path))


def _local_files(place: str, domain: str | None) -> list[InputFile]:
    path = Path(place)
    if path.is_file():
        return [_local_file(path, domain)]
    if path.is_dir():
        found: Iterable[Path] = sorted(path.rglob("*"))
    else:
        matches = matches_of(place) if _MAGIC.search(place) else []
        found = [file for match in matches for file in (sorted(match.rglob("*")) if match.is_dir() else [match])]
    root = place if path.is_dir() else ""
    files = [file for file in found if file.is_file() and is_data(str(file), root)]
    if not files:
        what = (
            "a folder without files" if path.is_dir() else "no file matches" if _MAGIC.search(place) else "no such file"
        )
        raise InputFormatError(f"{place}: {what}")
    return [_local_file(file, domain) for file in files]


def _local_file(path: Path, domain: str | None) -> InputFile:
    def open_file() -> BinaryIO:
        return path.open("rb")

    return InputFile(facts_of(str(path), path.as_posix(), domain), open_file, path.stat().st_size, path)


def _remote_files(place: str, domain: str | None) -> list[InputFile]:
    scheme, _, below = place.partition("://")
    try:
        filesystem, path = url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InputFormatError(f"{place}: this installation cannot read {scheme}://: {error}") from error
    del below
    try:
        if _MAGIC.search(path):
            found = sorted(str(match) for match in filesystem.glob(path))
        elif filesystem.isdir(path):
            found = [file for file in sorted(map(str, filesystem.find(path))) if is_data(file, path)]
        else:
            found = [path]
        files = [_remote_file(filesystem, scheme, file, domain) for file in found if filesystem.isfile(file)]
    except OSError as error:
        raise InputFormatError(f"{place}: cannot be read: {error}") from error
    if not files:
        raise InputFormatError(f"{place}: no such file")
    return files


def _remote_file(filesystem: Any, scheme: str, path: str, domain: str | None) -> InputFile:
    def open_file() -> BinaryIO:
        return cast(BinaryIO, filesystem.open(path, "rb"))

    name = f"{scheme}://{path.removeprefix('/')}" if scheme != "file" else path
    return InputFile(facts_of(name, path, domain), open_file, int(filesystem.size(path) or 0))

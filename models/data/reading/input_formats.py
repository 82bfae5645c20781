"""The formats of an input: a new one is a module, and a line here."""

from __future__ import annotations

import posixpath
from typing import BinaryIO

from models.data.reading.compression import GZIP, ZSTD, expanded
from models.data.reading.delimited import DelimitedText, RecBoleInter
from models.data.reading.json_lines import JsonLines
from models.data.reading.parquet import ParquetTables
from models.data.reading.raw_tables import Budget, InputFormat
from models.errors import InputFormatError

INPUT_FORMATS: dict[str, InputFormat] = {
    "csv": DelimitedText(),
    "inter": RecBoleInter(),
    "ndjson": JsonLines(),
    "parquet": ParquetTables(),
}
COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
SUFFIXES = {suffix: name for name, kind in INPUT_FORMATS.items() for suffix in kind.suffixes}
PARQUET_MAGIC = b"PAR1"


def stem_and_suffix(name: str) -> tuple[str, str]:
    """
    A file's name without its endings, and the one that says the format; '' where there is none.

    >>> stem_and_suffix("reviews_Books_5.json.gz"), stem_and_suffix("part-00000")
    (('reviews_Books_5', '.json'), ('part-00000', ''))
    """
    stem, suffix = posixpath.splitext(posixpath.basename(name))
    if suffix.lower() in COMPRESSED_SUFFIXES:
        stem, suffix = posixpath.splitext(stem)
    return stem, suffix.lower()


def format_by_name(name: str, stated: str | None = None) -> str | None:
    """
    The key in ``INPUT_FORMATS`` that was *stated*, or that the file's *name* ends with; None where it has no ending.

    Raises:
        InputFormatError: neither says one that is known.
    """
    if stated is not None:
        if stated not in INPUT_FORMATS:
            raise InputFormatError(f"unknown format {stated!r}; known: {', '.join(INPUT_FORMATS)}")
        return stated
    suffix = stem_and_suffix(name)[1]
    if suffix and suffix not in SUFFIXES:
        raise InputFormatError(
            f"unknown suffix {suffix}; expected {', '.join(SUFFIXES)}, of which text may end in .gz or .zst; "
            "or state the format"
        )
    return SUFFIXES.get(suffix)


def format_by_content(file: BinaryIO) -> str:
    """The key in ``INPUT_FORMATS`` that the beginning of *file* speaks for; leaves it at its start."""
    head = file.read(len(PARQUET_MAGIC))
    file.seek(0)
    if head == PARQUET_MAGIC:
        return "parquet"
    if head.startswith((GZIP, ZSTD)):
        head = expanded(file, Budget()).read(1)
        file.seek(0)
    return "ndjson" if head.lstrip()[:1] == b"{" else "csv"

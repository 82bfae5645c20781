"""
The registry of output formats: their names and what each writes, without loading what writes it.

A new format is a file in this folder and a line in ``FORMATS``; `taesar regenerate --export` and, where it is one file,
the results of jobs offer it by that.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from models.exports.encoding import ExportFormat


@dataclass(frozen=True)
class FormatEntry:
    """
    What is known of a format before it is loaded.

    Args:
        code: where its ``ExportFormat`` is, as module:name.
        summary: what it writes, for help texts: without the full stop.
        suffix: of its one file; "" where it is a folder, which jobs do not offer.
        media_type: of that file; "" for a folder.
    """

    code: str
    summary: str
    suffix: str = ""
    media_type: str = ""


PARQUET_TYPE = "application/vnd.apache.parquet"
FORMATS: Mapping[str, FormatEntry] = {
    "parquet": FormatEntry("models.exports.as_parquet:FORMAT", "a Parquet file", ".parquet", PARQUET_TYPE),
    "ndjson": FormatEntry("models.exports.as_ndjson:FORMAT", "a JSON object a line", ".ndjson", "application/x-ndjson"),
    "csv": FormatEntry("models.exports.as_csv:FORMAT", "comma-separated text", ".csv", "text/csv"),
    "inter": FormatEntry("models.exports.as_inter:FORMAT", "RecBole's text", ".inter", "text/tab-separated-values"),
    "rectools": FormatEntry(
        "models.exports.as_rectools:FORMAT", "RecTools' frame as Parquet", ".rectools.parquet", PARQUET_TYPE
    ),
    "replay": FormatEntry(
        "models.exports.as_replay:FORMAT", "RePlay's frame as Parquet", ".replay.parquet", PARQUET_TYPE
    ),
    "recbole": FormatEntry(
        "models.exports.as_recbole:FORMAT", "train, valid and test files for RecBole, and the YAML that loads them"
    ),
}
# Those that are one file.
FILE_FORMATS: Mapping[str, FormatEntry] = {name: entry for name, entry in FORMATS.items() if entry.suffix}
# The name of a format. Checkers see a str; commands and HTTP offer exactly the registered names.
if TYPE_CHECKING:
    FormatName = str
    FileFormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]
    FileFormatName = Literal[tuple(FILE_FORMATS)]


def load_format(name: FormatName) -> ExportFormat:
    """The format of that name, its code loaded."""
    assert name in FORMATS, name
    found: ExportFormat = pkgutil.resolve_name(FORMATS[name].code)
    return found


def describe_formats(formats: Mapping[str, FormatEntry]) -> str:
    """What each of *formats* writes, in one sentence."""
    return "; ".join(f"'{name}' {entry.summary}" for name, entry in formats.items()) + "."

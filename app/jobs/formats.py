"""
The formats of a job's input, read row by row in bounded memory.

Formats (docs/jobs.md):
    ndjson   one sequence per line, shaped like a sequence of POST /regenerate
    csv      one interaction per line: user_id,item_id,domain[,timestamp]; header required
    inter    the same with tabs and RecBole's typed header: user_id:token, item_id:token, domain:token, ...
    parquet  interactions as in csv, or sequences: user_id, item_ids: list, domains: list
Interactions may have the columns of `taesar prepare` as well: user and item.
The text formats may be gzip-compressed. The interactions of one user stand next to one another; with a timestamp they
are sorted by it (stable), without one their order counts.

A row that cannot be used becomes a ``BadRow``; a file that is not what it claims to be raises; so does one that grows
over a limit, compressed or not, while it is read: a small file cannot make much memory or work.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import posixpath
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal, cast, get_args

import pyarrow as pa
from pydantic import ValidationError

from app.errors import RequestTooLargeError, UnsupportedFormatError
from app.jobs.parquet import LIST_COLUMNS, MAX_NAME, Lists, ParquetInput, Values, expands_over, parquet_errors
from app.serving.regeneration_bodies import MixedSequence
from models.data.reading import iso_seconds
from models.errors import InputFormatError

SourceFormat = Literal["ndjson", "csv", "inter", "parquet"]
FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
MAX_LINE_BYTES = 4 * 1024 * 1024
# What is read of a text to check its format while a client waits: a header and a row of the greatest length.
CHECKED_BYTES = 3 * MAX_LINE_BYTES
PARQUET_SOURCE = pa.schema(
    [
        ("line", pa.int64()),
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("domains", pa.list_(pa.string())),
        ("num_rows", pa.int64()),
        ("times", pa.list_(pa.float64())),
        ("carried", pa.list_(pa.list_(pa.string()))),
    ]
)

# What `taesar prepare` calls the same columns, so that its input, sorted by user, is a job's as it stands.
_PREPARED_NAMES = {"user_id": "user", "item_id": "item"}

_SUFFIXES: dict[str, SourceFormat] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".inter": "inter",
    ".parquet": "parquet",
}
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz file",
    b"BZh": "a bzip2 file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    PARQUET_MAGIC: "a Parquet file",
}


@dataclass(frozen=True)
class SourceLimits:
    """
    What one input may hold.

    Args:
        max_bytes: of the file as stored; TAESAR_MAX_INPUT_BYTES.
        max_expanded_bytes: after decompression and decoding; TAESAR_MAX_EXPANDED_BYTES.
        max_items: of one sequence; a longer one is a bad row.
    """

    max_bytes: int
    max_expanded_bytes: int
    max_items: int


@dataclass(frozen=True, slots=True)
class SequenceRow:
    """
    One mixed sequence.

    Args:
        line: 1-based line (Parquet: row) where it begins; a CSV header is line 1.
        num_rows: input rows that it was made of.
        times: of its items; empty where the input has none.
        carried: of each item, the values of the columns that the job carries along; empty where there are none.
    """

    line: int
    user_id: str
    item_ids: Sequence[str]
    domains: Sequence[str]
    num_rows: int = 1
    times: Sequence[float] = ()
    carried: Sequence[Sequence[str | None]] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """
    Input that cannot be used, and why.

    Args:
        line: as of a ``SequenceRow``.
        num_rows: input rows that it stands for: all those of a user who is left out whole.
    """

    line: int
    reason: str
    num_rows: int = 1


def format_of(name: str, stated: str | None) -> SourceFormat:
    """
    The format that was *stated*, else the one that the file's *name* ends with (``.gz`` aside).

    Raises:
        UnsupportedFormatError: neither says one that is known.
    """
    if stated is not None:
        if stated not in FORMATS:
            raise UnsupportedFormatError(f"unknown format {stated!r}; known: {', '.join(FORMATS)}")
        return stated
    suffix = posixpath.splitext(name.lower().removesuffix(".gz"))[1]
    if suffix not in _SUFFIXES:
        raise UnsupportedFormatError(f"{name!r} does not end with {', '.join(_SUFFIXES)}; state the format")
    return _SUFFIXES[suffix]


def check_format(file: BinaryIO, source_format: SourceFormat, limits: SourceLimits) -> None:
    """
    Read the beginning of *file* and raise what ``read_rows`` would raise at once; leaves it at its start.

    Of Parquet that is the footer: no value is decoded. A text without a whole row in its first megabytes passes:
    whoever reads all of it will say.
    """
    if source_format == "parquet":
        with parquet_errors():
            ParquetInput.open(file, _parquet_columns, max_expanded_bytes=limits.max_expanded_bytes)
    elif limits.max_expanded_bytes <= CHECKED_BYTES:
        next(read_rows(file, source_format, limits), None)
    else:
        with contextlib.suppress(RequestTooLargeError):
            next(read_rows(file, source_format, replace(limits, max_expanded_bytes=CHECKED_BYTES)), None)
    file.seek(0)


def read_rows(file: BinaryIO, source_format: SourceFormat, limits: SourceLimits) -> Iterator[SequenceRow | BadRow]:
    """
    Every row of *file* in its order, good or bad.

    Raises:
        InputFormatError: the file is not of this format, or damaged.
        RequestTooLargeError: it expands to more bytes than the limit.
    """
    if source_format == "parquet":
        return _read_parquet(file, limits)
    lines = _text_lines(file, source_format, limits)
    if source_format == "ndjson":
        return (_parse_sequence(line, text, limits) for line, text in lines)
    return _read_interactions(_split_lines(lines, delimiter="," if source_format == "csv" else "\t"), limits)


class _Expanding(io.RawIOBase):
    """What decompression yields, counted: raises once it is more than the limit."""

    def __init__(self, file: BinaryIO, limits: SourceLimits) -> None:
        self._file = file
        self._left = limits.max_expanded_bytes
        self._limit = limits.max_expanded_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputFormatError(f"damaged gzip data: {error}") from error
        self._left -= len(content)
        if self._left < 0:
            raise expands_over(self._limit)
        buffer[: len(content)] = content
        return len(content)


def _text_lines(file: BinaryIO, source_format: str, limits: SourceLimits) -> Iterator[tuple[int, str | BadRow]]:
    """(line number, text without its end); empty lines are passed over; a line that is no text is a BadRow."""
    head = file.read(8)
    file.seek(0)
    kind = next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None)
    if kind is not None:
        raise InputFormatError(f"the file is {kind}, not {source_format}")
    raw = cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")) if head.startswith(GZIP_MAGIC) else file
    expanded = io.BufferedReader(_Expanding(raw, limits), buffer_size=1 << 18)
    line = 0
    while content := expanded.readline(MAX_LINE_BYTES):
        line += 1
        if len(content) == MAX_LINE_BYTES and not content.endswith(b"\n"):
            while (rest := expanded.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield line, BadRow(line, f"longer than {MAX_LINE_BYTES} bytes")
            continue
        content = content.rstrip(b"\r\n")
        if line == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        if not content.strip():
            continue
        try:
            yield line, content.decode("utf-8")
        except UnicodeDecodeError as error:
            yield line, BadRow(line, f"not UTF-8: byte {error.start} of the line")


def _parse_sequence(line: int, text: str | BadRow, limits: SourceLimits) -> SequenceRow | BadRow:
    if isinstance(text, BadRow):
        return text
    try:
        sequence = MixedSequence.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return BadRow(line, f"{place}: {first['msg']}" if place else first["msg"])
    item_ids = [item.item_id for item in sequence.items]
    return _checked(
        SequenceRow(line, sequence.user_id or "", item_ids, [item.domain for item in sequence.items]), limits
    )


def _checked(row: SequenceRow, limits: SourceLimits) -> SequenceRow | BadRow:
    problem = _name_problem("user_id", row.user_id)
    if problem is None and len(row.item_ids) > limits.max_items:
        problem = f"{len(row.item_ids)} items; the limit is {limits.max_items}"
    return row if problem is None else BadRow(row.line, problem, row.num_rows)


def _name_problem(column: str, value: str | None) -> str | None:
    if not value:
        return f"{column} is missing"
    if len(value) > MAX_NAME:
        return f"{column} is longer than {MAX_NAME} characters"
    if not value.isprintable():  # a tab or line end could not be written to CSV and .inter again
        return f"{column} holds a control character"
    return None


@dataclass(frozen=True, slots=True)
class _Interaction:
    line: int
    user_id: str
    item_id: str
    domain: str
    timestamp: float | None


@dataclass
class _UserRows:
    """The interactions of the user that is being read."""

    user_id: str
    interactions: list[_Interaction] = field(default_factory=list)
    num_rows: int = 0


def _split_lines(
    lines: Iterable[tuple[int, str | BadRow]], *, delimiter: str
) -> Iterator[tuple[int, list[str]] | BadRow]:
    for line, text in lines:
        if isinstance(text, BadRow):
            yield text
            continue
        try:
            # One line at a time: an open quote costs that line, not the rest of the file.
            cells = next(csv.reader((text,), delimiter=delimiter, strict=True))
        except csv.Error as error:
            yield BadRow(line, f"not a valid row: {error}")
            continue
        yield line, cells


def _read_interactions(
    lines: Iterator[tuple[int, list[str]] | BadRow], limits: SourceLimits
) -> Iterator[SequenceRow | BadRow]:
    header = next(lines, None)
    if header is None:
        return
    if isinstance(header, BadRow):
        raise InputFormatError(f"line {header.line}: the header cannot be read: {header.reason}")
    names = [name.partition(":")[0].strip() for name in header[1]]
    columns = [names.index(name) for name in _interaction_columns(names)]

    def parsed() -> Iterator[_Interaction | BadRow]:
        for entry in lines:
            if isinstance(entry, BadRow):
                yield entry
                continue
            line, cells = entry
            if len(cells) != len(names):
                yield BadRow(line, f"{len(cells)} cells; the header has {len(names)}")
                continue
            yield _parse_interaction(line, [cells[column] for column in columns])

    yield from _group_users(parsed(), limits)


def _interaction_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns user_id, item_id, domain and, where there is one, timestamp, by the names that they have here."""
    present = {name: name if name in names else _PREPARED_NAMES.get(name) for name in ("user_id", "item_id", "domain")}
    missing = [name for name, found in present.items() if found not in names]
    if missing:
        raise InputFormatError(f"no column {', '.join(missing)}; the columns are {', '.join(names)[:200]}")
    return (*(found for found in present.values() if found), *(["timestamp"] if "timestamp" in names else []))


def _parse_interaction(line: int, cells: Sequence[Any]) -> _Interaction | BadRow:
    user_id, item_id, domain = (None if cell is None else str(cell) for cell in cells[:3])
    for column, value in (("user_id", user_id), ("item_id", item_id), ("domain", domain)):
        problem = _name_problem(column, value)
        if problem is not None:
            return BadRow(line, problem)
    timestamp = _seconds(cells[3]) if len(cells) > 3 else None
    if timestamp is not None and math.isnan(timestamp):
        return BadRow(line, "timestamp is neither a number nor a date of ISO 8601")
    return _Interaction(line, str(user_id), str(item_id), str(domain), timestamp)


def _seconds(time: Any) -> float:
    try:
        return float(time)
    except (TypeError, ValueError):
        return iso_seconds(str(time))


def _group_users(interactions: Iterable[_Interaction | BadRow], limits: SourceLimits) -> Iterator[SequenceRow | BadRow]:
    """One row per user; a bad interaction is left out of its user's sequence and reported by itself."""
    seen: set[str] = set()  # every user id of the file: about 100 bytes each
    current: _UserRows | None = None
    for entry in interactions:
        if isinstance(entry, BadRow):
            yield entry
            continue
        if current is None or entry.user_id != current.user_id:
            if entry.user_id in seen:
                yield BadRow(entry.line, f"user {entry.user_id!r} came before; a user's rows stand next to one another")
                continue
            if current is not None:
                yield _row_of(current, limits)
            seen.add(entry.user_id)
            current = _UserRows(entry.user_id)
        current.num_rows += 1
        if current.num_rows <= limits.max_items + 1:  # one too many is enough to know
            current.interactions.append(entry)
    if current is not None:
        yield _row_of(current, limits)


def _row_of(rows: _UserRows, limits: SourceLimits) -> SequenceRow | BadRow:
    first = rows.interactions[0].line
    if rows.num_rows > limits.max_items:
        reason = f"user {rows.user_id!r} has {rows.num_rows} items; the limit is {limits.max_items}"
        return BadRow(first, reason, rows.num_rows)
    ordered = sorted(rows.interactions, key=lambda i: i.timestamp or 0.0)
    return SequenceRow(
        first,
        rows.user_id,
        [i.item_id for i in ordered],
        [i.domain for i in ordered],
        rows.num_rows,
        [i.timestamp for i in ordered if i.timestamp is not None],
    )


def _read_parquet(file: BinaryIO, limits: SourceLimits) -> Iterator[SequenceRow | BadRow]:
    with parquet_errors():
        parquet = ParquetInput.open(file, _parquet_columns, max_expanded_bytes=limits.max_expanded_bytes)
        if "item_ids" in parquet.columns:
            yield from _batch_sequences(parquet.batches(), limits)
        else:
            yield from _group_users(_batch_interactions(parquet.batches(), parquet.columns), limits)


def _parquet_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Which of the columns to read: those of interactions, or those of sequences."""
    if "item_id" in names or (_PREPARED_NAMES["item_id"] in names and "item_ids" not in names):
        return _interaction_columns(names)
    for name in ("user_id", *LIST_COLUMNS):
        if name not in names:
            raise InputFormatError(
                f"no column {name}; a Parquet input holds user_id, item_id, domain or user_id, item_ids, domains; "
                f"the columns are {', '.join(names)[:200]}"
            )
    return ("user_id", *LIST_COLUMNS)


def _batch_interactions(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> Iterator[_Interaction | BadRow]:
    line = 0
    for batch in batches:
        values = (Values(batch.column(name)).read(0, batch.num_rows) for name in columns)
        for cells in zip(*values, strict=True):
            line += 1
            yield _parse_interaction(line, cells)


def _batch_sequences(batches: Iterable[pa.RecordBatch], limits: SourceLimits) -> Iterator[SequenceRow | BadRow]:
    line = 0
    for batch in batches:
        users = Values(batch.column("user_id")).read(0, batch.num_rows)
        item_ids, domains = Lists(batch.column("item_ids")), Lists(batch.column("domains"))
        for row, user_id in enumerate(users):
            line += 1
            length = item_ids.lengths[row]
            if length is None or length != domains.lengths[row]:
                yield BadRow(line, "item_ids and domains are not two lists of the same length")
            elif length > limits.max_items:
                yield BadRow(line, f"{length} items; the limit is {limits.max_items}")
            else:
                yield _parse_lists(line, user_id, item_ids.read(row), domains.read(row), limits)


def _parse_lists(
    line: int, user_id: object, item_ids: list[object], domains: list[object], limits: SourceLimits
) -> SequenceRow | BadRow:
    for column, values in (("item_ids", item_ids), ("domains", domains)):
        for position, value in enumerate(values):
            problem = _name_problem(column, None if value is None else str(value))
            if problem is not None:
                return BadRow(line, f"position {position}: {problem}")
    user = "" if user_id is None else str(user_id)
    return _checked(SequenceRow(line, user, [str(i) for i in item_ids], [str(d) for d in domains]), limits)

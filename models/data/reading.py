"""
Raw interactions: CSV, Parquet or RecBole ``.inter`` -> integer codes, with every bad row named.

A row says that a user met an item of a domain at a time. Identifiers are exact strings (an empty one is missing);
times are numbers or, as seconds since 1970, dates of ISO 8601; only their order counts. They are kept as float64, exact
for whole numbers up to 2**53.

Memory is in proportion to the rows, about 90 bytes each at the peak of reading: identifiers become int32 codes while
the file is parsed. Codes follow the sorted order of the strings, so nothing depends on the order of the rows.

Shapes: N = rows, in the order of the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from models.errors import BadRowsError, InputFormatError

Codes = npt.NDArray[np.int32]
Times = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Called with a stage's name and the fraction of it that is done, 0 to 1.
ReadingProgress = Callable[[str, float], None]

READING = "reading"
MISSING, NOT_UTF8 = -1, -2
BLANK = "empty line"
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 60
# Large enough that a block's dictionaries are small beside its rows, small enough to report progress.
BLOCK_BYTES = 16 << 20
PARQUET_BATCH_ROWS = 1 << 20


@dataclass(frozen=True)
class Columns:
    """
    Names of the four columns. None means the usual name of the format.

    The usual names are ``user, item, domain, timestamp`` in CSV and Parquet and ``user_id, item_id, domain,
    timestamp`` in RecBole's ``.inter``, where the type after the colon (``domain:token``) is not part of the name.
    """

    user: str | None = None
    item: str | None = None
    domain: str | None = None
    timestamp: str | None = None

    def named(self, *, recbole: bool) -> tuple[str, str, str, str]:
        """The four names, user, item, domain, timestamp, with the format's usual name for each None."""
        suffix = "_id" if recbole else ""
        return (
            self.user or f"user{suffix}",
            self.item or f"item{suffix}",
            self.domain or "domain",
            self.timestamp or "timestamp",
        )


@dataclass(frozen=True)
class BadLine:
    """One row that cannot be used: its 1-based line (in Parquet, its row) and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Identifiers:
    """The distinct users, items and domains of an input: strings in sorted order, numbered by their place."""

    users: pl.Series
    items: pl.Series
    domains: pl.Series


@dataclass(frozen=True)
class Interactions:
    """
    The good rows of an input as codes, and the bad rows by name.

    Args:
        ids: what the codes stand for.
        users_N, items_N, domains_N: places in ``ids``; every item has one domain.
        times_N: finite.
        num_rows: rows of the file, good and bad.
        bad_rows: in line order.
    """

    ids: Identifiers
    users_N: Codes
    items_N: Codes
    domains_N: Codes
    times_N: Times
    num_rows: int
    bad_rows: tuple[BadLine, ...]


def read_interactions(
    path: Path, columns: Columns | None = None, *, max_bad_row_share: float, progress: ReadingProgress | None = None
) -> Interactions:
    """
    Read an input file, chosen by its suffix: .csv, .inter (either may end in .gz too) or .parquet.

    A row is bad if it has the wrong number of fields, lacks one of the four, holds bytes that are not UTF-8, has a
    time that is not a finite number, or claims an item for another domain than most distinct rows of that item do (of
    equally frequent domains the first by name owns the item). An item has one domain because a domain owns a range
    of tokens: a second claim is a mistake in the log, and the majority is the best evidence of what was meant.

    A line is counted as a CSV reader counts records, the header being line 1: a quoted field with a line break in it
    is one. A blank line is named as a bad row, but it holds nothing that could be lost and counts towards no share: the
    last line of a small file is often one.

    Raises:
        InputFormatError: no such file, unknown suffix, unreadable, or a column is missing.
        BadRowsError: more than *max_bad_row_share* of the rows are bad, blank lines aside; shows the first few.
    """
    report = progress or (lambda _stage, _fraction: None)
    raw = _read_raw(path, columns or Columns(), report)
    bad = _bad_fields(raw)
    bad |= _minority_claims(raw, bad)
    bad_rows = tuple(sorted((*raw.broken_lines, *_named(raw, bad)), key=lambda row: row.line))
    num_rows = len(raw.times_N) + len(raw.broken_lines)
    lossy = [row for row in bad_rows if row.reason != BLANK]
    num_filled = num_rows - (len(bad_rows) - len(lossy))
    if len(lossy) > max_bad_row_share * num_filled:
        shown = "; ".join(map(str, lossy[:SHOWN_ROWS]))
        raise BadRowsError(
            f"{path}: {len(lossy):,} of {num_filled:,} rows are bad, more than the share {max_bad_row_share:g} that "
            f"is allowed. First: {shown}"
        )
    good = ~bad if bad.any() else slice(None)
    # A domain that only bad rows name, a misspelt one for instance, is none: nobody could be present in all domains.
    present = np.flatnonzero(np.bincount(raw.domain.codes_N[good], minlength=len(raw.domain.values)))
    renumbered = np.zeros(len(raw.domain.values), dtype=np.int32)
    renumbered[present] = np.arange(len(present))
    return Interactions(
        ids=Identifiers(raw.user.values, raw.item.values, raw.domain.values.gather(present)),
        users_N=raw.user.codes_N[good],
        items_N=raw.item.codes_N[good],
        domains_N=renumbered[raw.domain.codes_N[good]],
        times_N=raw.times_N[good],
        num_rows=num_rows,
        bad_rows=bad_rows,
    )


@dataclass(frozen=True)
class _Coded:
    """A column of strings: codes into sorted distinct values; MISSING or NOT_UTF8 where there is none."""

    name: str
    codes_N: Codes
    values: pl.Series


@dataclass(frozen=True)
class _Raw:
    """A parsed file before its rows are judged. ``time_texts`` holds what was written where ``times_N`` is NaN."""

    user: _Coded
    item: _Coded
    domain: _Coded
    times_N: Times
    time_name: str
    time_texts: dict[int, str]
    broken_lines: tuple[BadLine, ...]
    first_line: int

    def lines_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Line numbers of parsed rows, counting the broken lines that the parser skipped."""
        broken = np.asarray([row.line for row in self.broken_lines], dtype=np.int64)
        # The j-th broken line stands before a parsed row if at least (its line - first_line - j) rows precede it.
        skipped = np.searchsorted(broken - self.first_line - np.arange(len(broken)), rows, side="right")
        return rows + self.first_line + skipped


def _read_raw(path: Path, columns: Columns, progress: ReadingProgress) -> _Raw:
    if not path.is_file():
        raise InputFormatError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        return _read_parquet(path, columns.named(recbole=False), progress)
    kind = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    if kind == [".csv"]:
        return _read_text(path, columns.named(recbole=False), progress, delimiter=",", quote='"')
    if kind == [".inter"]:
        return _read_text(path, columns.named(recbole=True), progress, delimiter="\t", quote=False)
    raise InputFormatError(f"{path}: unknown suffix; expected .csv, .csv.gz, .inter, .inter.gz or .parquet")


def _read_text(
    path: Path, names: tuple[str, str, str, str], progress: ReadingProgress, *, delimiter: str, quote: str | bool
) -> _Raw:
    broken: list[BadLine] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        broken.append(BadLine(row.number, f"{row.actual_columns} fields instead of {row.expected_columns}"))
        # With a line break in it, it has swallowed other rows: skipping would drop those in silence.
        return "error" if "\n" in row.text else "skip"

    try:
        header = _header(path, delimiter, quote)
        kept = [_position(path, name, header) for name in names]
        positions = [str(index) for index in range(len(header))]
        with _open(path, progress) as stream:
            table = pa_csv.read_csv(
                stream,
                # One thread: only then does the parser number its rows.
                pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=positions, skip_rows=1),
                pa_csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char=quote,
                    newlines_in_values=quote is not False,
                    ignore_empty_lines=False,
                    invalid_row_handler=skip,
                ),
                pa_csv.ConvertOptions(
                    check_utf8=False,
                    include_columns=[positions[index] for index in kept],
                    # Dictionary while parsing: whole columns of strings never exist at once.
                    column_types={positions[index]: pa.dictionary(pa.int32(), pa.binary()) for index in kept},
                    strings_can_be_null=False,
                ),
            )
    except UnicodeDecodeError as error:
        raise InputFormatError(f"{path}: the header is not UTF-8: {error}") from error
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        hint = (
            f"; line {broken[-1].line}: is a quote left open?" if broken and isinstance(error, pa.ArrowInvalid) else ""
        )
        raise InputFormatError(f"{path}: not readable as delimited text: {error}{hint}") from error
    raw = _raw([table.column(positions[index]) for index in kept], names, tuple(broken), first_line=2)
    for column in (raw.user, raw.item, raw.domain):
        for value in column.values.filter(column.values.str.contains("\n", literal=True)).head(1):
            raise InputFormatError(
                f"{path}: {column.name} {value[:SHOWN_CHARACTERS]!r} runs over a line break: is a quote left open?"
            )
    return raw


def _header(path: Path, delimiter: str, quote: str | bool) -> list[str]:
    """Column names of the first line, without RecBole's ``:type`` where the text is tab separated."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        first = file.readline().decode("utf-8-sig")
    if not first.strip():
        raise InputFormatError(f"{path}: empty, or its first line is; expected a header")
    if quote is False:
        return [name.partition(":")[0] for name in first.rstrip("\r\n").split(delimiter)]
    return next(csv.reader([first], delimiter=delimiter))


def _position(path: Path, name: str, header: list[str]) -> int:
    if header.count(name) != 1:
        problem = "no column" if name not in header else "more than one column"
        raise InputFormatError(f"{path}: {problem} named {name!r}; columns found: {', '.join(header)}")
    return header.index(name)


class _Metered(io.RawIOBase):
    """A file that reports how much of it has been read."""

    def __init__(self, path: Path, progress: ReadingProgress) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._size = max(1, path.stat().st_size)
        self._progress = progress

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        block = self._file.read(-1 if size is None else size)
        self._progress(READING, self._file.tell() / self._size)
        return block

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path, progress: ReadingProgress) -> pa.NativeFile:
    file = pa.PythonFile(_Metered(path, progress), mode="r")
    return pa.CompressedInputStream(file, "gzip") if path.suffix.lower() == ".gz" else file


def _read_parquet(path: Path, names: tuple[str, str, str, str], progress: ReadingProgress) -> _Raw:
    try:
        with pq.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            kept = [header[_position(path, name, header)] for name in names]
            total = max(1, file.metadata.num_rows)
            batches: list[list[pa.Array]] = []
            rows = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=kept):
                *ids, time = (batch.column(name) for name in kept)
                batches.append([*(_as_binary(column).dictionary_encode() for column in ids), _as_time(time)])
                rows += batch.num_rows
                progress(READING, rows / total)
    except (OSError, pa.ArrowException) as error:
        raise InputFormatError(f"{path}: not readable as Parquet: {error}") from error
    id_type = pa.dictionary(pa.int32(), pa.binary())
    time_type = batches[0][3].type if batches else pa.float64()
    columns = [
        pa.chunked_array([batch[index] for batch in batches], id_type if index < 3 else time_type) for index in range(4)
    ]
    return _raw(columns, names, (), first_line=1)


def _as_binary(column: pa.Array) -> pa.Array:
    """Identifiers of any plain type as bytes; numbers as they print."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return column.cast(pa.binary())
    return column.cast(pa.string()).cast(pa.binary())


def _as_time(column: pa.Array) -> pa.Array:
    """Times as float64 (dates and datetimes in microseconds), or as a dictionary of texts."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string()).cast(pa.binary()).dictionary_encode()
    return column.cast(pa.float64(), safe=False)


def _raw(
    columns: list[pa.ChunkedArray], names: tuple[str, str, str, str], broken: tuple[BadLine, ...], *, first_line: int
) -> _Raw:
    times, texts = _times(columns[3])
    columns[3] = None  # the texts of the times are no longer needed
    user, item, domain = (_coded(name, column) for name, column in zip(names[:3], columns[:3], strict=True))
    return _Raw(user, item, domain, times, names[3], texts, broken, first_line)


def _coded(name: str, column: pa.ChunkedArray) -> _Coded:
    """Codes in the sorted order of the distinct values, whatever order the rows came in."""
    if column.num_chunks == 0:
        return _Coded(name, np.zeros(0, dtype=np.int32), pl.Series(dtype=pl.String))
    column = column.unify_dictionaries()
    texts = _decoded(column.chunk(0).dictionary)
    usable = texts.is_not_null() & (texts != "")
    values = texts.filter(usable).sort()
    # One slot more than there are values: index -1, a null, lands on the last one.
    code_of = np.full(len(texts) + 1, MISSING, dtype=np.int32)
    code_of[:-1][texts.is_null().to_numpy()] = NOT_UTF8
    ordered = np.flatnonzero(usable.to_numpy())[texts.filter(usable).arg_sort().to_numpy()]
    code_of[ordered] = np.arange(len(values), dtype=np.int32)
    codes = np.concatenate([code_of[pc.fill_null(chunk.indices, -1).to_numpy()] for chunk in column.chunks])
    return _Coded(name, codes, values)


def _decoded(values: pa.BinaryArray) -> pl.Series:
    """Bytes as strings; null where they are not UTF-8."""
    try:
        decoded = values.cast(pa.string())
    except pa.ArrowInvalid:
        decoded = pa.array([_decode(value) for value in values.to_pylist()], pa.string())
    return pl.Series(decoded, dtype=pl.String)


def _decode(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _times(column: pa.ChunkedArray) -> tuple[Times, dict[int, str]]:
    """Times, NaN where there is none, and for those rows the text that stood there ('' for nothing)."""
    parts: list[Times] = []
    texts: dict[int, str] = {}
    start = 0
    for chunk in column.chunks:
        part, chunk_texts = _parse_times(chunk)
        texts |= {start + row: text for row, text in chunk_texts}
        parts.append(part)
        start += len(part)
    return (np.concatenate(parts) if parts else np.zeros(0)), texts


def _parse_times(chunk: pa.Array) -> tuple[Times, Iterator[tuple[int, str]]]:
    if not pa.types.is_dictionary(chunk.type):
        times = chunk.to_numpy(zero_copy_only=False).astype(np.float64)
        absent = chunk.is_null().to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(times))
        times[bad], written = np.nan, times[bad]
        return times, ((int(row), "" if absent[row] else str(time)) for row, time in zip(bad, written, strict=True))
    # A day's stamp repeats: parse each text of the block once.
    values = [value.decode("utf-8", "replace") for value in chunk.dictionary.to_pylist()]
    texts = [*values, ""]
    numbers = pl.Series(texts, dtype=pl.String).cast(pl.Float64, strict=False)
    parsed = numbers.fill_null(math.nan).to_numpy().copy()
    for row in np.flatnonzero(numbers.is_null().to_numpy()):  # one by one: most columns have none
        parsed[row] = iso_seconds(texts[row])
    codes = pc.fill_null(chunk.indices, -1).to_numpy()
    times = np.where(np.isfinite(parsed), parsed, np.nan)[codes]
    return times, ((int(row), texts[codes[row]]) for row in np.flatnonzero(np.isnan(times)))


def iso_seconds(text: str) -> float:
    """
    A date or a date and time of ISO 8601 in seconds since 1970, NaN for any other text; UTC where it names no zone.

    >>> iso_seconds("1970-01-02"), iso_seconds("1970-01-01 00:00:01.5"), iso_seconds("1970-01-01T01:00:00+01:00")
    (86400.0, 1.5, 0.0)
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bad_fields(raw: _Raw) -> Mask:
    return (raw.user.codes_N < 0) | (raw.item.codes_N < 0) | (raw.domain.codes_N < 0) | np.isnan(raw.times_N)


def _minority_claims(raw: _Raw, bad_N: Mask) -> Mask:
    """Rows that give their item another domain than most of its distinct rows do."""
    items, domains = raw.item.codes_N, raw.domain.codes_N
    usable = np.flatnonzero(~bad_N) if bad_N.any() else slice(None)
    domain_of_item = np.full(len(raw.item.values), MISSING, dtype=np.int32)
    domain_of_item[items[usable]] = domains[usable]
    # The last row of an item won; where another row differs the item is contested.
    contested = np.unique(items[usable][domain_of_item[items[usable]] != domains[usable]])
    if len(contested) == 0:
        return np.zeros_like(bad_N)
    rows = np.flatnonzero(np.isin(items, contested) & ~bad_N)
    claims = pl.DataFrame(
        {"item": items[rows], "domain": domains[rows], "user": raw.user.codes_N[rows], "time": raw.times_N[rows]}
    )
    # Distinct rows only: a repeated line is no further evidence.
    owners = (
        claims.unique()
        .group_by("item", "domain")
        .len()
        .sort("item", "len", "domain", descending=[False, True, False])
        .unique("item", keep="first", maintain_order=True)
    )
    domain_of_item[owners["item"].to_numpy()] = owners["domain"].to_numpy()
    minority = np.zeros_like(bad_N)
    minority[rows] = domain_of_item[items[rows]] != domains[rows]
    return minority


def _named(raw: _Raw, bad_N: Mask) -> Iterator[BadLine]:
    rows = np.flatnonzero(bad_N)
    for row, line in zip(rows.tolist(), raw.lines_of(rows).tolist(), strict=True):
        yield BadLine(line, _reason(raw, row))


def _reason(raw: _Raw, row: int) -> str:
    fields = (raw.user, raw.item, raw.domain)
    missing = [field.name for field in fields if field.codes_N[row] == MISSING]
    missing += [raw.time_name] if raw.time_texts.get(row) == "" else []
    if len(missing) == 4:
        return BLANK
    if missing:
        return f"missing {', '.join(missing)}"
    garbled = [field.name for field in fields if field.codes_N[row] == NOT_UTF8]
    if garbled:
        return f"not UTF-8: {', '.join(garbled)}"
    if row in raw.time_texts:
        text = raw.time_texts[row][:SHOWN_CHARACTERS]
        if text.strip("+-").lower() in {"nan", "inf", "infinity"}:
            return f"{raw.time_name} is not finite: {text!r}"
        return f"{raw.time_name} is neither a number nor a date of ISO 8601: {text!r}"
    item, domain = raw.item.values[int(raw.item.codes_N[row])], raw.domain.values[int(raw.domain.codes_N[row])]
    return (
        f"item {item!r} is claimed for domain {domain!r}, but most of its rows name another; where "
        "domains number their items alike, put the domain before the item"
    )

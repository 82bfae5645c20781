"""
Inputs of any layout -> integer codes of the good rows, with every bad row named: the whole table, in memory.

A row says that a user met an item of a domain at a time. Memory is in proportion to the rows, about 90 bytes each at
the peak of reading: identifiers become int32 codes while the files are parsed. Codes follow the sorted order of the
strings, so nothing depends on the order of the rows.

Shapes: N = rows, in the order of the inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from models.data.reading.identifiers import MISSING, Codes
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile, files_of
from models.data.reading.raw_tables import BLANK, BadLine, Budget, Lines
from models.data.reading.rows import RowBatch, RowReader
from models.data.reading.times import Mask, Times, TimeUnit, in_seconds
from models.errors import BadRowsError, InputFormatError

# Called with a stage's name and the fraction of it that is done, 0 to 1.
ReadingProgress = Callable[[str, float], None]

READING = "reading"
SHOWN_ROWS = 5
PROGRESS_SECONDS = 0.05


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
        times_N: finite, since 1970 in *time_unit*: as they stand, unless files differ in their units.
        num_rows: rows of the files, good, bad and filtered.
        bad_rows: in the order of the files and their lines.
        num_filtered: rows that a condition left out.
        notes: what was taken for granted while reading, in words.
        warnings: what of it has probably gone wrong, and what to do.
        carried: further columns, as texts, by name: those that the layout carries along.
    """

    ids: Identifiers
    users_N: Codes
    items_N: Codes
    domains_N: Codes
    times_N: Times
    num_rows: int
    bad_rows: tuple[BadLine, ...]
    num_filtered: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    time_unit: TimeUnit = "seconds"
    carried: Mapping[str, pl.Series] = field(default_factory=dict)


def read_interactions(
    inputs: Path | Sequence[str | Path],
    layout: Layout | None = None,
    *,
    max_bad_row_share: float,
    progress: ReadingProgress | None = None,
) -> Interactions:
    """
    Read files, folders and globs (``places``) of any format (``input_formats``).

    A row is bad as ``rows`` says, or if it claims an item for another domain than most distinct rows of that item do
    (of equally frequent domains the first by name owns the item). An item has one domain because a domain owns a range
    of tokens: a second claim is a mistake in the log, and the majority is the best evidence of what was meant.

    A blank line is named as a bad row, but it holds nothing that could be lost and counts towards no share: the last
    line of a small file is often one.

    Raises:
        InputFormatError: no such file, unreadable, or a column is missing.
        BadRowsError: more than *max_bad_row_share* of the rows are bad, blank lines aside; shows the first few.
    """
    report = progress or (lambda _stage, _fraction: None)
    paths = [inputs] if isinstance(inputs, Path) else list(inputs)
    files = files_of(paths)
    gathered = _Gathered(layout.carried if layout else ())
    for file, batch in batches_of(files, layout or Layout(), gathered.remarks, report):
        gathered.add(batch, file.facts.name if len(files) > 1 else "")
    what = ", ".join(map(str, paths))
    return _judged(gathered, what, max_bad_row_share)


@dataclass
class Remarks:
    """What is said of an input while it is read: what was taken for granted, and what has probably gone wrong."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def batches_of(
    files: Sequence[InputFile], layout: Layout, remarks: Remarks, report: ReadingProgress
) -> Iterator[tuple[InputFile, RowBatch]]:
    """
    The rows of *files*, batch by batch; *remarks* grows with each file.

    Raises:
        InputFormatError: as ``read_interactions`` does.
    """
    total, done = max(1, sum(file.num_bytes for file in files)), 0
    told = time.monotonic()
    for file in files:
        with file.open() as content:
            reader = RowReader(content, file.facts, layout, Budget())
            if not reader.has_times:
                raise InputFormatError(
                    f"{file.facts.name}: no column for the time; name it with --columns time=NAME: sequences are in "
                    "the order of time"
                )
            for batch in reader.batches():
                if time.monotonic() > told + PROGRESS_SECONDS and not content.closed:
                    report(READING, min(1.0, (done + content.tell()) / total))
                    told = time.monotonic()
                yield file, batch
            remarks.notes += reader.notes
            remarks.warnings += reader.warnings
        done += file.num_bytes
    report(READING, 1.0)


def bad_lines_of(batch: RowBatch, file: str) -> list[BadLine]:
    """The bad rows and empty lines of *batch* by line; *file* is the name to give them, '' for none."""
    bad = [*batch.bad, *(BadLine(line, BLANK) for line in batch.blank_lines.tolist())]
    bad.sort(key=lambda row: row.line)
    return [replace(row, file=file) for row in bad] if file else bad


@dataclass
class _Gathered:
    """Batches while they come: dictionaries and codes, not texts."""

    carried_names: tuple[str, ...] = ()
    carried: list[list[pa.DictionaryArray]] = field(default_factory=list)
    users: list[pa.DictionaryArray] = field(default_factory=list)
    items: list[pa.DictionaryArray] = field(default_factory=list)
    domains: list[pa.DictionaryArray] = field(default_factory=list)
    times: list[Times] = field(default_factory=list)
    units: list[TimeUnit] = field(default_factory=list)
    lines: list[Lines] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    num_filtered: int = 0
    remarks: Remarks = field(default_factory=Remarks)

    def add(self, batch: RowBatch, file: str) -> None:
        for column, ids in ((self.users, batch.users), (self.items, batch.items), (self.domains, batch.domains)):
            column.append(ids.as_dictionary())
        if self.carried_names:
            columns = zip(*batch.carried, strict=True) if batch.carried else ([] for _ in self.carried_names)
            self.carried.append([pa.array(column, pa.string()).dictionary_encode() for column in columns])
        self.times.append(batch.times_N)
        self.units.append(batch.time_unit)
        self.lines.append(batch.lines_N)
        self.files.append(file)
        self.bad += bad_lines_of(batch, file)
        self.num_filtered += batch.num_filtered

    def all_carried(self) -> dict[str, pl.Series]:
        """Every value of the columns that are carried along."""
        columns: list[list[pa.DictionaryArray]] = [list(column) for column in zip(*self.carried, strict=True)]
        texts = [pa.chunked_array(column).cast(pa.string()) for column in columns]
        return {
            name: pl.Series(column, dtype=pl.String) for name, column in zip(self.carried_names, texts, strict=False)
        }

    def all_times(self) -> tuple[Times, TimeUnit]:
        """Every time, in the one unit of all files or, where they differ, in seconds."""
        units = {unit for unit, times in zip(self.units, self.times, strict=True) if len(times)}
        if len(units) == 1:
            return np.concatenate(self.times), units.pop()
        parts = [in_seconds(times, unit) for times, unit in zip(self.times, self.units, strict=True)]
        return np.concatenate([np.zeros(0), *parts]), "seconds"


def _judged(gathered: _Gathered, what: str, max_bad_row_share: float) -> Interactions:
    user, item, domain = (_sorted_codes(column) for column in (gathered.users, gathered.items, gathered.domains))
    gathered.users, gathered.items, gathered.domains = [], [], []
    times, time_unit = gathered.all_times()
    minority = _minority_claims(user, item, domain, times)
    bad_rows = gathered.bad
    if minority.any():
        bad_rows = _in_order(gathered, [*bad_rows, *_claims(gathered, item, domain, minority)])
    num_rows = len(times) + len(gathered.bad) + gathered.num_filtered
    lossy = [row for row in bad_rows if row.reason != BLANK]
    num_filled = num_rows - (len(bad_rows) - len(lossy))
    if len(lossy) > max_bad_row_share * num_filled:
        raise BadRowsError(too_many_bad(what, len(lossy), num_filled, max_bad_row_share, lossy[:SHOWN_ROWS]))
    good = ~minority if minority.any() else slice(None)
    # A domain that only bad rows name, a misspelt one for instance, is none: nobody could be present in all domains.
    present = np.flatnonzero(np.bincount(domain.codes_N[good], minlength=len(domain.values)))
    renumbered = np.zeros(len(domain.values), dtype=np.int32)
    renumbered[present] = np.arange(len(present))
    return Interactions(
        ids=Identifiers(user.values, item.values, domain.values.gather(present)),
        users_N=user.codes_N[good],
        items_N=item.codes_N[good],
        domains_N=renumbered[domain.codes_N[good]],
        times_N=times[good],
        num_rows=num_rows,
        bad_rows=tuple(bad_rows),
        num_filtered=gathered.num_filtered,
        notes=tuple(gathered.remarks.notes),
        warnings=tuple(gathered.remarks.warnings),
        time_unit=time_unit,
        carried={name: column.filter(pl.Series(~minority)) for name, column in gathered.all_carried().items()},
    )


@dataclass(frozen=True)
class _Coded:
    """A column of good rows: codes into sorted distinct values."""

    codes_N: Codes
    values: pl.Series


def _sorted_codes(chunks: list[pa.DictionaryArray]) -> _Coded:
    """Codes in the sorted order of the distinct values, whatever order the rows came in."""
    filled = [chunk for chunk in chunks if len(chunk)]
    if not filled:
        return _Coded(np.zeros(0, dtype=np.int32), pl.Series(dtype=pl.String))
    column = pa.chunked_array(filled).unify_dictionaries()
    texts = pl.Series(column.chunk(0).dictionary, dtype=pl.String)
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    # Values that no good row has, such as a bad row's, are dropped: they would be users and items of nobody.
    used = np.flatnonzero(np.bincount(codes, minlength=len(texts)))
    values = texts.gather(used)
    order = values.arg_sort().to_numpy()
    code_of = np.full(len(texts), MISSING, dtype=np.int32)
    code_of[used[order]] = np.arange(len(order), dtype=np.int32)
    return _Coded(code_of[codes], values.gather(order))


def _minority_claims(user: _Coded, item: _Coded, domain: _Coded, times_N: Times) -> Mask:
    """Rows that give their item another domain than most of its distinct rows do."""
    items, domains = item.codes_N, domain.codes_N
    domain_of_item = np.full(len(item.values), MISSING, dtype=np.int32)
    domain_of_item[items] = domains
    minority = np.zeros(len(items), dtype=np.bool_)
    # The last row of an item won; where another row differs the item is contested.
    contested = np.unique(items[domain_of_item[items] != domains])
    if len(contested) == 0:
        return minority
    rows = np.flatnonzero(np.isin(items, contested))
    claims = pl.DataFrame(
        {"item": items[rows], "domain": domains[rows], "user": user.codes_N[rows], "time": times_N[rows]}
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
    minority[rows] = domain_of_item[items[rows]] != domains[rows]
    return minority


def _claims(gathered: _Gathered, item: _Coded, domain: _Coded, minority: Mask) -> list[BadLine]:
    starts = np.cumsum([0, *map(len, gathered.lines)])
    named = []
    for row in np.flatnonzero(minority).tolist():
        batch = int(np.searchsorted(starts, row, side="right")) - 1
        claimed, name = item.values[int(item.codes_N[row])], domain.values[int(domain.codes_N[row])]
        line = int(gathered.lines[batch][row - starts[batch]])
        named.append(BadLine(line, minority_claim(claimed, name), gathered.files[batch]))
    return named


def minority_claim(item: str, domain: str) -> str:
    """Why a row is bad that gives its item another domain than most rows of the item do."""
    return (
        f"item {item!r} is claimed for domain {domain!r}, but most of its rows name another; where "
        "domains number their items alike, put the domain before the item (--prefix-items)"
    )


def too_many_bad(what: str, num_lossy: int, num_filled: int, max_bad_row_share: float, first: Sequence[BadLine]) -> str:
    """That so many of the filled rows of *what* are bad, of which *first* are shown."""
    shown = "; ".join(map(str, first))
    return (
        f"{what}: {num_lossy:,} of {num_filled:,} rows are bad, more than the share {max_bad_row_share:g} that "
        f"is allowed. First: {shown}"
    )


def _in_order(gathered: _Gathered, rows: list[BadLine]) -> list[BadLine]:
    place = {file: index for index, file in enumerate(dict.fromkeys(gathered.files))}
    return sorted(rows, key=lambda row: (place.get(row.file, 0), row.line))

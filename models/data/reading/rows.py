"""
A file's rows as interactions, batch by batch: the one reader that ``taesar prepare`` and jobs share.

A row is bad if it is no row of its table, lacks a user, an item, a domain or a time, or one of them is not what the
policies of ids (``identifiers``) and times (``times``) admit. Every line of a file is in a batch exactly once: as a
good row, a bad one, one that a filter left out, or an empty line.

Shapes: N = good rows of a batch, in the order of the file; R = rows as the format yields them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from models.data.reading.identifiers import (
    MAX_CHARACTERS,
    MISSING,
    NOT_UTF8,
    REASON_OF_CODE,
    TOO_LONG,
    CodedIds,
    coded_ids,
    id_problem,
    may_be_rounded,
    odd_numbers,
    texts_of,
)
from models.data.reading.input_formats import INPUT_FORMATS, format_by_content, format_by_name
from models.data.reading.layouts import ChosenColumns, Layout, choose_columns, shown
from models.data.reading.raw_tables import BadLine, Budget, Lines, RawBatch, RawTable
from models.data.reading.times import Mask, ParsedTimes, Times, TimeUnit, in_seconds, parsed_times
from models.errors import InputFormatError

SHOWN_CHARACTERS = 60
# What Hive and Spark call the folder of rows that have no value.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class RowBatch:
    """
    Good rows of a file, and what became of the others.

    Args:
        times_N: since 1970, in *time_unit*; 0 where the file has no times.
        time_unit: of the numbers in the file; seconds where it holds dates.
        lines_N: their 1-based lines.
        bad: rows that cannot be used, in line order.
        blank_lines: lines that hold nothing.
        num_filtered: rows that a condition left out.
        has_times: whether a column says when.
        carried: of each good row, the values of the columns that are carried along; empty lists where there are none.
    """

    users: CodedIds
    items: CodedIds
    domains: CodedIds
    times_N: Times
    time_unit: TimeUnit
    lines_N: Lines
    bad: tuple[BadLine, ...]
    blank_lines: Lines
    num_filtered: int
    has_times: bool
    carried: Sequence[Sequence[str | None]]

    @property
    def seconds_N(self) -> Times:
        """The times in seconds."""
        return in_seconds(self.times_N, self.time_unit)

    @property
    def num_rows(self) -> int:
        """Lines of the file that the batch stands for, empty ones aside."""
        return len(self.lines_N) + len(self.bad) + self.num_filtered


@dataclass(frozen=True)
class FileFacts:
    """
    What is known of a file besides its rows.

    Args:
        name: for messages.
        domain: of all its rows, unless a column says it; None where a column must.
        partitions: columns that its folders name, ``key=value``.
        fallback_domain: of all its rows where nothing else says it: from the file's name.
    """

    name: str
    domain: str | None = None
    partitions: tuple[tuple[str, str], ...] = ()
    fallback_domain: str | None = None


class RowReader:
    """
    An open file of interactions.

    Args:
        file: stays open while the rows are read.
        budget: what it may cost.

    Raises:
        InputFormatError: it is not of its format, or a column is missing; the message begins with the file's name.
        InputTooLargeError: it is larger than *budget*.
    """

    def __init__(self, file: BinaryIO, facts: FileFacts, layout: Layout, budget: Budget) -> None:
        self._facts, self._layout = facts, layout
        with_name = f"{facts.name}: " if facts.name else ""
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.time_unit: TimeUnit | None = layout.time_unit
        self._date_digits: int | None = None
        try:
            self.input_format = format_by_name(facts.name, layout.input_format) or format_by_content(file)
            self._table: RawTable = INPUT_FORMATS[self.input_format].open(file, layout, budget)
            partitions = dict(facts.partitions)
            names = [*(name for name in self._table.names if name not in partitions), *partitions]
            self._chosen: ChosenColumns = choose_columns(layout, names, usual=self._table.usual)
            self._partitions = partitions
            self._domain = self._constant_domain(names)
        except InputFormatError as error:
            raise InputFormatError(f"{with_name}{error}") from error
        self._prefix = with_name

    @property
    def name(self) -> str:
        """Of the file, for messages."""
        return self._facts.name

    @property
    def has_times(self) -> bool:
        """Whether a column says when."""
        return self._chosen.timestamp is not None

    def check(self) -> None:
        """Raise at once what ``batches`` would before its first row."""
        try:
            self._table.check(self._to_read())
        except InputFormatError as error:
            raise InputFormatError(f"{self._prefix}{error}") from error

    def _to_read(self) -> list[str]:
        return [name for name in self._chosen.to_read() if name not in self._partitions]

    def _constant_domain(self, names: list[str]) -> str | None:
        """The domain of every row; None where a column says it."""
        stated = self._facts.domain
        if stated is None and self._chosen.domain is None:
            stated = self._facts.fallback_domain
            if stated is None:
                raise InputFormatError(
                    f"no column for the domain; columns found: {shown(names)}; name it with --columns domain=NAME, or "
                    "write DOMAIN=FILE"
                )
            self.notes.append(f"{self._facts.name}: no column for the domain; taken from the name: {stated}")
        problem = None if stated is None else id_problem(stated)
        if problem is not None:
            raise InputFormatError(f"the domain {str(stated)[:SHOWN_CHARACTERS]!r} {problem}")
        return stated

    def batches(self) -> Iterator[RowBatch]:
        """
        All rows of the file.

        Raises:
            InputFormatError, InputTooLargeError: as it is read.
        """
        try:
            for raw in self._table.batches(self._to_read()):
                yield self._batch(raw)
        except InputFormatError as error:
            raise InputFormatError(f"{self._prefix}{error}") from error

    def _batch(self, raw: RawBatch) -> RowBatch:
        num_rows = len(raw.lines_N)
        user, item = (self._ids(raw, name, num_rows) for name in (self._chosen.user, self._chosen.item))
        if self._domain is None:
            assert self._chosen.domain is not None
            domain = self._ids(raw, self._chosen.domain, num_rows)
        else:
            domain = _constant(self._domain, num_rows)
        if self._layout.prefix_items:
            item = _prefixed(item, domain)
        parsed = self._times(raw, num_rows)
        if self.time_unit is None and np.isfinite(parsed.times_N).any():
            self._look_at_times(parsed)
        if self._date_digits is not None:
            parsed = parsed.from_digits(self._date_digits)
        wanted_R = self._wanted(raw, num_rows)
        bad_R = (user.codes_N < 0) | (item.codes_N < 0) | (domain.codes_N < 0) | np.isnan(parsed.times_N)
        bad_R &= wanted_R
        good_R = wanted_R & ~bad_R
        bad = [
            BadLine(int(raw.lines_N[row]), self._reason(row, user, item, domain, parsed))
            for row in np.flatnonzero(bad_R).tolist()
        ]
        unit = self.time_unit or "seconds"
        times, unit = (parsed.times_N, unit) if parsed.is_calendar_N is None else (parsed.in_seconds(unit), "seconds")
        if not good_R.all():
            user, item, domain = (CodedIds(ids.codes_N[good_R], ids.values) for ids in (user, item, domain))
        return RowBatch(
            user,
            item,
            domain,
            times[good_R],
            unit,
            raw.lines_N[good_R],
            tuple(sorted((*raw.broken, *bad), key=lambda row: row.line)) if bad else raw.broken,
            raw.blank_lines,
            num_rows - int(np.count_nonzero(wanted_R)),
            self.has_times,
            self._carried(raw, np.flatnonzero(good_R)),
        )

    def _look_at_times(self, parsed: ParsedTimes) -> None:
        """Find what the file's numbers count, and say so where it is not seconds."""
        self._date_digits = parsed.date_digits()
        self.time_unit = "seconds" if self._date_digits else parsed.unit()
        name = self._facts.name or "the input"
        if self._date_digits:
            self.notes.append(f"{name}: times are read as dates of {self._date_digits} digits, such as 20140301")
        elif self.time_unit != "seconds":
            self.notes.append(f"{name}: times are read as {self.time_unit}")

    def _ids(self, raw: RawBatch, name: str, num_rows: int) -> CodedIds:
        if name in self._partitions:
            return _constant(self._partitions[name], num_rows)
        column = raw.columns[name]
        try:
            if name in (self._chosen.user, self._chosen.item) and may_be_rounded(column):
                self._warn(
                    f"column {name} holds numbers so large that floats cannot tell neighbours apart: different ids may "
                    "have become one; write them as integers or texts"
                )
            ids = texts_of(column) if isinstance(column, list) else coded_ids(column)
        except InputFormatError as error:
            raise InputFormatError(f"column {name} {error}") from error
        odd = odd_numbers(ids) if name in (self._chosen.user, self._chosen.item) else None
        if odd is not None:
            self._warn(f"column {name} holds {odd}; a table that has them in full names other ids: write them as texts")
        return ids

    def _warn(self, warning: str) -> None:
        """Once, however many rows give cause."""
        said = f"{self._prefix}{warning}"
        if said not in self.warnings:
            self.warnings.append(said)

    def _times(self, raw: RawBatch, num_rows: int) -> ParsedTimes:
        name, time_format = self._chosen.timestamp, self._layout.time_format
        if name is None:
            return ParsedTimes(np.zeros(num_rows), None, {})
        if name in self._partitions:
            return parsed_times(pa.array([self._partitions[name]] * num_rows, pa.string()), time_format)
        column = raw.columns[name]
        try:
            return parsed_times(
                pa.array(list(map(_time_text, column)), pa.string()) if isinstance(column, list) else column,
                time_format,
            )
        except InputFormatError as error:
            raise InputFormatError(f"column {name} {error}") from error

    def _wanted(self, raw: RawBatch, num_rows: int) -> Mask:
        wanted = np.ones(num_rows, dtype=np.bool_)
        for condition in self._layout.where:
            ids = self._ids(raw, condition.column, num_rows)
            values = ids.values.to_pylist()
            odd = condition.unlike(values)
            if odd is not None:
                self._warn(
                    f"{condition}: {odd[:SHOWN_CHARACTERS]!r} of column {condition.column} is no number, and was "
                    "compared as a text"
                )
            holds = np.array([*map(condition.holds, values), False], dtype=np.bool_)
            wanted &= holds[np.maximum(ids.codes_N, -1)]
        return wanted

    def _carried(self, raw: RawBatch, rows: Lines) -> Sequence[Sequence[str | None]]:
        """The values of the columns that are carried along, of *rows*; what can be no id is none."""
        if not self._layout.carried:
            return [[]] * len(rows)
        columns = []
        for name in self._layout.carried:
            ids = self._ids(raw, name, len(raw.lines_N))
            texts = [*ids.values.to_pylist(), None]
            columns.append([texts[code] for code in np.maximum(ids.codes_N[rows], -1).tolist()])
        return [list(values) for values in zip(*columns, strict=True)]

    def _reason(self, row: int, user: CodedIds, item: CodedIds, domain: CodedIds, times: ParsedTimes) -> str:
        chosen = self._chosen
        fields = ((chosen.user, user), (chosen.item, item), (chosen.domain or "domain", domain))
        missing = [name for name, ids in fields if ids.codes_N[row] == MISSING]
        written = times.texts.get(int(row))
        missing += [str(chosen.timestamp)] if written == "" else []
        if missing:
            return f"missing {', '.join(missing)}"
        garbled = [name for name, ids in fields if ids.codes_N[row] == NOT_UTF8]
        if garbled:
            return f"not UTF-8: {', '.join(garbled)}"
        for name, ids in fields:
            if ids.codes_N[row] < 0:
                return f"{name} {REASON_OF_CODE[int(ids.codes_N[row])]}"
        text = str(written)[:SHOWN_CHARACTERS]
        if text.strip("+-").lower() in {"nan", "inf", "infinity"}:
            return f"{chosen.timestamp} is not finite: {text!r}"
        if self._layout.time_format is not None:
            return f"{chosen.timestamp} does not fit the time format {self._layout.time_format!r}: {text!r}"
        if self._date_digits is not None:
            return f"{chosen.timestamp} is no date of {self._date_digits} digits, as others of the file are: {text!r}"
        advice = "; a time format such as %d/%m/%Y may be stated" if any(map(str.isdigit, text)) else ""
        return f"{chosen.timestamp} is neither a number nor a date of ISO 8601: {text!r}{advice}"


def _constant(text: str, num_rows: int) -> CodedIds:
    code = MISSING if text in ("", NULL_PARTITION) else 0
    return CodedIds(np.full(num_rows, code, dtype=np.int32), pa.array([text], pa.string()))


def _prefixed(items: CodedIds, domains: CodedIds) -> CodedIds:
    """``domain:item`` where there are both; elsewhere the item's code stays what it is."""
    width = max(1, len(items.values))
    usable = (items.codes_N >= 0) & (domains.codes_N >= 0)
    distinct, places = np.unique(
        domains.codes_N[usable].astype(np.int64) * width + items.codes_N[usable], return_inverse=True
    )
    names, texts = domains.values.to_pylist(), items.values.to_pylist()
    values = [f"{names[pair // width]}:{texts[pair % width]}" for pair in distinct.tolist()]
    fits = np.array([len(value) <= MAX_CHARACTERS for value in values], dtype=np.bool_)
    codes = np.where(items.codes_N < 0, items.codes_N, MISSING).astype(np.int32)
    codes[usable] = np.where(fits[places], places, TOO_LONG)
    return CodedIds(codes, pa.array(values, pa.string()))


def _time_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else "no single value"

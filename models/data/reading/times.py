"""
Times of any spelling as seconds since 1970, in float64: numbers, dates of ISO 8601 or of a stated format, and Arrow's
dates and timestamps.

A number may count seconds, milliseconds, microseconds or nanoseconds: the size of a file's first times tells which, as
no log is from before March 1973 in milliseconds or after the year 5138 in seconds. Small numbers are left as they are,
since only their order counts, unless they are dates written without anything between their parts (20140301). Text
without a zone is UTC. An infinity, or no number, is no time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.data.reading.identifiers import EXACT_FLOATS
from models.errors import InputFormatError

Times = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
TimeUnit = Literal["seconds", "milliseconds", "microseconds", "nanoseconds"]

PER_SECOND: dict[TimeUnit, int] = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# The least number of each unit that is read as one, largest first.
_FROM: tuple[tuple[float, TimeUnit], ...] = ((1e17, "nanoseconds"), (1e14, "microseconds"), (1e11, "milliseconds"))
# How many rows of a file decide on its unit, and how many of those must agree.
UNIT_ROWS = 4096
_AGREEING = 0.95
# Numbers that are dates: how many digits after the day's, by all of them.
_DIGITS_OF_TIME = {8: 0, 12: 4, 14: 6}
_FIRST_YEAR, _LAST_YEAR = 1900, 2100
_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:(?:T|\s+)(\d{1,2}):(\d{2})(.*))?")
# No date is longer; what is long may cost a parser the square of its length.
MAX_DATE_CHARACTERS = 128
_UTC = re.compile(r"\s*(UTC|GMT|Z)$", re.IGNORECASE)
_ARROW_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class ParsedTimes:
    """
    A column of times.

    Args:
        times_N: numbers as they stand, or seconds where ``is_calendar_N``; NaN where there is no time.
        is_calendar_N: the time was a date or timestamp, whose unit is known; None where none was.
        texts: what was written where there is no time, by row; '' for nothing.
    """

    times_N: Times
    is_calendar_N: Mask | None
    texts: dict[int, str]

    def in_seconds(self, unit: TimeUnit) -> Times:
        """Seconds, the numbers being in *unit*."""
        seconds = in_seconds(self.times_N, unit)
        return seconds if self.is_calendar_N is None else np.where(self.is_calendar_N, self.times_N, seconds)

    def unit(self) -> TimeUnit:
        """The unit that nearly all of the first numbers speak for; seconds where they disagree or are small."""
        return unit_of(self.times_N[:UNIT_ROWS] if self.is_calendar_N is None else self._first_numbers())

    def date_digits(self) -> int | None:
        """How many digits the first numbers have if nearly all of them are dates such as 20140301; None if not."""
        return date_digits_of(self.times_N[:UNIT_ROWS] if self.is_calendar_N is None else self._first_numbers())

    def from_digits(self, digits: int) -> ParsedTimes:
        """The same, the numbers being dates of so many digits; what is none is no time."""
        is_calendar = np.zeros(len(self.times_N), np.bool_) if self.is_calendar_N is None else self.is_calendar_N
        times = np.where(is_calendar, self.times_N, seconds_of_digits(self.times_N, digits))
        lost = np.flatnonzero(np.isnan(times) & np.isfinite(self.times_N))
        texts = self.texts | {int(row): f"{self.times_N[row]:.15g}" for row in lost}
        return ParsedTimes(times, np.ones(len(times), dtype=np.bool_), texts)

    def _first_numbers(self) -> Times:
        assert self.is_calendar_N is not None
        first: Times = self.times_N[:UNIT_ROWS][~self.is_calendar_N[:UNIT_ROWS]]
        return first


def in_seconds(times: Times, unit: TimeUnit) -> Times:
    """Numbers of *unit* as seconds."""
    return times if unit == "seconds" else times / PER_SECOND[unit]


def are_whole(times: Sequence[float] | Times) -> bool:
    """
    Whether all *times* are whole numbers that a float holds exactly.

    >>> are_whole([1300000000.0]), are_whole([0.5]), are_whole([])
    (True, False, True)
    """
    numbers = np.asarray(times, dtype=np.float64)
    return bool(np.all(numbers == np.floor(numbers)) and np.all(np.abs(numbers) < EXACT_FLOATS))


def unit_of(times: Times) -> TimeUnit:
    """
    The unit of numbers that count from 1970.

    >>> [unit_of(np.array(times)) for times in ([1.3e9], [1.3e12], [1.3e12, 1.3e9], [5.0])]
    ['seconds', 'milliseconds', 'seconds', 'seconds']
    """
    sizes = np.abs(times[np.isfinite(times)])
    upper = math.inf
    for least, unit in _FROM:
        if len(sizes) and np.count_nonzero((sizes >= least) & (sizes < upper)) >= _AGREEING * len(sizes):
            return unit
        upper = least
    return "seconds"


def date_digits_of(times: Times) -> int | None:
    """
    How many digits numbers have that are dates without anything between their parts; None where they are none.

    >>> [date_digits_of(np.array(times)) for times in ([20140301.0], [20140301101500.0], [20141399.0], [1.3e9])]
    [8, 14, None, None]
    """
    numbers = times[np.isfinite(times)]
    for digits in _DIGITS_OF_TIME:
        if len(numbers) and np.isfinite(seconds_of_digits(numbers, digits)).sum() >= _AGREEING * len(numbers):
            return digits
    return None


def seconds_of_digits(numbers: Times, digits: int) -> Times:
    """
    Dates of so many digits (8: day, 12: minute, 14: second) as seconds since 1970; NaN where there is none.

    >>> seconds_of_digits(np.array([19700102.0, 19701301.0]), 8).tolist()
    [86400.0, nan]
    """
    whole = np.isfinite(numbers) & (np.abs(numbers) < 10.0**digits)
    whole[whole] = numbers[whole] == np.floor(numbers[whole])
    count = _DIGITS_OF_TIME[digits]
    day, time = np.divmod(np.where(whole, numbers, 0).astype(np.int64), 10**count)
    hour, minute, second = (time * 10 ** (6 - count) // place % 100 for place in (10_000, 100, 1))
    year, month = day // 10_000, day // 100 % 100
    whole &= (year >= _FIRST_YEAR) & (year <= _LAST_YEAR) & (month >= 1) & (month <= 12)
    whole &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(whole, (year - 1970) * 12 + month - 1, 0)
    first = months.astype("datetime64[M]")
    date = first.astype("datetime64[D]") + (day % 100 - 1)
    whole &= (day % 100 >= 1) & (date.astype("datetime64[M]") == first)
    seconds = date.astype("datetime64[s]").astype(np.int64) + hour * 3600 + minute * 60 + second
    return np.where(whole, seconds, np.nan)


def parsed_times(column: pa.Array, time_format: str | None = None) -> ParsedTimes:
    """
    The times of a column of numbers, texts, dates or timestamps.

    Args:
        time_format: of texts, and of numbers by their digits, in the words of ``strptime``.

    Raises:
        InputFormatError: the column holds something else.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if any(is_kind(kind) for is_kind in _TEXTS):
        return _of_texts(column, time_format)
    if time_format is not None and pa.types.is_integer(kind):
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        return _of_texts(column.cast(pa.string()), time_format)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    absent = column.is_null().to_numpy(zero_copy_only=False)
    calendar = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if calendar:
        times = _calendar_seconds(column)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        times = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    elif pa.types.is_decimal(kind):
        times = np.array([math.nan if value is None else float(value) for value in column.to_pylist()])
    else:
        raise InputFormatError(f"holds {str(kind)[:200]}, neither numbers nor times")
    bad = np.flatnonzero(absent | ~np.isfinite(times))
    texts = {int(row): "" if absent[row] else str(times[row]) for row in bad}
    times[bad] = math.nan
    return ParsedTimes(times, np.ones(len(times), dtype=np.bool_) if calendar else None, texts)


def _calendar_seconds(column: pa.Array) -> Times:
    kind = column.type
    if pa.types.is_date32(kind):
        counts, per_second = column.cast(pa.int32()), 1 / 86_400
    elif pa.types.is_date64(kind):
        counts, per_second = column.cast(pa.int64()), 1000
    else:
        counts, per_second = column.cast(pa.int64()), _ARROW_UNITS[kind.unit]
    numbers = pc.fill_null(counts, 0).to_numpy(zero_copy_only=False)
    if per_second == 10**9:  # whole microseconds: what float64 can tell apart, and what all readers agree on
        numbers, per_second = numbers // 1000, 10**6
    seconds: Times = numbers / per_second
    return seconds


def _of_texts(column: pa.Array, time_format: str | None) -> ParsedTimes:
    """A day's stamp repeats: each text is parsed once."""
    encoded = column if pa.types.is_dictionary(column.type) else column.cast(pa.binary()).dictionary_encode()
    values = [b"" if value is None else value for value in encoded.dictionary.cast(pa.binary()).to_pylist()]
    texts = [*(value.decode("utf-8", "replace").strip() for value in values), ""]
    numbers = pl.Series(texts if time_format is None else [None] * len(texts), dtype=pl.String)
    numbers = numbers.cast(pl.Float64, strict=False)
    parsed = numbers.fill_null(math.nan).to_numpy().copy()
    no_numbers = np.flatnonzero(numbers.is_null().to_numpy())
    for row in no_numbers:  # one by one: most columns have none
        parsed[row] = iso_seconds(texts[row]) if time_format is None else _seconds(texts[row], time_format)
    is_calendar = np.zeros(len(texts), dtype=np.bool_)
    is_calendar[no_numbers] = np.isfinite(parsed[no_numbers])
    codes = pc.fill_null(encoded.indices.cast(pa.int32()), -1).to_numpy()
    times = np.where(np.isfinite(parsed), parsed, np.nan)[codes]
    shown = {int(row): texts[codes[row]] for row in np.flatnonzero(np.isnan(times))}
    return ParsedTimes(times, is_calendar[codes] if is_calendar.any() else None, shown)


def iso_seconds(text: str) -> float:
    """
    A date or a date and time of ISO 8601 in seconds since 1970, NaN for any other text; UTC where it names no zone.

    Slashes between year, month and day, months and days of one digit, and UTC or GMT at the end are understood, too.

    >>> iso_seconds("1970-01-02"), iso_seconds("1970-01-01 00:00:01.5"), iso_seconds("1970-01-01T01:00:00+01:00")
    (86400.0, 1.5, 0.0)
    >>> iso_seconds("1970/1/2"), iso_seconds("1970-01-01 00:00:01 UTC"), iso_seconds("03/04/2014")
    (86400.0, 1.0, nan)
    """
    text = text.strip()
    if len(text) > MAX_DATE_CHARACTERS:
        return math.nan
    text = _UTC.sub("+00:00", text)
    match = _DATE.fullmatch(text.removesuffix("+00:00") if ":" not in text.removesuffix("+00:00") else text)
    if match is not None:
        year, month, day, hour, minute, rest = match.groups()
        text = f"{year}-{month:0>2}-{day:0>2}" + (f"T{hour:0>2}:{minute}{rest}" if hour else "")
    try:
        return _timestamp(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return math.nan


def time_format_problem(time_format: str) -> str | None:
    """
    What is wrong with a format of times, in words that follow it; None if nothing is.

    >>> time_format_problem("%d/%m/%Y"), time_format_problem("%H:%M"), time_format_problem("dd/mm")
    (None, 'says no year', 'says no year')
    """
    sample = datetime(2014, 3, 4, 5, 6, 7, tzinfo=UTC)
    try:
        read = datetime.strptime(sample.strftime(time_format), time_format)
    except (ValueError, re.error):  # of a part that is named twice the latter
        return "is not in the words of strptime, such as %d/%m/%Y %H:%M"
    return None if read.year == sample.year else "says no year"


def _seconds(text: str, time_format: str) -> float:
    if len(text) > MAX_DATE_CHARACTERS:
        return math.nan
    try:
        return _timestamp(datetime.strptime(text, time_format))
    except (ValueError, OverflowError):
        return math.nan


def _timestamp(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)

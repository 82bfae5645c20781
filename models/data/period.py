"""The time that a dataset covers, and what unit its numbers must be in."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from models.data.dataset import Times

# A log's numbers are seconds since 1970, or milli-, micro- or nanoseconds: those of years from 1973 to 5138 tell.
_UNITS = ((1e11, 1_000_000_000), (1e14, 1_000_000), (1e17, 1_000), (math.inf, 1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds_per_unit(largest: float) -> int:
    """
    Nanoseconds in one unit of a log whose time furthest from 1970 is *largest*.

    >>> nanoseconds_per_unit(1_400_000_000), nanoseconds_per_unit(1_400_000_000_000)
    (1000000000, 1000000)
    """
    return next(unit for bound, unit in _UNITS if abs(largest) < bound)


def period_of(times: Times) -> dict[str, Any]:
    """The first and last time, as numbers of the log and as dates of ISO 8601; null where there is none."""
    if not len(times):
        return dict.fromkeys(("first", "last", "first_date", "last_date"))
    first, last = float(times.min()), float(times.max())
    per_unit = nanoseconds_per_unit(max(abs(first), abs(last)))
    return {
        "first": first,
        "last": last,
        "first_date": moment_of(first * per_unit / 1e9),
        "last_date": moment_of(last * per_unit / 1e9),
    }


def now_text() -> str:
    """The present moment as ISO 8601, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def moment_of(seconds: float) -> str | None:
    """The date of ISO 8601 of seconds since 1970; None beyond the calendar."""
    try:
        return (_EPOCH + timedelta(seconds=seconds)).date().isoformat()
    except OverflowError:
        return None

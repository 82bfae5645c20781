"""
What an input looks like before anything is made of it: counts per domain, and what is odd about them.

A warning says what was seen, what it probably means, and what to do. An input that cannot be what it was taken for
(ratings or hundreds of values as domains) is refused unless asked for.

Shapes: N = rows, D = domains, U = users.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations

import numpy as np

from models.data.reading.interactions import Interactions
from models.data.reading.times import in_seconds
from models.errors import ImplausibleInputError

# More domains than any log that we have heard of; a column of categories or brands soon has more.
MOST_DOMAINS = 100
# Times of two domains that differ by a unit do so by a factor of 1,000 each.
_UNIT_FACTOR = 1000.0
# Seconds of March 1973 and of the year 5138: no log is from before the one or after the other.
_EARLIEST, _LATEST = 1e8, 1e11
# So many rows whose times are all no larger than ratings have ratings for times.
MANY_ROWS, HIGHEST_RATING = 50, 10.0


@dataclass(frozen=True)
class DomainPreview:
    """
    One domain as it was read.

    Args:
        user_share: of all users, those with a row here.
        first, last: its times.
    """

    domain: str
    rows: int
    users: int
    items: int
    user_share: float
    first: float
    last: float


@dataclass(frozen=True)
class Preview:
    """
    An input as it was read, before any threshold.

    Args:
        shared_users: users with a row in every domain.
        notes: what was taken for granted.
        warnings: what is odd, and what to do about it.
    """

    rows: int
    users: int
    items: int
    shared_users: int
    domains: tuple[DomainPreview, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def preview(interactions: Interactions, *, anyway: bool = False) -> Preview:
    """
    Look at *interactions*.

    Raises:
        ImplausibleInputError: its domains are none; not raised with *anyway*.
    """
    num_users, num_domains = len(interactions.ids.users), len(interactions.ids.domains)
    names = interactions.ids.domains.to_list()
    problem = check_domains(names, len(interactions.ids.items), anyway=anyway)
    cells = np.zeros(num_users * num_domains, dtype=np.bool_)
    cells[interactions.users_N.astype(np.int64) * num_domains + interactions.domains_N] = True
    present_UD = cells.reshape(num_users, num_domains)
    seen_users = int(np.count_nonzero(present_UD.any(axis=1))) if num_domains else 0
    shared = int(np.count_nonzero(present_UD.all(axis=1))) if num_domains else 0
    domains = tuple(
        _domain(interactions, code, name, int(np.count_nonzero(present_UD[:, code])), seen_users)
        for code, name in enumerate(names)
    )
    warnings = [*([] if problem is None else [problem]), *interactions.warnings]
    return previewed(domains, users=seen_users, shared=shared, notes=interactions.notes, warnings=warnings)


def check_domains(names: Sequence[str], num_items: int, *, anyway: bool) -> str | None:
    """
    What is implausible about the domains of an input, where that is to be passed over; None if nothing is.

    Raises:
        ImplausibleInputError: they are none, and *anyway* was not asked for.
    """
    problem = implausible_domains(names, num_items)
    if problem is not None and not anyway:
        raise ImplausibleInputError(problem)
    return problem


def previewed(
    domains: tuple[DomainPreview, ...], *, users: int, shared: int, notes: Sequence[str], warnings: Sequence[str]
) -> Preview:
    """
    The preview of an input whose domains are known; what is odd about them follows *warnings*.

    Args:
        users: with any row.
        shared: users with a row in every domain.
    """
    rows, items = sum(domain.rows for domain in domains), sum(domain.items for domain in domains)
    said = (*warnings, *domain_warnings(domains, shared))
    return Preview(rows, users, items, shared, domains, tuple(notes), said)


def moment(seconds: float) -> str:
    """A time as a date, or as the number that it is where that would be none of ours."""
    if not _EARLIEST <= seconds <= _LATEST:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _domain(interactions: Interactions, code: int, name: str, users: int, all_users: int) -> DomainPreview:
    here = interactions.domains_N == code
    times = in_seconds(interactions.times_N[here], interactions.time_unit)
    items = int(np.count_nonzero(np.bincount(interactions.items_N[here])))
    return DomainPreview(
        name, len(times), users, items, users / max(1, all_users), float(times.min()), float(times.max())
    )


def implausible_domains(names: Sequence[str], num_items: int | None = None) -> str | None:
    """
    Why *names* can hardly be domains; None if they can.

    Args:
        num_items: how many items there are, where that is known.
    """
    numbers = [_number(name) for name in names]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    advice = "name the right column with --columns domain=NAME, or write DOMAIN=FILE; --anyway goes on"
    if len(names) > MOST_DOMAINS:
        return f"the domain column has {len(names):,} values ({shown}): more than any log has domains; {advice}"
    if len(names) > 3 and len(names) == num_items:
        return f"every item is a domain of its own ({shown}): the domain column is that of the items; {advice}"
    ratings = [number for number in numbers if 0 <= number <= 10 and (2 * number).is_integer()]
    if len(names) > 2 and len(ratings) == len(names) and any("." in name for name in names):
        return f"the domain column holds numbers as ratings are ({shown}); {advice}"
    return None


def domain_warnings(domains: Sequence[DomainPreview], shared: int) -> list[str]:
    """
    What is odd about the domains of an input.

    Args:
        shared: users with a row in every domain.
    """
    found: list[str] = []
    if len(domains) == 1:
        found.append(
            f"one domain only ({domains[0].domain}): there is nothing to transfer from; give the logs of the other "
            "domains, too (books=FILE toys=FILE), or name the column that says the domain (--columns domain=NAME)"
        )
    if len(domains) > 1 and shared == 0:
        found.append(
            "no user has rows in every domain: are users named alike in all of them? --overlap any keeps users of any"
        )
    if len(domains) > 2 and all(not math.isnan(_number(domain.domain)) for domain in domains):
        listed = ", ".join(domain.domain for domain in domains[:5])
        found.append(f"the domains are numbers ({listed}): is their column one of ratings or categories?")
    for domain in domains:
        if domain.domain != domain.domain.strip():
            found.append(
                f"the domain {domain.domain!r} begins or ends with a blank: are there blanks around the separator? "
                "State it with them (--separator ', ')"
            )
    found += [*_spelt_alike(domains), *(said for said in map(_units_mixed, domains) if said is not None)]
    rows, first, last = (
        sum(domain.rows for domain in domains),
        min((domain.first for domain in domains), default=0.0),
        max((domain.last for domain in domains), default=0.0),
    )
    if rows >= MANY_ROWS and 0 <= first < last <= HIGHEST_RATING:
        found.append(
            f"all times lie between {first:g} and {last:g}: is their column one of ratings? Name the right one with "
            "--columns time=NAME"
        )
    for one, other in combinations(domains, 2):
        warning = _disjoint(one, other)
        if warning is not None:
            found.append(warning)
    return found


def _spelt_alike(domains: Sequence[DomainPreview]) -> Iterator[str]:
    spellings: dict[str, list[str]] = {}
    for domain in domains:
        spellings.setdefault(domain.domain.strip().casefold(), []).append(domain.domain)
    for names in spellings.values():
        if len(names) > 1:
            listed = ", ".join(map(repr, names))
            yield f"the domains {listed} differ in their spelling alone: are they one? Write it alike"


def _units_mixed(domain: DomainPreview) -> str | None:
    """What to say of times of which some are probably in another unit: no log is as long as that makes it seem."""
    if not (0 < domain.first < _EARLIEST < domain.last or _EARLIEST <= domain.first < _LATEST < domain.last):
        return None
    return (
        f"the times of {domain.domain} run from {moment(domain.first)} to {moment(domain.last)}: some rows are "
        "probably in another unit than the others, and would not stand in their order; bring them to one"
    )


def _disjoint(one: DomainPreview, other: DomainPreview) -> str | None:
    """What to say of two domains whose times do not overlap: sequences would hold one domain after the other."""
    earlier, later = sorted((one, other), key=lambda domain: domain.first)
    if later.first <= earlier.last or min(one.rows, other.rows) < 2:
        return None
    said = (
        f"the times of {earlier.domain} ({moment(earlier.first)} to {moment(earlier.last)}) and {later.domain} "
        f"({moment(later.first)} to {moment(later.last)}) do not overlap: all of a user's {earlier.domain} would come "
        f"before every {later.domain}"
    )
    factor = later.first / earlier.first if earlier.first > 0 else 0.0
    for power, unit in ((1, "milliseconds"), (2, "microseconds"), (3, "nanoseconds")):
        if 0.2 < factor / _UNIT_FACTOR**power < 5:
            return (
                f"{said}; {later.domain} is probably in {unit}, {earlier.domain} in seconds: give each domain as a "
                "file of its own, whose unit is then found by itself, or convert the times"
            )
    return said + "; if that is not so, look at the time column and its unit (--time-unit)"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

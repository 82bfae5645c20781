"""
Rows of a log and the thresholds that they must meet, applied until every one holds for every row that is left.

Shapes: N = rows, U = users, I = items, D = domains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import Times
from models.data.preparation_report import Counts, DomainCounts, Removed
from models.data.reading.identifiers import Codes
from models.data.reading.times import Mask
from models.errors import EmptyDatasetError

Overlap = Literal["all", "any"]
UserThreshold = Literal["per_domain", "total"]


class Thresholds(Protocol):
    """The thresholds of a preparation's configuration."""

    @property
    def min_user_interactions(self) -> int:
        """Of a user, per domain or in total."""
        ...

    @property
    def min_item_interactions(self) -> int:
        """Of an item."""
        ...

    @property
    def user_threshold(self) -> UserThreshold:
        """How a user's rows are counted."""
        ...

    @property
    def overlap(self) -> Overlap:
        """Which users stay."""
        ...


@dataclass(frozen=True)
class Anchors:
    """
    What a former dataset holds, and an extension of it keeps (``models.data.extension``).

    Args:
        users_U: whether the dataset has the user, bool.
        items_I: likewise.
        cells_UD: whether it has the user with items of the domain, bool, flat.
        item_order: codes of its items in the order of its vocabulary.
        domains_of_items: codes of their domains, parallel.
    """

    users_U: Mask
    items_I: Mask
    cells_UD: Mask
    item_order: Codes
    domains_of_items: Codes

    def holds(self, rule: str, rows: Rows, num_domains: int) -> Mask:
        """Which rows stay whatever the threshold *rule* says, bool [N]."""
        held: Mask
        if rule == "by_item_threshold":
            held = self.items_I[rows.items_N]
        elif rule == "by_overlap":
            held = self.users_U[rows.users_N]
        else:
            held = self.cells_UD[rows.users_N.astype(np.int64) * num_domains + rows.domains_N]
        return held


@dataclass(frozen=True)
class Rows:
    """Interactions as parallel arrays; ``positions_N`` is the place in the input."""

    users_N: Codes
    items_N: Codes
    domains_N: Codes
    times_N: Times
    positions_N: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.users_N)

    def take(self, index: Mask | npt.NDArray[np.uint32]) -> Rows:
        return Rows(*(getattr(self, f.name)[index] for f in fields(self)))

    def counts(self, domain_ids: pl.Series) -> Counts:
        """Users, items and interactions, over all rows and per domain."""
        per_domain = []
        for code, domain in enumerate(domain_ids):
            here = self.domains_N == code
            users, items, rows = (
                _num_distinct(self.users_N[here]),
                _num_distinct(self.items_N[here]),
                int(here.sum()),
            )
            per_domain.append(DomainCounts(domain, users, items, rows, rows / users if users else 0.0))
        users = _num_distinct(self.users_N)
        mean_length = len(self) / users if users else 0.0
        return Counts(users, sum(d.items for d in per_domain), len(self), mean_length, tuple(per_domain))


def _num_distinct(codes: Codes) -> int:
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0


def distinct_rows(users_N: Codes, items_N: Codes, domains_N: Codes, times_N: Times) -> Rows:
    """The rows, in the order of the input, without exact duplicates (the first stays), sorted by user and time."""
    table = pl.DataFrame({"user": users_N, "time": times_N, "item": items_N, "domain": domains_N}).with_row_index(
        "position"
    )
    # Every item has one domain, so equal (user, time, item) is an equal row, and sorting makes duplicates neighbours.
    table = table.sort("user", "time", "item", "position")
    user, time, item = (table[name].to_numpy() for name in ("user", "time", "item"))
    first = np.ones(len(table), dtype=np.bool_)
    first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1]) | (item[1:] != item[:-1])
    rows = Rows(user, item, table["domain"].to_numpy(), time, table["position"].to_numpy())
    return rows if first.all() else rows.take(first)


def apply_thresholds(
    rows: Rows, rules: Thresholds, domain_ids: pl.Series, *, where: str, anchors: Anchors | None = None
) -> tuple[Rows, Removed]:
    """
    Remove rows until every threshold holds for every row that is left.

    Each threshold only ever removes, and more rows never make one fail, so the fixed point is the same in any order.

    Args:
        where: what the rows are, for the message.
        anchors: what stays whatever the thresholds say.

    Raises:
        EmptyDatasetError: nothing is left.
    """
    removed = dict.fromkeys((f.name for f in fields(Removed)), 0)
    names = threshold_words(rules, domain_ids)
    if len(rows) == 0:
        raise EmptyDatasetError(f"{where}: there is no row to begin with")
    num_users, num_items = int(rows.users_N.max()) + 1, int(rows.items_N.max()) + 1
    while True:
        before = len(rows)
        for rule in names:
            keep = passing(rule, rows, rules, num_users, num_items, len(domain_ids))
            if anchors is not None:
                keep |= anchors.holds(rule, rows, len(domain_ids))
            num_removed = len(rows) - int(np.count_nonzero(keep))
            if num_removed == 0:
                continue
            removed[rule] += num_removed
            if num_removed == len(rows):
                raise EmptyDatasetError(nothing_left(where, names, rule, num_removed, removed))
            rows = rows.take(keep)
        if len(rows) == before:
            return rows, Removed(**removed)


def threshold_words(rules: Thresholds, domain_ids: Iterable[str]) -> dict[str, str]:
    """What each threshold asks, in words, by the names of ``Removed``, in the order in which they are applied."""
    return {
        "by_item_threshold": f"at least {rules.min_item_interactions} interactions per item",
        "by_user_threshold": f"at least {rules.min_user_interactions} interactions per user"
        + (" in a domain" if rules.user_threshold == "per_domain" else ""),
        "by_overlap": f"users present in every domain ({', '.join(domain_ids)})",
    }


def nothing_left(where: str, names: dict[str, str], rule: str, num_removed: int, removed: dict[str, int]) -> str:
    """That the threshold *rule* removed the last *num_removed* rows; *removed* is what all did, these rows included."""
    so_far = ", ".join(f"{removed[name]:,} by {words!r}" for name, words in names.items())
    return (
        f"{where}, nothing is left: the threshold {names[rule]!r} removed the last {num_removed:,} rows "
        f"(removed in all: {so_far})"
    )


def passing(rule: str, rows: Rows, rules: Thresholds, num_users: int, num_items: int, num_domains: int) -> Mask:
    """Which rows one threshold leaves, bool [N]."""
    kept: Mask
    if rule == "by_item_threshold":
        kept = (np.bincount(rows.items_N, minlength=num_items) >= rules.min_item_interactions)[rows.items_N]
        return kept
    if rule == "by_user_threshold" and rules.user_threshold == "total":
        kept = (np.bincount(rows.users_N, minlength=num_users) >= rules.min_user_interactions)[rows.users_N]
        return kept
    if rule == "by_overlap" and rules.overlap == "any":
        return np.ones(len(rows), dtype=np.bool_)
    cells_N = rows.users_N.astype(np.int64) * num_domains + rows.domains_N
    counts_UD = np.bincount(cells_N, minlength=num_users * num_domains).reshape(num_users, num_domains)
    if rule == "by_user_threshold":
        kept = counts_UD[rows.users_N, rows.domains_N] >= rules.min_user_interactions
    else:
        kept = (np.count_nonzero(counts_UD, axis=1) == num_domains)[rows.users_N]
    return kept

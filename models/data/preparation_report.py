"""What a preparation counts: the rows of each domain, what every rule removed, and where each row of the input went."""

from __future__ import annotations

from dataclasses import dataclass

from models.data.reading.raw_tables import BadLine


@dataclass(frozen=True)
class DomainCounts:
    """What one domain holds; ``mean_length`` is interactions per user of the domain, 0 where there are none."""

    domain: str
    users: int
    items: int
    interactions: int
    mean_length: float


@dataclass(frozen=True)
class Counts:
    """What a set of rows holds; ``domains`` lists every domain of the input, in name order."""

    users: int
    items: int
    interactions: int
    mean_length: float
    domains: tuple[DomainCounts, ...]

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions"


@dataclass(frozen=True)
class Removed:
    """Rows that each threshold removed; in each round items are judged first, then users, then overlap."""

    by_item_threshold: int = 0
    by_user_threshold: int = 0
    by_overlap: int = 0

    @property
    def total(self) -> int:
        """Rows removed by all three."""
        return self.by_item_threshold + self.by_user_threshold + self.by_overlap


@dataclass(frozen=True)
class PreparationReport:
    """
    Where every row of the input went.

    Out of core, ``bad_rows`` has the first of them only; the dataset's ``bad_rows.csv`` has all.

    ``rows_read = bad + filtered + duplicate + removed + cut + removed after the cut + result.interactions``.
    """

    rows_read: int
    rows_bad: int
    rows_filtered: int
    rows_duplicate: int
    removed: Removed
    before_cut: Counts
    rows_cut: int
    removed_after_cut: Removed
    result: Counts
    bad_rows: tuple[BadLine, ...]
    fingerprint: str

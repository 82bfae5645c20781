"""What is odd about the interactions of a job: gathered while they are read, told as ``taesar prepare`` tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from app.jobs.user_sort import UserRows
from models.data.reading.preview import MOST_DOMAINS, DomainPreview, domain_warnings, implausible_domains
from models.data.reading.rows import RowBatch

# Domains of which times and users are kept: one more than any log has, so that too many are seen to be.
KEPT_DOMAINS = MOST_DOMAINS + 1


@dataclass
class _Domain:
    rows: int = 0
    first: float = np.inf
    last: float = -np.inf


@dataclass
class InputWarnings:
    """
    Takes what is read of an input and says what is odd about it.

    Args:
        said: by readers of its files.
    """

    said: list[str] = field(default_factory=list)
    _domains: dict[str, _Domain] = field(default_factory=dict)
    _of_users: Counter[frozenset[str]] = field(default_factory=Counter)
    _without_times: list[str] = field(default_factory=list)

    def add_file(self, name: str, *, has_times: bool, warnings: Sequence[str]) -> None:
        """Take what the reader of one file has to say."""
        self.said += warnings
        if not has_times:
            self._without_times.append(name)

    def add_rows(self, batch: RowBatch) -> None:
        """Take the good rows of one batch."""
        names, codes, seconds = batch.domains.values.to_pylist(), batch.domains.codes_N, batch.seconds_N
        order = np.argsort(codes, kind="stable")
        distinct, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
        for code, start, count in zip(distinct.tolist(), starts.tolist(), counts.tolist(), strict=True):
            if names[code] not in self._domains and len(self._domains) >= KEPT_DOMAINS:
                continue
            domain = self._domains.setdefault(names[code], _Domain())
            times = seconds[order[start : start + count]]
            domain.rows += count
            domain.first, domain.last = min(domain.first, float(times.min())), max(domain.last, float(times.max()))

    def add_user(self, user: UserRows) -> None:
        """Take which domains one user has."""
        self._of_users[frozenset(name for name in user.domains if name in self._domains)] += 1

    def found(self) -> list[str]:
        """All that is odd, once everything has been taken."""
        if not self._domains:
            return self.said
        problem = implausible_domains(list(self._domains))
        shared = sum(count for names, count in self._of_users.items() if len(names) > 1)
        domains = [
            DomainPreview(name, one.rows, 0, 0, 0.0, one.first, one.last) for name, one in sorted(self._domains.items())
        ]
        found = [*self.said, *self._dropped_times(), *([] if problem is None else [problem])]
        return found + (domain_warnings(domains, shared) if problem is None else [])

    def _dropped_times(self) -> list[str]:
        if not self._without_times:
            return []
        return [
            f"{self._without_times[0]}: no column for the time: the order of the rows counts, and results have no "
            "times; name it with columns time=NAME"
        ]

"""
The thresholds of ``models.data.thresholds`` over rows that lie on disk, chunk by chunk, to the same fixed point.

An item's rows lie in many chunks, a user's in one. So a round goes once over the chunks: items are judged by their
counts at its beginning, users by what is left of their rows then. After the first round only users who lost a row are
looked at again.

Shapes: N = rows of a chunk, I = items, D = domains.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from models.data.out_of_core.user_chunks import KEPT, SET_ASIDE, UserChunk, UserChunks
from models.data.preparation_report import Counts, DomainCounts, Removed
from models.data.reading.interactions import ReadingProgress
from models.data.reading.times import Mask
from models.data.thresholds import Rows, Thresholds, nothing_left, passing, threshold_words
from models.errors import EmptyDatasetError

ItemCounts = npt.NDArray[np.int64]


def apply_thresholds_to_chunks(
    chunks: UserChunks, counts_I: ItemCounts, rules: Thresholds, *, where: str, stage: str, report: ReadingProgress
) -> Removed:
    """
    Set rows aside until every threshold holds for every row that is kept.

    Args:
        counts_I: kept rows of every item; counted down.
        where: what the rows are, for the message.

    Raises:
        EmptyDatasetError: nothing is left.
    """
    removed = dict.fromkeys((f.name for f in fields(Removed)), 0)
    names = threshold_words(rules, chunks.items.domain_names)
    left = int(counts_I.sum())
    if left == 0:
        raise EmptyDatasetError(f"{where}: there is no row to begin with")
    of_everyone = True
    while True:
        too_few_I = counts_I < rules.min_item_interactions
        this_round = dict.fromkeys(removed, 0)
        for index, chunk in enumerate(chunks):
            report(stage, index / len(chunks))
            lost = _judge(chunk, chunks, too_few_I, rules, of_everyone=of_everyone)
            for rule, rows in lost.items():
                this_round[rule] += len(rows)
                counts_I -= np.bincount(rows.items_N, minlength=len(counts_I))
        for rule, number in this_round.items():
            removed[rule] += number
            left -= number
            if number and left == 0:
                raise EmptyDatasetError(nothing_left(where, names, rule, number, removed))
        of_everyone = False
        if not any(this_round.values()):
            return Removed(**removed)


def _judge(
    chunk: UserChunk, chunks: UserChunks, too_few_I: Mask, rules: Thresholds, *, of_everyone: bool
) -> dict[str, Rows]:
    """Set aside what the thresholds remove of *chunk* in one round; the rows that each removed."""
    fates = chunk.read("fates")
    suspects = np.flatnonzero((fates == KEPT) & too_few_I[chunk.read("items")])
    if not of_everyone and len(suspects) == 0:
        return {}
    if of_everyone:
        places = np.flatnonzero(fates == KEPT)
    else:
        users = chunk.read("users")
        losing_U = np.zeros(chunk.num_users, dtype=np.bool_)
        losing_U[users[suspects]] = True
        places = np.flatnonzero((fates == KEPT) & losing_U[users])
    rows = chunk.rows(chunks.items.domains_I, places)
    lost: dict[str, Rows] = {}
    for rule in threshold_words(rules, ()):
        if rule == "by_item_threshold":
            keep = ~too_few_I[rows.items_N]
        else:
            keep = passing(rule, rows, rules, chunk.num_users, len(too_few_I), chunks.num_domains)
        if keep.all():
            continue
        lost[rule] = rows.take(~keep)
        fates[places[~keep]] = SET_ASIDE
        rows, places = rows.take(keep), places[keep]
    if lost:
        chunk.write("fates", fates)
    return lost


@dataclass
class RunningCounts:
    """``Counts`` of rows that come chunk by chunk."""

    domain_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.users = 0
        self.users_D = np.zeros(len(self.domain_names), dtype=np.int64)
        self.rows_D = np.zeros(len(self.domain_names), dtype=np.int64)

    def add(self, chunk: UserChunk, rows: Rows) -> None:
        """Count *rows* of *chunk*, which has not been counted yet."""
        num_domains = len(self.domain_names)
        cells = rows.users_N.astype(np.int64) * num_domains + rows.domains_N
        present_UD = np.bincount(cells, minlength=chunk.num_users * num_domains).reshape(-1, max(1, num_domains)) > 0
        self.users += int(np.count_nonzero(present_UD.any(axis=1)))
        self.users_D += np.count_nonzero(present_UD, axis=0)
        self.rows_D += np.bincount(rows.domains_N, minlength=num_domains)

    def counts(self, items_D: npt.NDArray[np.int64]) -> Counts:
        """What was counted, with the items of every domain."""
        by_domain = zip(self.domain_names, self.users_D.tolist(), items_D.tolist(), self.rows_D.tolist(), strict=True)
        domains = tuple(
            DomainCounts(name, users, items, rows, rows / users if users else 0.0)
            for name, users, items, rows in by_domain
        )
        total = int(self.rows_D.sum())
        mean_length = total / self.users if self.users else 0.0
        return Counts(self.users, sum(domain.items for domain in domains), total, mean_length, domains)


def items_of_domains(chunks: UserChunks, counts_I: ItemCounts) -> npt.NDArray[np.int64]:
    """How many items of every domain have rows, [D]."""
    return np.bincount(chunks.items.domains_I[counts_I > 0], minlength=chunks.num_domains)


def kept_counts(chunks: UserChunks, counts_I: ItemCounts) -> Counts:
    """Users, items and interactions of the rows that are kept."""
    running = RunningCounts(chunks.items.domain_names)
    for chunk in chunks:
        running.add(chunk, chunk.rows(chunks.items.domains_I, np.flatnonzero(chunk.read("fates") == KEPT)))
    return running.counts(items_of_domains(chunks, counts_I))

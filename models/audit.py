"""
The leak audit: how many users' own held-out items entered their training rows through regeneration, next to chance.

For each user with a regenerated row, the *new* items of the row are those that the user's original target sequence
lacks. A user is a hit if the held-out item is among the user's own new items. Chance: the same count when regenerated
rows are dealt to users at random, in expectation: for user u, the share of the other users' rows whose new items hold
u's item. Users whose held-out item already stands in their original sequence (a repeat purchase) are counted apart:
nothing new could leak there.

Regeneration that predicts well also puts a user's next item there more often than chance, as every recommender that has
learned anything would. So test items have a second yardstick, of recommenders trained on the original rows, which have
never seen a held-out item: for how many users it is among as many of their recommendations as the row has new items.
Far more hits than that would be a leak. The report also repeats every metric without the users that were hit.

Shapes: R = regenerated rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from models.arms import Composite, target_only
from models.dataset import Dataset, TokenArray


@dataclass(frozen=True)
class LeakAudit:
    """
    The count for one held-out split.

    Args:
        split: "validation" or "test".
        users: users with a regenerated row and a held-out target item.
        repeats: of them, those whose held-out item stands in their original sequence; not looked at further.
        hits: of the rest, those whose held-out item is among their own new items.
        expected_by_chance: hits if the rows were dealt at random.
        hits_of_recommendations: hits if every user's new items were as many recommendations, mean over runs of
            recommenders; None where none ranked this split.
        hit_users: positions in the dataset of the users hit.
    """

    split: str
    users: int
    repeats: int
    hits: int
    expected_by_chance: float
    hits_of_recommendations: float | None
    hit_users: tuple[int, ...]


def leak_audits(
    dataset: Dataset, target: str, composite: Composite, test_ranks: Sequence[Mapping[int, int]] = ()
) -> tuple[LeakAudit, LeakAudit]:
    """
    Audit of the validation items and of the test items of *target*.

    Args:
        dataset: what the composite was made of.
        target: the target domain.
        composite: what to audit.
        test_ranks: per run of a recommender of original rows, the rank of each user's test item among the items
            that the user has not had.
    """
    domain = dataset.vocabulary.token_range(target)
    originals = target_only(dataset.train, domain)
    regenerated = target_only(composite.rows, domain)
    new_items: dict[int, set[int]] = {}
    for row in np.flatnonzero(composite.regenerated):
        user = int(composite.users[row])
        new_items.setdefault(user, set()).update(set(regenerated[int(row)].tolist()) - set(originals[user].tolist()))
    known = {user: set(originals[user].tolist()) for user in new_items}
    held_out = (("validation", dataset.validation, ()), ("test", dataset.test, test_ranks))
    validation, test = (
        audit(split, new_items, known, _targets_of(items_U, domain.first, domain.last), ranks)
        for split, items_U, ranks in held_out
    )
    return validation, test


def audit(
    split: str,
    new_items: Mapping[int, set[int]],
    known_items: Mapping[int, set[int]],
    held_out: Mapping[int, int],
    ranks: Sequence[Mapping[int, int]] = (),
) -> LeakAudit:
    """
    Count hits and their expectation.

    Args:
        split: name for the result.
        new_items: per user with a regenerated row, the items that it adds.
        known_items: per such user, the items of the original sequence.
        held_out: the held-out item of every user that has one in the target domain.
        ranks: per run of a recommender, where each user's held-out item ranks.
    """
    rows_with = Counter(item for items in new_items.values() for item in items)
    audited = [user for user in new_items if user in held_out]
    eligible = [user for user in audited if held_out[user] not in known_items[user]]
    hits = tuple(user for user in eligible if held_out[user] in new_items[user])
    others = max(1, len(new_items) - 1)
    hit_set = set(hits)
    expected = sum((rows_with[held_out[user]] - (user in hit_set)) / others for user in eligible)
    recommended = [sum(run[user] <= len(new_items[user]) for user in eligible) for run in ranks]
    return LeakAudit(
        split=split,
        users=len(audited),
        repeats=len(audited) - len(eligible),
        hits=len(hits),
        expected_by_chance=float(expected),
        hits_of_recommendations=fmean(recommended) if recommended else None,
        hit_users=hits,
    )


def _targets_of(held_out_U: TokenArray, first: int, last: int) -> dict[int, int]:
    inside: npt.NDArray[np.int64] = np.flatnonzero((held_out_U >= first) & (held_out_U <= last))
    return {int(user): int(held_out_U[user]) - (first - 1) for user in inside}

"""
The leak audit: how many users' own held-out items entered their training rows through regeneration, next to chance.

For each user with a regenerated row, the *new* items of the row are those that the user's original target sequence
lacks. A user is a hit if the held-out item is among the user's own new items. Chance: the same count when regenerated
rows are dealt to users at random, in expectation: for user u, the share of the other users' rows whose new items hold
u's item. Users whose held-out item already stands in their original sequence (a repeat purchase) are counted apart:
nothing new could leak there.

Regeneration that predicts well also puts a user's next item there more often than chance, as everything does that has
learned anything. So there is a second yardstick, of a Markov chain that is counted in the original rows and reads what
regeneration reads, the training row: for how many users the item is among as many of its recommendations of unseen
items as the row has new ones. Hits beyond that need a better explanation than prediction; hits below it do not prove
that there is no leak, which is what the tests with changed and deleted held-out items are for.

Shapes: R = regenerated rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from models.data.dataset import Dataset
from models.evaluation.arms import Arm, Composite, Queries, build_arm, build_queries, keep_domain
from models.evaluation.ranking import rank_queries
from models.recommenders.markov import MarkovChain


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
        hits_of_recommendations: hits if every user's new items were as many recommendations of the Markov chain.
        hit_users: positions in the dataset of the users hit.
    """

    split: str
    users: int
    repeats: int
    hits: int
    expected_by_chance: float
    hits_of_recommendations: int
    hit_users: tuple[int, ...]


def audit_leaks(dataset: Dataset, target: str, composite: Composite) -> tuple[LeakAudit, LeakAudit]:
    """Audit of the validation items and of the test items of *target*."""
    domain = dataset.vocabulary.token_range(target)
    originals = keep_domain(dataset.train, domain)
    regenerated = keep_domain(composite.rows, domain)
    new_items: dict[int, set[int]] = {}
    for row in np.flatnonzero(composite.regenerated):
        user = int(composite.users[row])
        new_items.setdefault(user, set()).update(set(regenerated[int(row)].tolist()) - set(originals[user].tolist()))
    known = {user: set(originals[user].tolist()) for user in new_items}
    original_arm = build_arm(dataset, target, "original", None)
    audits = []
    for split, items_U in (("validation", dataset.validation), ("test", dataset.test)):
        # After the training row, in both splits: what regeneration read, and nothing later.
        queries = build_queries(dataset.train, items_U, domain, domain)
        held_out = dict(zip(queries.users.tolist(), queries.targets.tolist(), strict=True))
        audits.append(count_leaks(split, new_items, known, held_out, _chain_ranks(original_arm, queries)))
    validation, test = audits
    return validation, test


def count_leaks(
    split: str,
    new_items: Mapping[int, set[int]],
    known_items: Mapping[int, set[int]],
    held_out: Mapping[int, int],
    ranks: Mapping[int, int],
) -> LeakAudit:
    """
    Count hits and their expectation.

    Args:
        split: name for the result.
        new_items: per user with a regenerated row, the items that it adds.
        known_items: per such user, the items of the original sequence.
        held_out: the held-out item of every user that has one in the target domain.
        ranks: where the Markov chain ranks that item among the items that the user has not had.
    """
    rows_with = Counter(item for items in new_items.values() for item in items)
    audited = [user for user in new_items if user in held_out]
    eligible = [user for user in audited if held_out[user] not in known_items[user]]
    hits = tuple(user for user in eligible if held_out[user] in new_items[user])
    others = max(1, len(new_items) - 1)
    hit_set = set(hits)
    expected = sum((rows_with[held_out[user]] - (user in hit_set)) / others for user in eligible)
    return LeakAudit(
        split=split,
        users=len(audited),
        repeats=len(audited) - len(eligible),
        hits=len(hits),
        expected_by_chance=float(expected),
        hits_of_recommendations=sum(ranks[user] <= len(new_items[user]) for user in eligible),
        hit_users=hits,
    )


def _chain_ranks(original: Arm, queries: Queries) -> dict[int, int]:
    chain = MarkovChain.build(original.rows, original.num_items)
    ranks = rank_queries(chain, queries, original, torch.device("cpu"))
    return dict(zip(queries.users.tolist(), ranks.unseen, strict=True))

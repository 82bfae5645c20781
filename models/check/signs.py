"""
What a log says in seconds about a target, before anything is trained: whether other domains could help at all.

Three questions, each of which can end a check early: do enough users link the domains; does what they did elsewhere
come before what they do in the target; and do those items tell which target item comes next, beyond what the user's
own target items tell. The last is asked of a model that counts, on validation items: the held-out item's probability
is a mixture of popularity, of what followed the user's own recent items, and of what followed the recent source
items, with weights fitted on one half of the users and used on the other. The gain of the third part, in nats, is
what source items tell.

Shapes: N = validation rows, K = parts of the mixture, L = recent items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.data.dataset import Dataset, Sequences, TokenArray
from models.evaluation.arms import Queries, build_queries
from models.evaluation.bootstrap import Interval, bootstrap_means
from models.vocabulary import TokenRange

# Fewer linked users cannot carry a gain that an interval would show.
LEAST_LINKED_USERS = 50
LEAST_INFORMED_SHARE = 0.01
# Source items that for certain add less than this many nats, a thousandth of a probability, say nothing to a model that
# counts. Of few users that is no evidence: video_games of amazon-toys-games gained at +0.002 [-0.000, +0.005].
LEAST_NATS, LEAST_ROWS = 0.001, 1000
RECENT_ITEMS = 20
# Sequences that are counted, drawn by a seed from longer tables: enough for the sign, and seconds of work.
COUNTED_SEQUENCES = 50_000
EM_ROUNDS = 100

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Signs:
    """
    The cheap signs of one target.

    Args:
        target: the domain.
        users: with a training item of the target.
        linked_users: of them, those with an item of another domain.
        informed_share: of the target's training items, those that an item of another domain comes before.
        rows: validation users with an item of the target in their history, N.
        nats: what source items add to the log-likelihood of the held-out item; None where there are too few rows.
        stop: why to go no further, in a sentence; None to go on.
    """

    target: str
    users: int
    linked_users: int
    informed_share: float
    rows: int
    nats: Interval | None
    stop: str | None

    @property
    def linked_share(self) -> float:
        """Of the target's users, those with another domain's items."""
        return self.linked_users / self.users if self.users else 0.0


def read_signs(dataset: Dataset, target: str, *, seed: int = 2025) -> Signs:
    """
    Read the signs of *target*; test items are not looked at.

    Raises:
        UnknownDomainError: no such domain.
    """
    domain = dataset.vocabulary.token_range(target)
    of_target_N = domain.mask(dataset.train.token_ids)
    owners_N = np.repeat(np.arange(len(dataset.train)), dataset.train.lengths)
    users, others = np.unique(owners_N[of_target_N]), np.unique(owners_N[~of_target_N])
    linked = int(np.isin(users, others).sum())
    before_N = _others_before(dataset.train, of_target_N)
    informed = float((before_N[of_target_N] > 0).mean()) if of_target_N.any() else 0.0
    queries = build_queries(dataset.train, dataset.validation, domain, None)
    queries = queries.at(np.flatnonzero(queries.num_target_items > 0))
    stop = _structural_stop(target, len(users), linked, informed)
    nats = None
    if stop is None and len(queries) >= 2:
        nats = _source_nats(dataset.train, queries, domain, seed)
        if len(queries) >= LEAST_ROWS and nats.high < LEAST_NATS:
            stop = (
                f"What users did elsewhere does not tell their next item of {target}: it adds {_nats(nats)} nats to "
                "what their own items tell."
            )
    return Signs(target, len(users), linked, informed, len(queries), nats, stop)


def _structural_stop(target: str, users: int, linked: int, informed: float) -> str | None:
    if linked < LEAST_LINKED_USERS:
        return (
            f"Only {linked:,} of {users:,} users of {target} have items of another domain; fewer than "
            f"{LEAST_LINKED_USERS} cannot show anything."
        )
    if informed < LEAST_INFORMED_SHARE:
        return (
            f"Items of other domains come before {informed:.1%} of those of {target} only: the domains hardly overlap "
            "in time."
        )
    return None


def _nats(nats: Interval) -> str:
    return f"{nats.mean:+.4f} [{nats.low:+.4f}, {nats.high:+.4f}]"


def _others_before(sequences: Sequences, of_target_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For every item, how many items of other domains stand before it in its sequence."""
    counted = np.concatenate([[0], np.cumsum(~of_target_N)])
    starts_N = np.repeat(counted[sequences.offsets[:-1]], sequences.lengths)
    before_N: npt.NDArray[np.int64] = counted[:-1] - starts_N
    return before_N


def _source_nats(train: Sequences, queries: Queries, domain: TokenRange, seed: int) -> Interval:
    """The gain in log-likelihood that the source part of the mixture brings, over the rows of *queries*."""
    counts = _Successors.count(train, domain, seed)
    parts_NK = np.stack(
        [counts.parts(queries.histories[row], int(queries.targets[row])) for row in range(len(queries))]
    )
    halves = np.arange(len(queries)) % 2 == np.asarray([[0], [1]])
    gains_N = np.zeros(len(queries))
    for fitted, judged in ((halves[0], halves[1]), (halves[1], halves[0])):
        without, with_source = (_mixed(parts_NK[fitted], parts_NK[judged], k) for k in (2, 3))
        gains_N[judged] = np.log(with_source) - np.log(without)
    return bootstrap_means(gains_N[:, None], seed=seed)[0]


def _mixed(fitted_NK: Probabilities, judged_NK: Probabilities, parts: int) -> Probabilities:
    """The probability of every judged row under the weights of the first *parts* that suit the fitted rows best."""
    weights_K = np.full(parts, 1 / parts)
    for _ in range(EM_ROUNDS):
        shares_NK = fitted_NK[:, :parts] * weights_K
        weights_K = (shares_NK / shares_NK.sum(axis=1, keepdims=True)).mean(axis=0)
    # A weight of 0 would make a row impossible that popularity, the first part, never is
    weights_K = (weights_K + 1e-4) / (weights_K + 1e-4).sum()
    probabilities_N: Probabilities = judged_NK[:, :parts] @ weights_K
    return probabilities_N


@dataclass(frozen=True)
class _Successors:
    """How often each item of the target came after each item, among the ``RECENT_ITEMS`` before it."""

    domain: TokenRange
    popularity_V: Probabilities
    pairs: npt.NDArray[np.int64]
    pair_counts: npt.NDArray[np.int64]
    totals_V: npt.NDArray[np.int64]

    @classmethod
    def count(cls, train: Sequences, domain: TokenRange, seed: int) -> _Successors:
        num_tokens = max(domain.last, int(train.token_ids.max(initial=0))) + 1
        rows = np.arange(len(train))
        if len(rows) > COUNTED_SEQUENCES:
            rows = np.sort(np.random.default_rng(seed).choice(rows, COUNTED_SEQUENCES, replace=False))
        found: list[npt.NDArray[np.int64]] = []
        for row in rows:
            tokens = train[int(row)].astype(np.int64)
            for distance in range(1, min(RECENT_ITEMS + 1, len(tokens))):
                after = tokens[distance:]
                inside = domain.mask(after)
                found.append(tokens[:-distance][inside] * num_tokens + after[inside])
        keys = np.concatenate(found) if found else np.zeros(0, np.int64)
        pairs, counts = np.unique(keys, return_counts=True)
        totals_V = np.bincount(pairs // num_tokens, weights=counts, minlength=num_tokens).astype(np.int64)
        own = train.token_ids[domain.mask(train.token_ids)]
        popularity_V = np.bincount(own, minlength=num_tokens).astype(np.float64)
        popularity_V[domain.columns] += 1
        return cls(domain, popularity_V / popularity_V.sum(), pairs, counts, totals_V)

    def parts(self, history: TokenArray, item: int) -> Probabilities:
        """The probability [3] of *item*: by popularity, after the own items, after the others."""
        own = self.domain.mask(history)
        fallback = float(self.popularity_V[item])
        return np.asarray(
            [
                fallback,
                *(self._after(tokens[-RECENT_ITEMS:], item, fallback) for tokens in (history[own], history[~own])),
            ]
        )

    def _after(self, tokens: TokenArray, item: int, fallback: float) -> float:
        """The mean over *tokens* of how often *item* came after them; *fallback* where nothing ever did."""
        known = tokens[self.totals_V[tokens] > 0].astype(np.int64)
        if not len(known) or not len(self.pairs):
            return fallback
        keys = known * len(self.totals_V) + item
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        counts = np.where(self.pairs[places] == keys, self.pair_counts[places], 0)
        return float((counts / self.totals_V[known]).mean())

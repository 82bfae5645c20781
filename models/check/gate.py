"""
Whether a refreshed bundle may take the last one's place: it ranks validation items no worse, and its use does no harm.

No worse: for every target, both bundles' experts rank today's validation items, each after the same mixed histories and
among the items that the user has not had. The last bundle is carried to today's items first (``continuation``), so both
rank the same. The gate fails where the difference lies below 0 for certain.

No harm: a Markov chain, counted in the target's original rows, ranks the validation items after target-only histories;
another use of the bundle, as its guard allows, must not rank them worse for certain. Where the guard replaces nothing,
nothing can.

Only validation items are looked at.

Shapes: N = validation rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.check.verdict import percent
from models.data.dataset import Dataset
from models.decoding.anticipate import RUN_ITEMS
from models.evaluation.arms import Arm, Queries, build_arm
from models.evaluation.bootstrap import Interval, bootstrap_gains
from models.evaluation.ranking import rank_queries
from models.evaluation.regeneration_trial import composite_arm, served_histories
from models.evaluation.served import DecoderScorer
from models.ranking_metrics import ndcg_at_k
from models.recommenders.markov import MarkovChain
from models.recommenders.recommender import Scorer
from models.training.continuation import Continuation
from models.tuning import Guard

SEED = 2025
# Fewer validation rows show nothing, and fail nothing.
LEAST_ROWS = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class GateFinding:
    """
    One question that the gate asked.

    Args:
        target: of which domain.
        passed: whether the answer lets the bundle through.
        sentence: the answer with its numbers.
    """

    target: str
    passed: bool
    sentence: str


def judge_refresh(dataset: Dataset, bundle: Bundle, previous: Bundle | None) -> tuple[GateFinding, ...]:
    """
    Ask the gate's questions of every domain.

    Args:
        dataset: that *bundle* was trained on.
        previous: the bundle that serves now; None where there is none, and nothing can be worse.

    Raises:
        BundleMismatchError: *previous* is of a dataset that this one does not extend.
    """
    continuation = None if previous is None else Continuation.of(previous, dataset)
    findings: list[GateFinding] = []
    for target in dataset.vocabulary.domains:
        rows = _Rows.of(dataset, target)
        if len(rows.own) < LEAST_ROWS:
            findings.append(GateFinding(target, True, f"{target}: too few validation users to ask"))
            continue
        if continuation is not None and continuation.knows(target):
            findings.append(_no_worse(rows, bundle, continuation))
        findings.append(_no_harm(rows, dataset, bundle))
    return tuple(findings)


@dataclass(frozen=True)
class _Rows:
    """Validation rows with a history of the target: its own items alone, and mixed."""

    target: str
    original: Arm
    mixed_arm: Arm
    own: Queries
    mixed: Queries

    @classmethod
    def of(cls, dataset: Dataset, target: str) -> _Rows:
        original, mixed = (build_arm(dataset, target, name, None) for name in ("original", "mixed"))
        rows = np.flatnonzero(original.validation.num_target_items > 0)
        return cls(target, original, mixed, original.validation.at(rows), mixed.validation.at(rows))


def _no_worse(rows: _Rows, bundle: Bundle, continuation: Continuation) -> GateFinding:
    target = rows.target
    before_N = _ndcg(DecoderScorer(continuation.expert_parts(target)), rows.mixed, rows.mixed_arm)
    now_N = _ndcg(DecoderScorer(bundle.expert_parts(target)), rows.mixed, rows.mixed_arm)
    gain, passed = _judged(now_N, before_N)
    verdict = "no worse than" if passed else "WORSE than"
    return GateFinding(
        target,
        passed,
        f"{target}: the expert is {verdict} that of bundle {continuation.bundle.version} on {len(now_N):,} validation "
        f"users: NDCG@10 {now_N.mean():.4f} instead of {before_N.mean():.4f}, {percent(gain)}",
    )


def _no_harm(rows: _Rows, dataset: Dataset, bundle: Bundle) -> GateFinding:
    target = rows.target
    guard = bundle.tuning(target).guard or Guard(RUN_ITEMS, RUN_ITEMS, "")
    if not guard.training_hints and not guard.serving_hints:
        return GateFinding(target, True, f"{target}: nothing is replaced, which harms nobody")
    before_N = _ndcg(_chain(rows.original), rows.own, rows.original)
    arm, queries = rows.original, rows.own
    if guard.training_hints:
        arm = composite_arm(arm, dataset, bundle, target, guard.training_hints)
    if guard.serving_hints:
        histories = served_histories(bundle, target, rows.mixed.histories, guard.serving_hints)
        queries = dataclasses.replace(queries, histories=histories)
    now_N = _ndcg(_chain(arm), queries, arm)
    gain, passed = _judged(now_N, before_N)
    verdict = "does no harm" if passed else "HARMS"
    return GateFinding(
        target,
        passed,
        f"{target}: regeneration {verdict}: NDCG@10 of a Markov chain {now_N.mean():.4f} instead of "
        f"{before_N.mean():.4f} on {len(now_N):,} validation users, {percent(gain)}",
    )


def _judged(now_N: npt.NDArray[np.float64], before_N: npt.NDArray[np.float64]) -> tuple[Interval | None, bool]:
    """The relative gain, and whether it is not a loss for certain."""
    [(difference, relative)] = bootstrap_gains((now_N - before_N)[:, None], before_N[:, None], seed=SEED)
    return relative, difference.high >= 0


def _chain(arm: Arm) -> MarkovChain:
    return MarkovChain.build(arm.rows, arm.num_items)


def _ndcg(scorer: Scorer, queries: Queries, arm: Arm) -> npt.NDArray[np.float64]:
    ranks = torch.tensor(rank_queries(scorer, queries, arm, CPU).unseen)
    values_N: npt.NDArray[np.float64] = ndcg_at_k(ranks, 10).numpy().astype(np.float64)
    return values_N


def failures(findings: tuple[GateFinding, ...]) -> Iterator[str]:
    """What kept the bundle out."""
    return (finding.sentence for finding in findings if not finding.passed)

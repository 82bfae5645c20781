"""Recommender and target expert together: their log-probabilities added, by a weight from validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import Bundle
from models.data.dataset import Dataset
from models.evaluation.advice import WEIGHTS, Advice, Advised, added, rank_advised
from models.evaluation.arms import Arm, Queries, build_arm
from models.evaluation.ranking import rank_queries
from models.evaluation.served import DecoderScorer, advised
from models.network.expert_parts import ExpertPart
from models.tuning import OwnShares, TargetTuning

CPU = torch.device("cpu")
logits = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


@given(first=logits, second=logits, weight=st.floats(0, 1))
@settings(deadline=None)
def test_the_score_is_the_weighted_sum_of_the_log_probabilities(
    first: list[float], second: list[float], weight: float
) -> None:
    """By arithmetic; whatever either model adds to all its scores changes nothing."""
    p, q = (np.exp(values) / np.exp(values).sum() for values in (np.float64(first), np.float64(second)))
    found = added(torch.tensor([first]) + 3, torch.tensor([second]) - 2, weight)

    assert found[0].numpy() == pytest.approx((1 - weight) * np.log(p) + weight * np.log(q), abs=1e-4)


@pytest.fixture(scope="module")
def arm(dataset: Dataset) -> Arm:
    return build_arm(dataset, "food", "original", None)


class Knowing:
    """Scores the row's own held-out item highest by *sure*; it is told the answers by the history."""

    def __init__(self, sure: float, *parts: Queries) -> None:
        self._sure = sure
        self._answers = {
            tuple(queries.histories[row].tolist()): int(target)
            for queries in parts
            for row, target in enumerate(queries.targets.tolist())
        }

    def scores(self, item_ids_BT, candidates):
        scores = torch.zeros(len(item_ids_BT), len(candidates))
        for row, items in enumerate(item_ids_BT.tolist()):
            scores[row, self._answers[tuple(item for item in items if item)] - candidates.first] = self._sure
        return scores


def knowing_advice(arm: Arm, sure: float) -> Advice:
    """An expert whose logits are *sure* at the held-out item and 0 elsewhere."""

    def states(queries: Queries) -> torch.Tensor:
        states = torch.zeros(len(queries), len(arm.candidates))
        states[torch.arange(len(queries)), torch.from_numpy(queries.targets.astype(np.int64)) - 1] = sure
        return states

    return Advice(
        "version",
        torch.eye(len(arm.candidates)),
        Advised(arm.validation, states(arm.validation)),
        Advised(arm.test, states(arm.test)),
    )


@pytest.mark.parametrize(("recommender_knows", "expert_knows"), [(1.0, -1.0), (-1.0, 1.0), (-2.0, 1.0), (1.0, -2.0)])
def test_validation_gives_the_weight_to_whoever_knows(arm: Arm, recommender_knows: float, expert_knows: float) -> None:
    """Below 0 is to know what it is not: whoever does gets too little weight to be heard."""
    scorer = Knowing(recommender_knows, arm.validation, arm.test)
    found = rank_advised(scorer, knowing_advice(arm, expert_knows), arm, CPU)

    assert set(found.ranks.all) == {1}
    assert found.weight == (
        0 if recommender_knows > 0 else min(w for w in WEIGHTS if w * expert_knows + (1 - w) * recommender_knows > 1e-9)
    )


def test_an_expert_that_says_nothing_changes_no_rank(arm: Arm) -> None:
    scorer = Knowing(1.0, arm.validation, arm.test)
    found = rank_advised(scorer, knowing_advice(arm, 0.0), arm, CPU)

    assert (found.ranks, found.weight) == (rank_queries(scorer, arm.test, arm, CPU), 0)


def test_who_has_no_history_of_the_target_is_ranked_by_the_expert(arm: Arm) -> None:
    """Popularity is no probability to add to; without any weight it ranks as it did."""
    empty = replace(arm.test, histories=replace(arm.test.histories, offsets=0 * arm.test.histories.offsets))
    for expert_knows, by_expert in ((1.0, True), (-1.0, False)):
        advice = replace(knowing_advice(arm, expert_knows))
        advice = replace(advice, test=Advised(empty, advice.test.states_ND))
        found = rank_advised(Knowing(-expert_knows, arm.validation), advice, arm, CPU)

        expected = (1,) * len(empty) if by_expert else rank_queries(Knowing(0, arm.test), empty, arm, CPU).all
        assert found.ranks.all == expected


def test_the_expert_advises_by_both_its_readings(dataset: Dataset, matching_bundle: Bundle) -> None:
    """Its states are those by which line ``target expert`` ranks, the shares of the bundle included."""
    chosen = replace(matching_bundle, tunings=(TargetTuning(OwnShares(0.25, 0.75)),) * 3)
    mixed = build_arm(dataset, "food", "mixed", None)
    found = advised(chosen, "food", mixed.test, mixed.test)
    scorer = DecoderScorer((ExpertPart(chosen.expert("food"), OwnShares(0.25, 0.75)),))
    item_ids_BT = torch.from_numpy(mixed.test.histories[3].astype(np.int64))[None]
    table_XD = chosen.expert("food").item_embeddings_VD[mixed.candidates.columns]

    assert torch.allclose(found.states_ND[3] @ table_XD.T, scorer.scores(item_ids_BT, mixed.candidates)[0], atol=1e-5)
    plain = advised(matching_bundle, "food", mixed.test, mixed.test)
    assert not torch.allclose(found.states_ND, plain.states_ND, atol=1e-2)


def test_the_fingerprint_knows_the_bundle_and_the_histories(arm: Arm) -> None:
    advice = knowing_advice(arm, 1.0)
    others = [
        replace(advice, bundle_version="another"),
        replace(advice, test=replace(advice.test, queries=arm.validation)),
        replace(advice, validation=replace(advice.validation, queries=arm.test)),
    ]
    assert len({one.fingerprint for one in (advice, *others)}) == 4

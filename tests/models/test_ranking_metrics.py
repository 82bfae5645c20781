"""Metrics by arithmetic, and what no scorer may get away with."""

from math import log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ranking_metrics import (
    METRICS,
    broken_inequalities,
    hit_rate_at_k,
    mrr_at_k,
    ndcg_at_k,
    per_row_metrics,
    pessimistic_ranks,
    ranks_without,
)


@pytest.mark.parametrize(
    ("rank", "hr_10", "ndcg_10", "mrr_10", "hr_20", "ndcg_20", "mrr_20"),
    [
        (1, 1, 1, 1, 1, 1, 1),
        (10, 1, 1 / log2(11), 1 / 10, 1, 1 / log2(11), 1 / 10),
        (11, 0, 0, 0, 1, 1 / log2(12), 1 / 11),
        (20, 0, 0, 0, 1, 1 / log2(21), 1 / 20),
        (21, 0, 0, 0, 0, 0, 0),
    ],
)
def test_each_metric_of_a_rank_is_what_its_formula_says(rank, hr_10, ndcg_10, mrr_10, hr_20, ndcg_20, mrr_20):
    """Ranks on both sides of both cuts."""
    ranks = torch.tensor([rank])

    assert [float(metric(ranks)) for metric in (lambda r: hit_rate_at_k(r, 10), lambda r: ndcg_at_k(r, 10))] == [
        hr_10,
        pytest.approx(ndcg_10),
    ]
    assert float(mrr_at_k(ranks, 10)) == mrr_10
    assert per_row_metrics(ranks)[0].tolist() == pytest.approx([hr_10, ndcg_10, mrr_10, hr_20, ndcg_20, mrr_20])
    assert list(METRICS) == ["HR@10", "NDCG@10", "MRR@10", "HR@20", "NDCG@20", "MRR@20"]


def test_a_constant_scorer_ranks_every_item_last():
    """All ties count against the target: no scorer gains by saying nothing."""
    ranks = pessimistic_ranks(torch.zeros(7, 500), torch.arange(7))

    assert ranks.tolist() == [500] * 7
    assert per_row_metrics(ranks).sum() == 0


def test_a_scorer_that_knows_the_label_scores_one():
    """The highest score is rank 1, wherever it stands."""
    targets = torch.tensor([0, 3, 499])
    scores = torch.zeros(3, 500)
    scores[torch.arange(3), targets] = 1

    assert (per_row_metrics(pessimistic_ranks(scores, targets)) == 1).all()


def test_random_scores_hit_at_chance():
    """HR@10 among 100 candidates is 10/100, within five standard errors over 20,000 rows."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, 100, generator=generator)
    targets = torch.randint(100, (20_000,), generator=generator)
    hit_rate = float(hit_rate_at_k(pessimistic_ranks(scores, targets), 10).mean())

    assert abs(hit_rate - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5


def test_a_nan_score_is_refused():
    """A ranking over NaN would be arbitrary."""
    with pytest.raises(ValueError, match="NaN"):
        pessimistic_ranks(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))


def test_ranks_without_some_candidates_are_the_ranks_among_the_others():
    """Left out: a better one, an equal one, a worse one, none (-1), and column 0 in one row only."""
    scores = torch.tensor([[5.0, 9.0, 5.0, 1.0], [9.0, 5.0, 1.0, 5.0], [9.0, 8.0, 7.0, 6.0]])
    targets = torch.tensor([0, 1, 3])
    left_out = torch.tensor([[1, 2, 3], [0, -1, -1], [-1, -1, -1]])
    expected = [
        int(pessimistic_ranks(row[[place for place in range(4) if place not in out]][None], torch.tensor([target])))
        for row, out, target in zip(scores, left_out.tolist(), (0, 0, 3), strict=True)
    ]

    alone = torch.tensor([[2.0]])

    assert expected == [1, 2, 4]
    assert ranks_without(torch.tensor([1]), alone, torch.tensor([0]), torch.tensor([[-1]])).tolist() == [1]
    assert ranks_without(pessimistic_ranks(scores, targets), scores, targets, left_out).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=50))
def test_metrics_of_one_ranked_list_satisfy_every_inequality(ranks):
    """Any mixture of ranks is consistent, and every metric lies in [0, 1]."""
    values = per_row_metrics(torch.tensor(ranks))

    assert (values >= 0).all()
    assert (values <= 1).all()
    assert broken_inequalities(dict(zip(METRICS, values.mean(dim=0).tolist(), strict=True))) == []


@pytest.mark.parametrize(
    ("changed", "value", "broken"),
    [
        ("MRR@10", 0.6, "MRR@10 <= NDCG@10"),
        ("NDCG@20", 0.9, "dNDCG <= dHR / log2(12)"),
        ("MRR@20", 0.276, "dHR / 20 <= dMRR"),
        ("HR@20", 0.5, "HR@10 <= HR@20"),
    ],
)
def test_numbers_that_no_ranking_can_give_are_named(changed, value, broken):
    """Each inequality can fail, and says so."""
    means = dict(zip(METRICS, per_row_metrics(torch.tensor([1, 4, 15, 30, 8])).mean(dim=0).tolist(), strict=True))

    assert broken_inequalities(means) == []
    assert broken in broken_inequalities(means | {changed: value})


@pytest.mark.parametrize(
    ("rank", "metric", "step", "broken"),
    [
        (11, "NDCG@20", 1e-6, "dNDCG <= dHR / log2(12)"),
        (20, "NDCG@20", -1e-6, "dHR / log2(21) <= dNDCG"),
        (11, "MRR@20", 1e-6, "dMRR <= dHR / 11"),
        (20, "MRR@20", -1e-6, "dHR / 20 <= dMRR"),
    ],
)
def test_a_row_gained_at_either_end_meets_its_bound_exactly(rank, metric, step, broken):
    """Any less room and true rankings would be called broken, any more and broken ones would pass."""
    means = dict(zip(METRICS, per_row_metrics(torch.tensor([rank]))[0].tolist(), strict=True))
    moved = means | {metric: means[metric] + step}

    assert broken_inequalities(means, tolerance=1e-12) == []
    assert broken_inequalities(moved) == [broken]
    assert broken_inequalities(moved, tolerance=2e-6) == []


@pytest.mark.parametrize("k", [10, 20])
def test_at_each_cut_mrr_is_below_ndcg_and_ndcg_below_hr(k):
    """All three are equal when every rank is 1, exactly; each relation then breaks alone."""
    ones = dict.fromkeys(METRICS, 1.0)

    assert broken_inequalities(ones, tolerance=0.0) == []
    assert f"MRR@{k} <= NDCG@{k}" in broken_inequalities(ones | {f"MRR@{k}": 1.5})
    assert f"NDCG@{k} <= HR@{k}" in broken_inequalities(ones | {f"NDCG@{k}": 1.5})
    assert [name for name in broken_inequalities(ones | {f"MRR@{k}": 1.5}) if "NDCG" in name] == [
        f"MRR@{k} <= NDCG@{k}"
    ]

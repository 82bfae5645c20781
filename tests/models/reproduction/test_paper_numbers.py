"""The paper's printed numbers: all there, and three of its rows are of no ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from models.ranking_metrics import METRICS, per_row_metrics
from models.reproduction.paper_numbers import OF_NO_RANKING, mean_gain, mean_score, read_scores, read_sizes
from models.reproduction.paper_rows import PAPER_ROWS, TABLE_3

ROUNDING = 0.5e-4
RANKS = 20


def least_slack(printed: dict[str, float]) -> float:
    """How far beyond rounding the printed values are from every mixture of ranks, by a linear program."""
    metrics_RM = per_row_metrics(torch.arange(1, RANKS + 1)).numpy()
    values_M = np.array([printed[name] for name in METRICS])
    # Unknowns: the share of each rank, then the slack.
    above = np.hstack([metrics_RM.T, -np.ones((len(METRICS), 1))])
    below = np.hstack([-metrics_RM.T, -np.ones((len(METRICS), 1))])
    together = np.concatenate([np.ones(RANKS), [0]])[None]
    found = linprog(
        np.concatenate([np.zeros(RANKS), [1]]),
        A_ub=np.vstack([above, below, together]),
        b_ub=np.concatenate([values_M + ROUNDING, ROUNDING - values_M, [1]]),
    )
    assert found.status == 0
    return float(found.x[-1])


@pytest.mark.parametrize("row", [row.paper for row in PAPER_ROWS])
def test_a_row_of_table_2_is_of_one_ranking_in_every_domain_or_of_none(row):
    """Twelve cells of the three multi-domain models beside SASRec_m cannot be; the other 36 can."""
    slacks = [least_slack(printed) for printed in read_scores()[row].values()]

    assert len(slacks) == 4
    assert [slack > 1e-6 for slack in slacks] == [row in OF_NO_RANKING] * 4


def test_every_number_of_the_papers_tables_is_there():
    """Twelve rows of four domains, six of one, six metrics each; sizes of four domains."""
    scores = read_scores()

    assert {row.paper for row in PAPER_ROWS} | {row.paper for row in TABLE_3 if row.paper} == set(scores)
    assert sum(len(values) for by_domain in scores.values() for values in by_domain.values()) == 12 * 4 * 6 + 6 * 6
    assert {tuple(sorted(v)) for by_domain in scores.values() for v in by_domain.values()} == {tuple(sorted(METRICS))}
    assert {domain: size["n_users"] for domain, size in read_sizes().items()} == dict.fromkeys(
        ("Books", "Electronics", "Sports", "Tools"), 40165
    )


def test_means_and_gains_are_over_the_domains_of_the_row():
    """By arithmetic on the printed values."""
    full, base = read_scores()["Taesar Full"], read_scores()["SASRec"]
    (domain,) = full

    assert mean_score("Taesar Full", "HR@10") == full[domain]["HR@10"]
    assert mean_gain("Taesar Full", "SASRec", "HR@10") == full[domain]["HR@10"] / base[domain]["HR@10"] - 1

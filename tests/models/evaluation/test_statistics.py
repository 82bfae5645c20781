"""Statistics of rows and mapping, by arithmetic on hand-made data."""

import sys

import numpy as np
import polars as pl
import pytest
import torch

from models.data.dataset import Sequences
from models.evaluation.arms import keep_domain, load_composite
from models.evaluation.projection import principal_components, t_sne
from models.evaluation.statistics import (
    describe_composite,
    describe_rows,
    find_top_mappings,
    gini,
    judge_correspondence,
    project_items,
)
from models.vocabulary import Vocabulary

ROWS = Sequences.from_lists([[1, 1, 2], [1, 3], [1, 2, 1, 1]])  # item 1 six times, 2 twice, 3 once, 4..10 never
VOCABULARY = Vocabulary(("a", "b"), (("a1", "a2", "a3"), ("b1", "b2")))


def test_frequencies_shares_and_lengths_of_a_hand_example():
    """Ten items: the top 10 % is one item, the mid 40 % four, the tail 50 % five."""
    fixed = np.asarray([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])  # elsewhere, item 10 is the most frequent
    found = describe_rows("rows", ROWS, 10, fixed)

    assert found.frequencies == (6, 2, 1, 0, 0, 0, 0, 0, 0, 0)
    assert found.segment_shares == pytest.approx((6 / 9, 3 / 9, 0))
    assert found.fixed_segment_shares == pytest.approx((0, 0, 1))
    assert found.length_shares[2:5] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (found.rows, found.interactions, found.coverage) == (3, 9, 0.3)
    assert found.entropy == pytest.approx(-sum(p * np.log(p) for p in (6 / 9, 2 / 9, 1 / 9)))


def test_gini_equals_the_mean_absolute_difference_over_twice_the_mean():
    """The definition, pair by pair."""
    counts = np.asarray([0, 3, 1, 7, 7, 2])
    pairwise = np.abs(counts[:, None] - counts[None, :]).mean() / (2 * counts.mean())

    assert gini(counts) == pytest.approx(pairwise)
    assert gini(np.zeros(4, dtype=np.int64)) == 0


def test_the_duplicated_control_shows_what_more_rows_alone_do(dataset, composite_folder):
    """Twice the rows and nothing new: shares, Gini and entropy near the original's, coverage equal to it."""
    composite = load_composite(composite_folder, dataset, "food")
    views = {view.name: view for view in describe_composite(dataset, "food", composite)}

    assert views["composite"].rows == views["original"].rows + views["regenerated rows"].rows
    assert views["duplicated"].rows == views["composite"].rows
    assert views["duplicated"].coverage == views["original"].coverage
    assert views["composite"].interactions == len(composite.rows.token_ids)
    assert views["original"].interactions == sum(
        len(row) for row in keep_domain(dataset.train, dataset.vocabulary.token_range("food")) if len(row) >= 2
    )


def test_each_source_item_keeps_its_most_frequent_target():
    """Deletions do not count; between equals the smaller item id wins."""
    mapping = pl.DataFrame(
        {
            "source_domain": ["a", "a", "a", "a", "a", "other"],
            "source_item": ["a1", "a1", "a1", "a2", "a2", "x"],
            "target_item": ["b1", "b2", None, "b2", "b1", "b1"],
            "count": [2, 5, 90, 3, 3, 7],
        }
    )

    assert find_top_mappings(mapping, VOCABULARY, "a", "b").rows() == [(1, 5, 5), (2, 4, 3)]


def test_correspondence_is_cosine_by_arithmetic():
    """a1 -> b1 parallel, a2 -> b1 orthogonal while b2 is parallel."""
    table = torch.tensor([[0.0, 0], [1, 0], [0, 2], [1, 1], [3, 0], [0, 1]])
    top = pl.DataFrame({"source_token": [1, 2], "target_token": [4, 4], "count": [5, 2]})
    found = judge_correspondence(top, table, VOCABULARY, "a", "b", seed=0)

    assert found is not None
    assert (found.mapped_items, found.replacements, found.distinct_targets, found.top_target_share) == (2, 7, 1, 1.0)
    assert found.mean_cosine == pytest.approx((1 + 0) / 2)
    # Of two target items: b1 is above half of them for a1, above none for a2.
    assert found.median_percentile in (0.0, 50.0)
    assert judge_correspondence(top.clear(), table, VOCABULARY, "a", "b", seed=0) is None


def test_projected_links_join_the_points_of_their_items(dataset):
    """Every link names a source and a target point that exist; all linked items are among the points."""
    vocabulary = dataset.vocabulary
    source, target = vocabulary.token_range("books"), vocabulary.token_range("food")
    top = pl.DataFrame(
        {
            "source_token": [source.first, source.last],
            "target_token": [target.last, target.first],
            "count": [4, 2],
        }
    )
    table = torch.randn(vocabulary.num_tokens, 8, generator=torch.Generator().manual_seed(0))
    planes = project_items(top, table, vocabulary, "books", "food", seed=0, sampled=6)

    assert [plane.method for plane in planes] == ["pca", "t-sne"]
    for plane in planes:
        assert len(plane.links) == 2
        assert all(a < len(plane.source_points) and b < len(plane.target_points) for a, b in plane.links)
        assert 6 <= len(plane.source_points) <= 8
    assert planes == project_items(top, table, vocabulary, "books", "food", seed=0, sampled=6)


def test_principal_components_hold_the_variance_of_the_svd():
    """Uncorrelated columns of falling variance that sum to the whole when all are kept; independent of row order."""
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 1, 1, 0.1])
    components = principal_components(vectors, 5)
    covariance = torch.cov(components.T)

    torch.testing.assert_close(covariance, torch.diag(torch.diagonal(covariance)), atol=1e-3, rtol=0)
    assert (torch.diagonal(covariance).diff() <= 0).all()
    assert float(components.var(dim=0).sum()) == pytest.approx(float(vectors.var(dim=0).sum()), rel=1e-4)
    torch.testing.assert_close(principal_components(vectors.flip(0), 2), components[:, :2].flip(0), atol=1e-4, rtol=0)


def test_without_scikit_learn_items_are_drawn_by_principal_components_alone(dataset, monkeypatch):
    """`taesar[plots]` brings it."""
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    vocabulary = dataset.vocabulary
    source, target = vocabulary.token_range("books"), vocabulary.token_range("food")
    top = pl.DataFrame({"source_token": [source.first], "target_token": [target.last], "count": [4]})
    table = torch.randn(vocabulary.num_tokens, 8, generator=torch.Generator().manual_seed(0))

    assert [plane.method for plane in project_items(top, table, vocabulary, "books", "food", seed=0)] == ["pca"]


def test_t_sne_keeps_three_clusters_apart():
    """Nearest neighbours in the plane come from the point's own cluster."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 8, generator=generator)
    labels = torch.arange(90) % 3
    vectors = centres[labels] + torch.randn(90, 8, generator=generator)
    plane = t_sne(principal_components(vectors, 8))
    distances = torch.cdist(plane, plane).fill_diagonal_(float("inf"))

    assert (labels[distances.argmin(dim=1)] == labels).float().mean() == 1.0

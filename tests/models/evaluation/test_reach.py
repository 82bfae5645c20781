"""Where domains meet: in time, and in people."""

from __future__ import annotations

import numpy as np
import torch

from models.evaluation.projection import filled_plane, principal_components
from models.evaluation.statistics import TIME_SPANS, describe_reach


def test_reach_counts_the_people_and_items_of_the_training_rows(dataset) -> None:
    reach = describe_reach(dataset)
    rows = [{dataset.vocabulary.external_id(int(token))[0] for token in row} for row in dataset.train]

    assert [domain.domain for domain in reach] == list(dataset.vocabulary.domains)
    for domain in reach:
        assert domain.users == sum(domain.domain in row for row in rows)
        assert domain.shared_users == tuple(
            sum({domain.domain, other} <= row for row in rows) for other in dataset.vocabulary.domains
        )
    assert sum(domain.interactions for domain in reach) == len(dataset.train.token_ids)


def test_reach_spreads_every_item_over_the_common_time(dataset) -> None:
    for domain in describe_reach(dataset):
        assert len(domain.by_time) == TIME_SPANS
        assert sum(domain.by_time) == domain.interactions
        assert domain.first_date == "1970-01-01"


def test_a_filled_plane_is_that_of_the_principal_components_stretched() -> None:
    vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(8.0, 0.0, -1.0)
    plane, components = filled_plane(vectors).numpy(), principal_components(vectors, 2).numpy()

    assert np.abs(plane).max() == 1
    for axis in range(2):
        assert abs(np.corrcoef(plane[:, axis], components[:, axis])[0, 1]) > 0.999


def test_even_few_or_narrow_vectors_have_a_place() -> None:
    assert filled_plane(torch.ones(3, 4)).tolist() == [[0.0, 0.0]] * 3
    assert filled_plane(torch.tensor([[1.0], [2.0]])).shape == (2, 2)
    assert filled_plane(torch.ones(1, 5)).shape == (1, 2)

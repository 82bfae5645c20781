"""Mixed rows taken apart by domain: a stream holds its domain's items, and slots point back into the streams."""

from __future__ import annotations

import numpy as np
import torch

from models.data.dataset import pad_right
from models.network.domain_streams import domain_streams
from models.vocabulary import TokenRange

DOMAINS = (TokenRange(1, 10), TokenRange(11, 20), TokenRange(21, 30))
LENGTHS = (2, 3, 5, 8, 8, 13, 20)


def test_domain_streams_take_a_mixed_row_apart_and_point_back() -> None:
    """Every slot holds its domain's last item so far, and the ones before it hold the domain's items before that."""
    generator = np.random.default_rng(3)
    rows = [generator.integers(1, 31, size=length).tolist() for length in LENGTHS] + [[1] * 30, [11]]
    streams = domain_streams(pad_right([np.asarray(row) for row in rows]), DOMAINS)
    items = torch.cat([group.item_ids_RS.flatten() for group in streams.groups]).tolist()
    for k, domain in enumerate(DOMAINS):
        for b, row in enumerate(rows):
            for t in range(len(row)):
                own, slot = [item for item in row[: t + 1] if item in domain], int(streams.slots_KBT[k, b, t])
                assert (slot < 0) == (not own)
                assert not own or items[slot + 1 - len(own) : slot + 1] == own

    assert sorted(item for item in items if item) == sorted(item for row in rows for item in row)


def test_domain_streams_of_similar_length_share_a_group_and_their_domains_are_counted() -> None:
    """Lengths 1 to 4, 5 to 16 and so on; rows in domain order; a domain without items still has a stream to encode."""
    rows = pad_right([np.asarray([1] * 6 + [11]), np.asarray([2, 12, 21])])
    short, long = domain_streams(rows, DOMAINS).groups
    (empty,) = domain_streams(rows[1:, :2], DOMAINS[2:]).groups

    assert (short.item_ids_RS.tolist(), short.sizes) == ([[2], [11], [12], [21]], (1, 2, 1))
    assert (long.item_ids_RS.tolist(), long.sizes) == ([[1] * 6], (1, 0, 0))
    assert (empty.item_ids_RS.tolist(), empty.sizes) == ([[0]], (1,))

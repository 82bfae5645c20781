"""
Mixed rows taken apart by domain: of each row a stream of every domain's own items, and where to find them again.

Shapes: B = rows, T = positions, K = domains, R = streams (of one domain in one row), S = positions of a stream, P =
slots of all streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.vocabulary import PADDING, TokenRange


@dataclass(frozen=True)
class StreamGroup:
    """
    Streams of similar length, padded on the right together.

    Args:
        item_ids_RS: one stream per row.
        sizes: how many rows are of each domain; rows come in domain order.
    """

    item_ids_RS: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class DomainStreams:
    """
    The histories of single domains inside mixed rows: each row's items of a domain, in order and without holes.

    Their lengths differ far more than the rows', so they are encoded group by group; P counts the slots of all groups,
    one after the other.

    Args:
        groups: all streams that hold an item; never empty.
        slots_KBT: for each domain and position of the mixed row, the slot in P of the domain's last item at or before
            it; -1 where there is none.
    """

    groups: tuple[StreamGroup, ...]
    slots_KBT: Tensor


def items_so_far(item_ids_BT: Tensor, domains: Sequence[TokenRange]) -> Tensor:
    """
    How many items [K, B, T] of each domain a mixed row holds up to each position.

    >>> items_so_far(torch.tensor([[1, 11, 2, 0]]), (TokenRange(1, 10), TokenRange(11, 20))).tolist()
    [[[1, 1, 2, 2]], [[0, 1, 1, 1]]]
    """
    return torch.stack([domain.mask(item_ids_BT) for domain in domains]).cumsum(2)


def domain_streams(
    item_ids_BT: Tensor, domains: Sequence[TokenRange], lengths_KB: Tensor | None = None
) -> DomainStreams:
    """
    Take mixed rows apart by domain.

    Args:
        item_ids_BT: rows, padded on the right.
        domains: which streams to make.
        lengths_KB: how many of its first items each stream keeps; all of them if None. No slot may be asked for
            beyond.

    >>> streams = domain_streams(torch.tensor([[1, 11, 2, 0]]), (TokenRange(1, 10), TokenRange(11, 20)))
    >>> [group.item_ids_RS.tolist() for group in streams.groups], streams.slots_KBT.tolist()
    ([[[1, 2], [11, 0]]], [[[0, 0, 1, 1]], [[-1, 2, 2, 2]]])
    """
    count_KBT = items_so_far(item_ids_BT, domains)
    K, B, T = count_KBT.shape
    inside_KBT = count_KBT.diff(dim=2, prepend=torch.zeros_like(count_KBT[:, :, :1])) > 0
    compact_RT = item_ids_BT.expand(K, -1, -1).gather(2, (~inside_KBT).to(torch.int8).argsort(dim=2, stable=True))
    compact_RT = compact_RT.flatten(0, 1)
    lengths_R = (count_KBT[:, :, -1] if lengths_KB is None else lengths_KB).flatten()
    positions_T = torch.arange(T, device=item_ids_BT.device)
    starts_R = torch.zeros_like(lengths_R)
    groups: list[StreamGroup] = []
    num_slots, longest = 0, 0
    while longest < T:
        shorter, longest = longest, longest * 4 or 4
        rows_R = ((lengths_R > shorter) & (lengths_R <= longest)).nonzero()[:, 0]
        if not len(rows_R) and (groups or longest < T):
            continue
        if not len(rows_R):
            rows_R = torch.zeros(1, dtype=torch.int64, device=item_ids_BT.device)  # no stream has an item; encode one
        S = max(1, int(lengths_R[rows_R].max()))
        kept_RS = positions_T[:S] < lengths_R[rows_R, None]
        sizes = torch.bincount(rows_R // B, minlength=K).tolist()
        groups.append(StreamGroup(torch.where(kept_RS, compact_RT[rows_R, :S], PADDING), tuple(sizes)))
        starts_R[rows_R] = num_slots + S * torch.arange(len(rows_R), device=item_ids_BT.device)
        num_slots += S * len(rows_R)
    slots_KBT = torch.where(count_KBT > 0, starts_R.view(K, B, 1) + count_KBT - 1, -1)
    return DomainStreams(tuple(groups), slots_KBT)

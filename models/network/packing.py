"""
Sequences side by side without padding, so that a decoder computes real positions only.

Everything in a decoder but attention treats every position alike, whichever sequence it is of. So the positions of all
sequences are one matrix, and only attention takes them apart: sequences of one padded length at a time, each padded to
the next multiple of LENGTH_STEP of its own length, so that a sequence's attention has a shape that depends on that
sequence alone (docs/decisions/0001-same-answer-in-any-batch.md).

Shapes: N = positions of all sequences, filled up to a multiple of LENGTH_STEP (GPU_ROW_STEP on a GPU); M of them in one
bucket, of B sequences padded to T; D = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.dataset import TokenArray
from models.network.decoder import Decoder, causal_attention

# Products and attention of such lengths give the same bits whatever stands beside a row; of others they do not.
LENGTH_STEP = 16
# On a GPU, launching a call takes as long as the call. So there one attention call serves nearly all lengths, and
# products nearly always have one shape, by which its libraries choose the order of a sum.
GPU_LENGTH_STEP = 128
GPU_ROW_STEP = 4096


@dataclass(frozen=True)
class Bucket:
    """
    The sequences of one padded length.

    Args:
        rows_BT: int64, which packed position stands at each place; a sequence's last one fills its padding, which
            nothing before it reads.
        places_M: int64, the real places in the flattened [B x T].
        rows_M: int64, the packed positions there.
    """

    rows_BT: Tensor
    places_M: Tensor
    rows_M: Tensor


@dataclass(frozen=True)
class Packed:
    """
    Sequences one after the other.

    Args:
        token_ids_N: int64; beyond the last sequence padding.
        positions_N: int64, the position of each in its sequence.
        buckets: cover every sequence once.
        starts: where each sequence starts.
    """

    token_ids_N: Tensor
    positions_N: Tensor
    buckets: tuple[Bucket, ...]
    starts: npt.NDArray[np.int64]

    def encode(self, decoder: Decoder) -> Tensor:
        """Hidden state [N, D] after every position, as ``decoder`` gives it for the padded sequences."""
        return decoder.encode(self.token_ids_N, self.positions_N, self._attend)

    def _attend(self, query_key_value_N3D: Tensor, num_heads: int, dropped: float) -> Tensor:
        N, D3 = query_key_value_N3D.shape
        attended_ND = query_key_value_N3D.new_zeros(N, D3 // 3)
        for bucket in self.buckets:
            attended_BTD = causal_attention(query_key_value_N3D[bucket.rows_BT], num_heads, dropped)
            attended_ND[bucket.rows_M] = attended_BTD.flatten(0, 1)[bucket.places_M]
        return attended_ND


def pack(sequences: Sequence[TokenArray], longest: int, device: torch.device) -> Packed:
    """
    Put non-empty *sequences* side by side.

    Args:
        sequences: tokens, none longer than *longest*.
        longest: most positions of a decoder, at which padding stops.
        device: where the decoder is.
    """
    lengths_B = np.asarray([len(sequence) for sequence in sequences], dtype=np.int64)
    assert lengths_B.min() > 0
    assert lengths_B.max() <= longest
    stops_B = np.cumsum(lengths_B)
    starts_B = stops_B - lengths_B
    on_gpu = device.type == "cuda"
    N = padded_length(int(stops_B[-1]), GPU_ROW_STEP if on_gpu else LENGTH_STEP)
    token_ids_N, positions_N = np.zeros((2, N), dtype=np.int64)
    token_ids_N[: stops_B[-1]] = np.concatenate(sequences)
    positions_N[: stops_B[-1]] = np.arange(stops_B[-1]) - np.repeat(starts_B, lengths_B)
    step = GPU_LENGTH_STEP if on_gpu else LENGTH_STEP
    padded_B = np.asarray([min(longest, padded_length(int(length), step)) for length in lengths_B])
    buckets = []
    for length in np.unique(padded_B):
        members = padded_B == length
        places_T = np.arange(length)
        rows_BT = np.minimum(starts_B[members, None] + places_T, stops_B[members, None] - 1)
        real_BT = places_T < lengths_B[members, None]
        parts = (rows_BT, np.flatnonzero(real_BT), rows_BT[real_BT])
        buckets.append(Bucket(*(torch.from_numpy(part).to(device, non_blocking=True) for part in parts)))
    tokens, positions = (
        torch.from_numpy(column).to(device, non_blocking=True) for column in (token_ids_N, positions_N)
    )
    return Packed(tokens, positions, tuple(buckets), starts_B)


def padded_length(length: int, step: int = LENGTH_STEP) -> int:
    """The next multiple of *step*, at least one."""
    return max(1, -(-length // step)) * step

"""
The two readings of a target expert: the mixed history, and the target's own items of it alone.

    log p(x) = (1 - w) log p(x | mixed history) + w log p(x | target items of it) + constant,  0 <= w <= 1

A causal decoder carries the item that it read last to its output. After a source item of a near domain that is news;
after one of a distant domain it is noise, and the target items alone predict better (docs/experiments/two-readings.md).
So every target has two shares w (``tuning.OwnShares``): one for histories that end with a target item, one for those
that end with a source item, which is where decoding asks.

Both readings are of one expert with one item table e, and a constant changes no softmax. So the weighted sum of the
logarithms is the logits of h_mixed + w (h_own - h_mixed), h the hidden states: to every rule and kernel an expert of
two readings is a hidden state like any other. A history without a target item has one reading, the mixed one.

Shapes: N = histories, B = sequences, T = positions, D = width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.dataset import SequencesByNumber, pad_right
from models.network.decoder import Decoder
from models.tuning import MIXED_ALONE, OwnShares
from models.vocabulary import TokenRange

# Histories of one call of the decoder.
READING_ROWS = 256


@dataclass(frozen=True)
class Readings:
    """
    Both readings after N histories.

    Args:
        mixed_ND: hidden states after the mixed histories.
        own_ND: after their target items alone; ``mixed_ND`` where there is none.
        ends_in_target_N: whether the last item is the target's.
    """

    mixed_ND: Tensor
    own_ND: Tensor
    ends_in_target_N: npt.NDArray[np.bool_]

    def combined(self, shares: OwnShares) -> Tensor:
        """The hidden states [N, D] of the expert that these shares make."""
        return combined(self.mixed_ND, self.own_ND, shares_at(shares, self.ends_in_target_N))


def read(expert: Decoder, histories: SequencesByNumber, domain: TokenRange) -> Readings:
    """Both readings after every non-empty history (its last ``max_length`` items); *domain*: the target's tokens."""
    histories = [history[-expert.config.max_length :] for history in histories]
    mixed_ND = encode_last(expert, histories)
    own = [history[domain.mask(history)] for history in histories]
    rows = [row for row, items in enumerate(own) if len(items)]
    own_ND = mixed_ND.clone()
    own_ND[rows] = encode_last(expert, [own[row] for row in rows])
    return Readings(mixed_ND, own_ND, np.asarray([int(history[-1]) in domain for history in histories], dtype=bool))


def read_expert(
    expert: Decoder, histories: SequencesByNumber, domain: TokenRange, shares: OwnShares = MIXED_ALONE
) -> Tensor:
    """Hidden states [N, D] of the expert of *domain* after every non-empty history."""
    if shares == MIXED_ALONE:  # half the work
        return encode_last(expert, histories)
    return read(expert, histories, domain).combined(shares)


def shares_at(shares: OwnShares, ends_in_target_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """W of every history, [N]."""
    return np.where(ends_in_target_N, shares.after_target, shares.after_source).astype(np.float32)


def combined(mixed_ND: Tensor, own_ND: Tensor, shares_N: npt.NDArray[np.float32]) -> Tensor:
    """
    h_mixed + w (h_own - h_mixed), [N, D]: exactly h_mixed where w = 0, exactly h_own where w = 1.

    >>> combined(torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 0.0]]), np.float32([0.25])).tolist()
    [[0.5, 3.0]]
    """
    return torch.lerp(mixed_ND, own_ND, torch.from_numpy(shares_N).to(mixed_ND.device)[:, None])


@torch.inference_mode()
def encode_last(decoder: Decoder, histories: SequencesByNumber) -> Tensor:
    """Hidden state [N, D] after the last item of every history (its last ``max_length`` items are read)."""
    device = decoder.item_embeddings_VD.device
    lengths = np.asarray([min(len(history), decoder.config.max_length) for history in histories], dtype=np.int64)
    order: npt.NDArray[np.int64] = np.argsort(lengths, kind="stable")
    hidden_ND = torch.empty(len(histories), decoder.config.width, device=device)
    for start in range(0, len(order), READING_ROWS):
        rows = order[start : start + READING_ROWS]
        token_ids_BT = pad_right((histories[row] for row in rows), int(lengths[rows].max())).to(device)
        hidden_BTD = decoder(token_ids_BT)
        hidden_ND[rows] = hidden_BTD[torch.arange(len(rows)), torch.from_numpy(lengths[rows] - 1).to(device)]
    return hidden_ND

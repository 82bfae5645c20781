"""
The baseline: what the released code computes, in the order and the shapes in which it computes it.

Our own plain writing of its decoding loop and of its training step, kept free of every improvement so that a ratio
against it is honest. Three habits cost it most: logits of all D + 1 networks exist for the whole padded batch at once
([B, T, V] each); every row of the batch is scored at every step, whether its item is a source item or padding; and one
scoring call takes some twenty element-wise passes over V. tests/benchmarks/test_released.py proves it equal to the
released code's own values.

Shapes: B = sequences, T = positions, V = num_items + 1, X = the target domain's items, K = convertible rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.network.decoder import Decoder
from models.vocabulary import PADDING, TokenRange

EPSILON = 1e-10


@dataclass(frozen=True)
class Networks:
    """The base and one expert per domain, with the domains' token ranges in the same order."""

    base: Decoder
    experts: Sequence[Decoder]
    token_ranges: Sequence[TokenRange]


@torch.inference_mode()
def decode(networks: Networks, whole_BL: Tensor, target: int, *, num_steps: int | None = None) -> Tensor:
    """
    Rewrite a padded batch for one target domain as the released loop does (rule ``reference``).

    Args:
        networks: base and experts.
        whole_BL: int64 whole sequences, padded on the right with 0; L is one more than the decoders' positions.
        target: index of the target domain.
        num_steps: take this many time steps only (timing on a sample of the steps); None for all.

    Returns:
        int64 [B, L]: every source item after position 0 replaced by argmax + 1, whatever domain that falls into.
    """
    read_BT = whole_BL[:, :-1]
    base_BTV = network_logits(networks.base, read_BT)
    expert_BTV = [network_logits(expert, read_BT) for expert in networks.experts]
    decoded_BL = whole_BL.clone()
    for step in range(read_BT.shape[1] if num_steps is None else num_steps):
        items_B = whole_BL[:, step + 1]
        for source, source_range in enumerate(networks.token_ranges):
            if source == target:
                continue
            is_source_B = source_range.mask(items_B)
            if not is_source_B.any():
                continue
            written_B = next_tokens(
                expert_BTV[target][:, step],
                base_BTV[:, step],
                expert_BTV[source][:, step],
                networks.token_ranges[target],
            )
            decoded_BL[:, step + 1] = torch.where(is_source_B, written_B, decoded_BL[:, step + 1])
    return decoded_BL


def next_tokens(target_BV: Tensor, base_BV: Tensor, source_BV: Tensor, target_range: TokenRange) -> Tensor:
    """
    One scoring call over all rows: global scores, local ones written over them where convertible, argmax + 1.

    Where a probability underflows the divergence is NaN, as it is in the released code.
    """
    scores_BV = _scores(target_BV, base_BV, source_BV)
    best_B = scores_BV.argmax(dim=-1)
    convertible_B = target_range.mask(best_B)
    if convertible_B.any():
        columns = target_range.columns
        local_KX = _scores(
            target_BV[convertible_B][:, columns],
            base_BV[convertible_B][:, columns],
            source_BV[convertible_B][:, columns],
        )
        mixed_KV = scores_BV[convertible_B]
        mixed_KV[:, columns] = local_KX
        scores_BV[convertible_B] = mixed_KV
    return scores_BV.argmax(dim=-1) + 1


def training_loss(decoder: Decoder, whole_BL: Tensor, longest: int) -> Tensor:
    """
    Next-item loss as the released step computes it: a rectangle of *longest* positions, all logits at once.

    Args:
        decoder: the network.
        whole_BL: int64 whole sequences, padded on the right with 0.
        longest: positions that every batch is padded to, however short its sequences are.

    Returns:
        Mean cross-entropy over the positions that have a target; the softmax holds the padding column.
    """
    padded_BL = F.pad(whole_BL, (0, longest + 1 - whole_BL.shape[1]), value=PADDING)
    logits_BTV = decoder(padded_BL[:, :-1]) @ decoder.item_embeddings_VD.T
    return F.cross_entropy(logits_BTV.flatten(0, 1), padded_BL[:, 1:].flatten(), ignore_index=PADDING)


def network_logits(decoder: Decoder, token_ids_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of every position of a padded batch, all at once."""
    return decoder(token_ids_BT) @ decoder.item_embeddings_VD.T


def _scores(target_BX: Tensor, base_BX: Tensor, source_BX: Tensor) -> Tensor:
    p_target_BX = torch.softmax(target_BX, dim=-1)
    entropy_BX = -p_target_BX * torch.log(p_target_BX + EPSILON)
    alpha_BX = (1 - entropy_BX) / (1 - entropy_BX.max(dim=-1, keepdim=True).values)
    p_base_BX, p_source_BX = torch.softmax(base_BX, dim=-1), torch.softmax(source_BX, dim=-1)
    mean_BX = 0.5 * (p_base_BX + p_source_BX)
    # F.kl_div(input, target) is target * (ln target - input): the mean stands first, against the usual definition.
    to_base_BX = F.kl_div(p_base_BX.log(), mean_BX, reduction="none")
    to_source_BX = F.kl_div(p_source_BX.log(), mean_BX, reduction="none")
    divergence_BX = 0.5 * (to_base_BX + to_source_BX)
    beta_BX = divergence_BX / (divergence_BX.max(dim=-1, keepdim=True).values + EPSILON)
    return (1 + alpha_BX) * target_BX - beta_BX * source_BX

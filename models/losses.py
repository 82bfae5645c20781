"""
The losses: which item each position predicts, and the cross-entropy of predicting it.

Shapes: B = sequences, T = positions, N = predicted positions, D = width, X = candidate items.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.vocabulary import PADDING, TokenRange

NO_TARGET = PADDING
# Logits held at once, in elements: 2 M floats are 8 MB, large enough for full-speed products and small next to
# [N, X], which is 4 GB at 10,000 positions and 100,000 items.
CHUNK_ELEMENTS = 1 << 21
# A product with fewer rows than this loses more to loading the item table than it saves in memory.
MIN_CHUNK_ROWS = 64


def next_item_targets(token_ids_BT: Tensor) -> Tensor:
    """
    What ordinary next-item prediction asks of every position but the last (eq. 7-8).

    Args:
        token_ids_BT: whole sequences, padded on the right with 0.

    Returns:
        int64 [B, T-1]: the token that follows, 0 where none does.

    >>> next_item_targets(torch.tensor([[5, 7, 6, 0]])).tolist()
    [[7, 6, 0]]
    """
    return token_ids_BT[:, 1:]


def domain_specific_targets(token_ids_BT: Tensor, token_range: TokenRange) -> Tensor:
    """
    What Domain-Specific Prediction asks: at each item of the domain, the next item of the domain (eq. 9-11).

    The next item may lie any number of foreign items away. Positions of foreign items, of padding and of the
    domain's last item ask nothing.

    Args:
        token_ids_BT: whole mixed sequences, padded on the right with 0.
        token_range: the domain's tokens.

    Returns:
        int64 [B, T-1]: the next token of the domain, 0 where the position asks nothing.

    >>> domain_specific_targets(torch.tensor([[1, 9, 8, 2, 9, 3, 0]]), TokenRange(1, 5)).tolist()
    [[2, 0, 0, 3, 0, 0]]
    """
    T = token_ids_BT.shape[1]
    in_domain_BT = (token_ids_BT >= token_range.first) & (token_ids_BT <= token_range.last)
    positions_T = torch.arange(T, device=token_ids_BT.device)
    # Index of the nearest domain item at or after each position, T where there is none.
    here_BT = torch.where(in_domain_BT, positions_T, T)
    nearest_BT = here_BT.flip(1).cummin(dim=1).values.flip(1)
    following_BT = nearest_BT[:, 1:]
    asks_BT = in_domain_BT[:, :-1] & (following_BT < T)
    targets_BT = token_ids_BT.gather(1, following_BT.clamp(max=T - 1))
    return torch.where(asks_BT, targets_BT, NO_TARGET)


def linear_cross_entropy(
    hidden_ND: Tensor, item_table_XD: Tensor, target_columns_N: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS
) -> Tensor:
    """
    Mean cross-entropy of picking each row's target among the candidates, never holding [N, X] logits.

    loss = mean_n [ logsumexp_x(h_n . e_x) - h_n . e_target(n) ]. Rows are taken in chunks; where a gradient is
    wanted it is computed in the same pass, from the probabilities at hand, so the logits are computed once (three
    products in all, against four when they are recomputed). Under autocast the products run in its low precision
    and the softmax in float32.

    Args:
        hidden_ND: hidden states of the predicted positions only.
        item_table_XD: embeddings of the candidates.
        target_columns_N: int64 rows of item_table_XD.
        chunk_elements: most logits held at once (at least 64 rows are taken).

    Returns:
        Scalar float32; 0 with zero gradients when N = 0.
    """
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, item_table_XD, target_columns_N, chunk_elements
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, table_XD: Tensor, targets_N: Tensor, chunk_elements: int) -> Tensor:
        device_type = hidden_ND.device.type
        low_precision = torch.is_autocast_enabled(device_type)
        product_dtype = torch.get_autocast_dtype(device_type) if low_precision else torch.float32
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(device_type, enabled=False):
            hidden, table = hidden_ND.to(product_dtype), table_XD.to(product_dtype)
            N, X = len(hidden), len(table)
            rows = max(MIN_CHUNK_ROWS, chunk_elements // max(1, X))
            total = torch.zeros((), device=hidden.device)
            d_hidden = torch.empty_like(hidden) if wants_gradient else None
            d_table = torch.zeros(table.shape, device=table.device) if wants_gradient else None
            # One chunk's memory for all: fresh pages cost more than the exponential that fills them.
            held = torch.empty(min(rows, N), X, dtype=product_dtype, device=hidden.device)
            for start in range(0, N, rows):
                chunk = slice(start, start + rows)
                logits_CX = torch.mm(hidden[chunk], table.T, out=held[: len(hidden[chunk])]).float()
                targets_C1 = targets_N[chunk, None]
                wanted_C1 = logits_CX.gather(1, targets_C1)
                # One exponential for loss and gradient alike, written over the logits.
                largest_C1 = logits_CX.amax(dim=1, keepdim=True)
                weights_CX = logits_CX.sub_(largest_C1).exp_()
                mass_C1 = weights_CX.sum(dim=1, keepdim=True)
                total += (mass_C1.log() + largest_C1 - wanted_C1).sum()
                if d_hidden is None or d_table is None:
                    continue
                # d loss / d logits = (softmax - one-hot) / N
                error_CX = weights_CX.mul_((mass_C1 * N).reciprocal_())
                error_CX.scatter_add_(1, targets_C1, error_CX.new_full(targets_C1.shape, -1 / N))
                error_CX = error_CX.to(product_dtype)
                torch.mm(error_CX, table, out=d_hidden[chunk])
                if low_precision:
                    d_table += (error_CX.T @ hidden[chunk]).float()
                else:
                    d_table.addmm_(error_CX.T, hidden[chunk])
        ctx.save_for_backward(d_hidden, d_table)
        ctx.dtypes = (hidden_ND.dtype, table_XD.dtype)
        return total / max(1, N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_loss,) = grad_outputs
        d_hidden, d_table = ctx.saved_tensors
        hidden_dtype, table_dtype = ctx.dtypes
        return (grad_loss * d_hidden).to(hidden_dtype), (grad_loss * d_table).to(table_dtype), None, None

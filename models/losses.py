"""
The losses: which item each position predicts, and the cross-entropy of predicting it.

Shapes: B = sequences, T = positions, N = predicted positions, D = width, V = rows of an item table, X = candidates,
C = predicted positions of a chunk, W = candidates of a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.vocabulary import PADDING, TokenRange

NO_TARGET = PADDING
# Weights held at once, in elements: 2 M floats are 8 MB, large enough for full-speed products and small next to
# [N, X], which is 4 GB at 10,000 positions and 100,000 items.
CHUNK_ELEMENTS = 1 << 21
# A product with fewer rows than this loses more to loading the item table than it saves in memory.
MIN_CHUNK_ROWS = 128
# Candidates of one tile on the CPU: 128 rows of 2,048 logits are 1 MB, which every step on them finds in the caches.
TILE_COLUMNS = 2048


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
    hidden_ND: Tensor,
    item_table_VD: Tensor,
    target_rows_N: Tensor,
    *,
    candidates: slice = slice(None),
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """
    Mean cross-entropy of picking each row's target among the candidates, never holding [N, X] logits.

    loss = mean_n [ logsumexp_x(h_n . e_x) - h_n . e_target(n) ]. Positions are taken in chunks and candidates in tiles;
    where a gradient is wanted it is computed in the same pass, from the weights at hand, so the logits are computed
    once (three products in all, against four when they are recomputed). Under autocast the products run in its low
    precision; softmax, sums and what the targets contribute stay float32.

    Args:
        hidden_ND: hidden states of the predicted positions only.
        item_table_VD: embeddings of the items.
        target_rows_N: int64 rows of item_table_VD, each of them a candidate.
        candidates: the candidates' rows, without a step. The gradient of the other rows is 0. A slice of the table
            would say the same and cost a second gradient of the table's size.
        chunk_elements: most softmax weights held at once (at least 128 rows are taken).

    Returns:
        Scalar float32; 0 with zero gradients when N = 0. Its backward runs once.
    """
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, item_table_VD, target_rows_N, candidates, chunk_elements
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, candidates: slice, chunk_elements: int
    ) -> Tensor:
        device_type = hidden_ND.device.type
        low_precision = torch.is_autocast_enabled(device_type)
        product_dtype = torch.get_autocast_dtype(device_type) if low_precision else torch.float32
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ctx.dtypes = (hidden_ND.dtype, table_VD.dtype)
        with torch.autocast(device_type, enabled=False):
            hidden_ND, table_VD = hidden_ND.float(), table_VD.float()
            sweep = _Sweep(hidden_ND, table_VD[candidates], product_dtype, chunk_elements)
            target_hidden_ND = table_VD[targets_N]
            total = -(hidden_ND * target_hidden_ND).sum()
            if not wants_gradient:
                return (total + sweep.log_masses()) / max(1, len(hidden_ND))
            N = max(1, len(hidden_ND))
            d_hidden_ND = torch.empty_like(hidden_ND)
            d_table_VD = torch.empty_like(table_VD)
            first, stop, _ = candidates.indices(len(table_VD))
            d_table_VD[:first].zero_()
            d_table_VD[stop:].zero_()
            total += sweep.gradients(d_hidden_ND, d_table_VD[first:stop], scale=1 / N)
            # d loss / d logits = (softmax - one-hot) / N: the sweep gave the first, exact float32 the second.
            d_hidden_ND.sub_(target_hidden_ND, alpha=1 / N)
            d_table_VD.index_put_((targets_N,), hidden_ND / -N, accumulate=True)
        ctx.save_for_backward(d_hidden_ND, d_table_VD)
        return total / N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad_loss,) = grad_outputs
        d_hidden, d_table = ctx.saved_tensors
        hidden_dtype, table_dtype = ctx.dtypes
        # In place: fresh memory of the table's size costs more than the product. A second backward is an error.
        return d_hidden.mul_(grad_loss).to(hidden_dtype), d_table.mul_(grad_loss).to(table_dtype), None, None, None


class _Sweep:
    """
    Products and softmax of all positions and candidates, a chunk of positions and a tile of candidates at a time.

    A tile's weights are exp(logit - largest so far), as the largest of all is known only after the last tile; what
    was summed before is shrunk whenever a larger one comes.
    """

    def __init__(self, hidden_ND: Tensor, table_XD: Tensor, product_dtype: torch.dtype, chunk_elements: int) -> None:
        self.hidden_ND = hidden_ND
        self.product_hidden_ND, self.product_table_XD = hidden_ND.to(product_dtype), table_XD.to(product_dtype)
        N, X = len(hidden_ND), len(table_XD)
        # A GPU wants large products, not small caches.
        W = TILE_COLUMNS if hidden_ND.device.type == "cpu" else max(1, X)
        self.tiles = [slice(start, min(start + W, X)) for start in range(0, X, W)]
        C = max(MIN_CHUNK_ROWS, chunk_elements // max(1, X))
        self.chunks = [slice(start, min(start + C, N)) for start in range(0, N, C)]

    def log_masses(self) -> Tensor:
        """Sum over positions of logsumexp over candidates."""
        total = self.hidden_ND.new_zeros(())
        for chunk in self.chunks:
            largest_C1, mass_C1 = self._nothing(chunk)
            for tile in self.tiles:
                largest_C1, _ = self._weigh(chunk, tile, largest_C1, mass_C1)
            total += (mass_C1.log_() + largest_C1).sum()
        return total

    def gradients(self, d_hidden_ND: Tensor, d_table_XD: Tensor, *, scale: float) -> Tensor:
        """As ``log_masses``; writes scale times its gradient to d_hidden_ND and d_table_XD."""
        total = self.hidden_ND.new_zeros(())
        if not self.chunks:
            d_table_XD.zero_()
        for chunk in self.chunks:
            largest_C1, mass_C1 = self._nothing(chunk)
            mixed_CD = torch.zeros_like(self.hidden_ND[chunk])
            held = []
            for tile in self.tiles:
                before_C1 = largest_C1
                largest_C1, weights_CW = self._weigh(chunk, tile, largest_C1, mass_C1)
                _add_product(mixed_CD.mul_((before_C1 - largest_C1).exp_()), weights_CW, self.product_table_XD[tile])
                held.append((weights_CW, largest_C1))
            share_C1 = scale / mass_C1
            torch.mul(mixed_CD, share_C1, out=d_hidden_ND[chunk])
            for tile, (weights_CW, then_C1) in zip(self.tiles, held, strict=True):
                # Scaling [C, D] hidden states is cheaper than [C, W] weights.
                scaled_CD = self.hidden_ND[chunk] * ((then_C1 - largest_C1).exp_() * share_C1)
                scaled_CD = scaled_CD.to(weights_CW.dtype)
                _add_product(d_table_XD[tile], weights_CW.T, scaled_CD, is_first=chunk.start == 0)
            total += (mass_C1.log_() + largest_C1).sum()
        return total

    def _nothing(self, chunk: slice) -> tuple[Tensor, Tensor]:
        largest_C1 = self.hidden_ND.new_full((chunk.stop - chunk.start, 1), -math.inf)
        return largest_C1, torch.zeros_like(largest_C1)

    def _weigh(self, chunk: slice, tile: slice, largest_C1: Tensor, mass_C1: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit so far and the tile's weights; *mass_C1* becomes the sum of all weights so far."""
        products_CW = self.product_hidden_ND[chunk] @ self.product_table_XD[tile].T
        logits_CW = products_CW.float()
        next_C1 = torch.maximum(largest_C1, logits_CW.amax(dim=1, keepdim=True))
        weights_CW = logits_CW.sub_(next_C1).exp_()
        mass_C1.mul_((largest_C1 - next_C1).exp_()).add_(weights_CW.sum(dim=1, keepdim=True))
        return next_C1, weights_CW.to(products_CW.dtype)


def _add_product(out: Tensor, left: Tensor, right: Tensor, *, is_first: bool = False) -> None:
    """Add left @ right to float32 *out*, whatever the factors' precision; *is_first* writes over what out holds."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, beta=0 if is_first else 1)
    elif is_first:
        out.copy_(left @ right)
    else:
        out.add_(left @ right)

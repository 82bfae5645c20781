"""
The losses: which item each position predicts, and the cross-entropy of predicting it.

The cross-entropy over all items is the costliest step of training, and its logits are the largest tensor. Ours never
holds them all, and a compiled tile (``kernels.softmax_tile``) exponentiates them while they are in the caches. Weighed
against it:

- torch's own ``linear_cross_entropy``, in chunks: as exact, but took 0.33 s where ours took 0.26 s (0.47 s without
  chunks; 2,000 positions, 15,000 items, width 128, one core, torch 2.13), and has no place for the weights of a sampled
  softmax, for which ours uses the same sweep.
- Liger Kernel and Cut Cross-Entropy: Triton kernels, so for GPUs; training here must be quick without one.

Shapes: B = sequences, T = positions, N = predicted positions, D = width, V = rows of an item table, X = candidates,
S = candidates drawn for a step, C = predicted positions of a chunk, W = candidates of a tile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from models.kernels import softmax_tile
from models.network.negatives import Negatives
from models.vocabulary import PADDING, TokenRange

NO_TARGET = PADDING
# Weights held at once, in elements: 32 M floats are 134 MB, 335 rows of 100,000 candidates, from where on products gain
# nothing; small next to [N, X], which is 4 GB at 10,000 positions and 100,000 items.
CHUNK_ELEMENTS = 1 << 25
# A product with fewer rows than this loses more to loading the item table than it saves in memory.
MIN_CHUNK_ROWS = 128
# Candidates of one tile on the CPU: few enough that every step on its logits finds them in the caches.
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
    in_domain_BT = token_range.mask(token_ids_BT)
    positions_T = torch.arange(T, device=token_ids_BT.device)
    # Index of the nearest domain item at or after each position, T where there is none.
    here_BT = torch.where(in_domain_BT, positions_T, T)
    nearest_BT = here_BT.flip(1).cummin(dim=1).values.flip(1)
    following_BT = nearest_BT[:, 1:]
    predicts_BT = in_domain_BT[:, :-1] & (following_BT < T)
    targets_BT = token_ids_BT.gather(1, following_BT.clamp(max=T - 1))
    return torch.where(predicts_BT, targets_BT, NO_TARGET)


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


def sampled_cross_entropy(
    hidden_ND: Tensor,
    item_table_VD: Tensor,
    target_rows_N: Tensor,
    negatives: Negatives,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """
    Mean cross-entropy with the sum over all candidates estimated from some of them, drawn once for all positions.

    loss = mean_n [ ln Z_n - h_n . e_target(n) ] with
    Z_n = exp(h_n . e_target(n)) + sum over s with x_s != target(n) of w_s exp(h_n . e_s).
    The expectation of Z_n is the whole sum, as w_s is how often s was drawn over how often it was to be expected (the
    logQ correction) and the target, counted by itself, is left out of the negatives. The logarithm of an unbiased
    estimate is a little low in expectation (Jensen), by about half its relative variance; so are loss and gradient.

    Args:
        hidden_ND: hidden states of the predicted positions only.
        item_table_VD: embeddings of the items.
        target_rows_N: int64 rows of item_table_VD.
        negatives: of this step; their tokens are rows of item_table_VD.
        chunk_elements: as in ``linear_cross_entropy``.

    Returns:
        Scalar float32; 0 with zero gradients when N = 0. Its backward runs once. The gradient of the table is sparse:
        it names the rows of negatives and targets, and a row may come twice.
    """
    loss: Tensor = _SampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, item_table_VD, target_rows_N, *negatives, chunk_elements
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """What forward saves are the gradients themselves, for a loss gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, candidates: slice, chunk_elements: int
    ) -> Tensor:
        ctx.dtypes = (hidden_ND.dtype, table_VD.dtype)
        product_dtype = _product_dtype(hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND, table_VD = hidden_ND.float(), table_VD.float()
            N = max(1, len(hidden_ND))
            sweep = _Sweep(hidden_ND, table_VD[candidates], product_dtype, chunk_elements)
            targets_ND = table_VD[targets_N]
            wanted_N = (hidden_ND * targets_ND).sum(dim=1)
            if not any(ctx.needs_input_grad):
                return (sweep.log_masses() - wanted_N).sum() / N
            d_hidden_ND, d_table_VD = torch.empty_like(hidden_ND), torch.empty_like(table_VD)
            first, stop, _ = candidates.indices(len(table_VD))
            d_table_VD[:first].zero_()
            d_table_VD[stop:].zero_()
            log_masses_N = sweep.gradients(d_hidden_ND, d_table_VD[first:stop], scale=1 / N)
            # d loss / d logits = (softmax - one-hot) / N: the sweep gave the first, exact float32 the second.
            d_hidden_ND.sub_(targets_ND, alpha=1 / N)
            _add_rows(d_table_VD, targets_N, hidden_ND / -N)
            ctx.save_for_backward(d_hidden_ND, d_table_VD)
            return (log_masses_N - wanted_N).sum() / N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        d_hidden, d_table = ctx.saved_tensors
        hidden_dtype, table_dtype = ctx.dtypes
        # In place: fresh memory of the table's size costs more than the product. A second backward is an error.
        return d_hidden.mul_(grad_loss).to(hidden_dtype), d_table.mul_(grad_loss).to(table_dtype), None, None, None


class _SampledCrossEntropy(torch.autograd.Function):
    """As ``_LinearCrossEntropy``; the table's gradient as rows, of which a vocabulary of a million has few."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        rows_S: Tensor,
        log_weights_S: Tensor,
        chunk_elements: int,
    ) -> Tensor:
        ctx.dtypes, ctx.table_shape = (hidden_ND.dtype, table_VD.dtype), table_VD.shape
        product_dtype = _product_dtype(hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND, targets_ND = hidden_ND.float(), table_VD[targets_N].float()
            N = max(1, len(hidden_ND))
            wanted_N = (hidden_ND * targets_ND).sum(dim=1)
            columns_N = torch.searchsorted(rows_S, targets_N).clamp_(max=len(rows_S) - 1)
            columns_N = torch.where(rows_S[columns_N] == targets_N, columns_N, -1)
            table_SD = table_VD[rows_S].float()
            sweep = _SampledSweep(
                hidden_ND, table_SD, product_dtype, chunk_elements, log_weights_S[None, :], wanted_N, columns_N
            )
            if not any(ctx.needs_input_grad):
                return (sweep.log_masses() - wanted_N).sum() / N
            d_hidden_ND, d_table_SD = torch.empty_like(hidden_ND), torch.empty_like(table_SD)
            log_masses_N = sweep.gradients(d_hidden_ND, d_table_SD, scale=1 / N)
            # d loss / d target's logit = (its share of the mass - 1) / N
            errors_N1 = torch.expm1(wanted_N - log_masses_N)[:, None] / N
            d_hidden_ND.addcmul_(errors_N1, targets_ND)
            d_rows_RD = torch.cat([d_table_SD, hidden_ND * errors_N1])
            ctx.save_for_backward(d_hidden_ND, d_rows_RD, torch.cat([rows_S, targets_N]))
            return (log_masses_N - wanted_N).sum() / N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        d_hidden_ND, d_rows_RD, rows_R = ctx.saved_tensors
        hidden_dtype, table_dtype = ctx.dtypes
        d_rows_RD = d_rows_RD.mul_(grad_loss).to(table_dtype)
        d_table_VD = torch.sparse_coo_tensor(rows_R[None], d_rows_RD, ctx.table_shape, check_invariants=False)
        return d_hidden_ND.mul_(grad_loss).to(hidden_dtype), d_table_VD, None, None, None, None


def _product_dtype(device: torch.device) -> torch.dtype:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


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
        """The logarithm of every position's sum of exp(logit), [N]."""
        log_masses_N = self.hidden_ND.new_empty(len(self.hidden_ND))
        for chunk in self.chunks:
            largest_C1, mass_C1 = self._start(chunk)
            for tile in self.tiles:
                largest_C1, _ = self._weigh(chunk, tile, largest_C1, mass_C1)
            log_masses_N[chunk] = (mass_C1.log_() + largest_C1)[:, 0]
        return log_masses_N

    def gradients(self, d_hidden_ND: Tensor, d_table_XD: Tensor, *, scale: float) -> Tensor:
        """As ``log_masses``; writes scale times the gradient of their sum to d_hidden_ND and d_table_XD."""
        log_masses_N = self.hidden_ND.new_empty(len(self.hidden_ND))
        if not self.chunks:
            d_table_XD.zero_()
        for chunk in self.chunks:
            largest_C1, mass_C1 = self._start(chunk)
            mixed_CD = torch.zeros_like(self.hidden_ND[chunk])
            weighed = []
            for tile in self.tiles:
                before_C1 = largest_C1
                largest_C1, weights_CW = self._weigh(chunk, tile, largest_C1, mass_C1)
                _add_product(mixed_CD.mul_((before_C1 - largest_C1).exp_()), weights_CW, self.product_table_XD[tile])
                weighed.append((weights_CW, largest_C1))
            share_C1 = scale / mass_C1
            torch.mul(mixed_CD, share_C1, out=d_hidden_ND[chunk])
            for tile, (weights_CW, then_C1) in zip(self.tiles, weighed, strict=True):
                # Scaling [C, D] hidden states is cheaper than [C, W] weights.
                scaled_CD = self.hidden_ND[chunk] * ((then_C1 - largest_C1).exp_() * share_C1)
                scaled_CD = scaled_CD.to(weights_CW.dtype)
                _add_product(d_table_XD[tile], weights_CW.T, scaled_CD, is_first=chunk.start == 0)
            log_masses_N[chunk] = (mass_C1.log_() + largest_C1)[:, 0]
        return log_masses_N

    def _start(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Largest logit and mass before the first tile."""
        largest_C1 = self.hidden_ND.new_full((chunk.stop - chunk.start, 1), -math.inf)
        return largest_C1, torch.zeros_like(largest_C1)

    def _weigh(self, chunk: slice, tile: slice, largest_C1: Tensor, mass_C1: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit so far and the tile's weights; *mass_C1* becomes the sum of all weights so far."""
        logits_CW = self._logits(chunk, tile)
        if softmax_tile.fits(logits_CW) and softmax_tile.is_available():
            next_C1 = largest_C1.clone()
            softmax_tile.weigh_(logits_CW, next_C1, mass_C1)
            return next_C1, logits_CW.to(self.product_hidden_ND.dtype)
        logits_CW = logits_CW.float()
        next_C1 = torch.maximum(largest_C1, logits_CW.amax(dim=1, keepdim=True))
        weights_CW = logits_CW.sub_(next_C1).exp_()
        mass_C1.mul_((largest_C1 - next_C1).exp_()).add_(weights_CW.sum(dim=1, keepdim=True))
        return next_C1, weights_CW.to(self.product_hidden_ND.dtype)

    def _logits(self, chunk: slice, tile: slice) -> Tensor:
        return self.product_hidden_ND[chunk] @ self.product_table_XD[tile].T


class _SampledSweep(_Sweep):
    """
    Each candidate counts as often as its weight says; a position's target counts once, and not as a candidate.

    Args:
        log_weights_1X: of the candidates.
        wanted_N: logit of each position's target.
        columns_N: where among the candidates the target is, -1 where it is not.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        table_XD: Tensor,
        product_dtype: torch.dtype,
        chunk_elements: int,
        log_weights_1X: Tensor,
        wanted_N: Tensor,
        columns_N: Tensor,
    ) -> None:
        super().__init__(hidden_ND, table_XD, product_dtype, chunk_elements)
        self.log_weights_1X = log_weights_1X
        self.wanted_N, self.columns_N = wanted_N, columns_N

    def _start(self, chunk: slice) -> tuple[Tensor, Tensor]:
        wanted_C1 = self.wanted_N[chunk, None]
        return wanted_C1, torch.ones_like(wanted_C1)

    def _logits(self, chunk: slice, tile: slice) -> Tensor:
        logits_CW = super()._logits(chunk, tile).float().add_(self.log_weights_1X[:, tile])
        columns_C1 = self.columns_N[chunk, None] - tile.start
        is_here_C1 = (columns_C1 >= 0) & (columns_C1 < logits_CW.shape[1])
        columns_C1 = columns_C1.clamp(0, logits_CW.shape[1] - 1)
        kept_C1 = torch.where(is_here_C1, -math.inf, logits_CW.gather(1, columns_C1))
        return logits_CW.scatter_(1, columns_C1, kept_C1)


def _add_rows(out_VD: Tensor, rows_N: Tensor, values_ND: Tensor) -> None:
    """Add each value to its row of *out_VD*, repeated rows in an order that does not depend on threads."""
    if out_VD.device.type == "cpu":
        out_VD.index_add_(0, rows_N, values_ND)  # index_put_ adds in whatever order its threads come
    else:
        out_VD.index_put_((rows_N,), values_ND, accumulate=True)  # sorts first, where index_add_ adds as threads come


def _add_product(out: Tensor, left: Tensor, right: Tensor, *, is_first: bool = False) -> None:
    """Add left @ right to float32 *out*, whatever the factors' precision; *is_first* writes over what out holds."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, beta=0 if is_first else 1)
    elif is_first:
        out.copy_(left @ right)
    else:
        out.add_(left @ right)

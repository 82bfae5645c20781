"""
Rule ``paper`` as Triton kernels: the same decisions as the definition in ``decoding/paper``, for a GPU.

No logit is ever written to memory. Each pass multiplies a block of positions with a block of items, reduces the tile
that results while it lies in registers, and forgets it. A pass that needs a number over all items multiplies anew:

1. ``_weigh_items``: largest logit, mass and entropy of the decoders, per *span* of items.
2. ``_diverge``: the divergence of base and source expert, per span, from the masses of all spans.
3. ``_search``: best and second-best score, per span, with the weights alpha from 1 and beta from 2.

Between them ``_normalise`` and ``_agree`` put the spans' numbers together, which is next to nothing.

So a position costs eight products of its hidden states with an item table where the definition does three, and reads
and writes numbers by the span instead of by the item. A span is a fixed stretch of items that lies inside or outside
the target domain as a whole, so that the local step takes up the masses of the global one, and what is summed, and in
which order, is a function of the position alone.

Shapes: N = positions, D = width, V = num_items + 1, S = spans, C = positions of one block, X = items of one block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.paper_rule import Decisions, SourceGroup
from models.vocabulary import PADDING, TokenRange

LOG = logging.getLogger(__name__)

# Items of one span: so many that a span's seven numbers per position are nothing next to its products, so few that a
# hundred thousand items occupy every core of a GPU with a few dozen positions (docs/performance.md has other sizes).
SPAN_ITEMS = 1024
# Positions whose spans' numbers are held at once: 112 MB at a million items.
CHUNK_POSITIONS = 4096
# One program's tile, three float32 [C, X] in its registers, and the step through the width: 16 rows to a warp, with
# more warps than that two do the same products. Twice the items are a little faster on an H200, and spill where they
# are compiled for Ampere (docs/performance.md).
BLOCK_POSITIONS = tl.constexpr(64)
BLOCK_ITEMS = tl.constexpr(64)
BLOCK_WIDTH = tl.constexpr(32)
NUM_WARPS = 4
# Numbers per position and span that pass 1 leaves.
TARGET_LARGEST, TARGET_MASS, TARGET_MOMENT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BASE_LARGEST, BASE_MASS = tl.constexpr(3), tl.constexpr(4)
SOURCE_LARGEST, SOURCE_MASS = tl.constexpr(5), tl.constexpr(6)
NUM_MASSES = tl.constexpr(7)
# Numbers per position that are computed from those.
BASE_LOG_MASS, SOURCE_LOG_MASS, ALPHA, BETA = tl.constexpr(1), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
BASE_SHIFT, SOURCE_SHIFT = tl.constexpr(0), tl.constexpr(2)
NUM_WEIGHTS = tl.constexpr(6)
LOG_2 = tl.constexpr(0.6931471805599453)
SMALLEST = tl.constexpr(1.1754943508222875e-38)
# Below every logit, yet finite, so that a difference to it is not NaN.
LOWEST = tl.constexpr(-3e38)

# One compilation for any number of positions and spans, and wherever the spans of a step begin.
KERNEL = triton.jit(do_not_specialize=["N", "S"], do_not_specialize_on_alignment=["bounds"])


@cache
def runs_on(device: torch.device) -> bool:
    """Whether the kernels compile and run there, tried once, a matter of seconds: Triton wants a C compiler, too."""
    hidden_ND, table_VD = torch.zeros(1, 16, device=device), torch.zeros(2, 16, device=device)
    try:
        decide_paper([hidden_ND] * 3, [table_VD] * 2, [SourceGroup(table_VD, 1)], TokenRange(1, 1))
    except Exception as error:  # whatever compilers, drivers and GPUs may object to
        LOG.warning("the GPU's kernels do not run on %s, rule paper is slower there: %s", device, error)
        return False
    return True


def decide_paper(
    hidden_3ND: Sequence[Tensor], shared_2VD: Sequence[Tensor], sources: Sequence[SourceGroup], target_range: TokenRange
) -> Decisions:
    """
    Decide N positions by rule ``paper``; arguments and result as ``paper_rule.decide_paper``, float32 on one GPU.

    Returns:
        The decisions of ``contrastive.decide_in_blocks`` up to float32 rounding; a position's bits depend on nothing
        but the position.
    """
    target_ND, base_ND, source_ND = (hidden_ND.contiguous() for hidden_ND in hidden_3ND)
    target_VD, base_VD = (table_VD.contiguous() for table_VD in shared_2VD)
    decided, start = [], 0
    for source in sources:
        tables = (target_VD, base_VD, source.table_VD.contiguous())
        stop = start + source.num_positions
        for first in range(start, stop, CHUNK_POSITIONS):
            rows = slice(first, min(first + CHUNK_POSITIONS, stop))
            hidden = (target_ND[rows], base_ND[rows], source_ND[rows])
            # Triton launches on the current device.
            with torch.cuda.device_of(target_ND):  # type: ignore[no-untyped-call]
                decided.append(_decide_chunk(hidden, tables, target_range))
        start = stop
    assert start == len(target_ND) > 0
    return Decisions(*(torch.cat(parts) for parts in zip(*decided, strict=True)))


def _decide_chunk(hidden: Sequence[Tensor], tables: Sequence[Tensor], target_range: TokenRange) -> Decisions:
    bounds, local = _spans(len(tables[0]), target_range)
    bounds_S1 = torch.tensor(bounds, dtype=torch.int32, device=hidden[0].device)
    # 1. Global step over all items.
    masses_S7N = _masses(hidden, tables, bounds_S1)
    decided = _step(hidden, tables, bounds_S1, masses_S7N)
    token_N = decided.token_ids_N
    convertible_N = target_range.mask(token_N)
    token_N.masked_fill_(~convertible_N, PADDING)
    # 2. Local step over the target domain, where the global argmax fell into it.
    chosen_K = convertible_N.nonzero()[:, 0]
    if len(chosen_K):
        chosen = [hidden_ND[chosen_K] for hidden_ND in hidden]
        masses_S7K = masses_S7N[local, :, chosen_K].contiguous()
        step = _step(chosen, tables, bounds_S1[local.start : local.stop + 1], masses_S7K)
        for whole_N, part_K in zip(decided, step, strict=True):
            whole_N[chosen_K] = part_K
    return decided


def _spans(V: int, target_range: TokenRange) -> tuple[list[int], slice]:
    """
    Where spans begin, and the last one ends; and which of them are the target domain's.

    >>> _spans(3_000, TokenRange(1, 1_500))
    ([1, 1025, 1501, 2525, 3000], slice(0, 2, None))
    """
    edges = sorted({1, target_range.first, target_range.last + 1, V})
    bounds = [start for first, stop in pairwise(edges) for start in range(first, stop, SPAN_ITEMS)] + [V]
    return bounds, slice(bounds.index(target_range.first), bounds.index(target_range.last + 1))


def _masses(hidden: Sequence[Tensor], tables: Sequence[Tensor], bounds_S1: Tensor) -> Tensor:
    (N, D), S = hidden[0].shape, len(bounds_S1) - 1
    masses_S7N = hidden[0].new_empty(S, NUM_MASSES.value, N)
    _weigh_items[_grid(N, S)](*hidden, *tables, bounds_S1, masses_S7N, N, D, num_warps=NUM_WARPS)
    return masses_S7N


def _step(hidden: Sequence[Tensor], tables: Sequence[Tensor], bounds_S1: Tensor, masses_S7N: Tensor) -> Decisions:
    """One step of the rule over the items of these spans."""
    (N, D), S = hidden[0].shape, len(bounds_S1) - 1
    # Separate tensors, so that each begins at a multiple of 16 bytes, however many positions there are.
    divergence_SN, best_SN, second_SN = (masses_S7N.new_empty(S, N) for _ in range(3))
    token_SN = torch.empty(S, N, dtype=torch.int32, device=masses_S7N.device)
    weights_6N = masses_S7N.new_empty(NUM_WEIGHTS.value, N)
    blocks, options = _grid(N, S)[:1], {"num_warps": NUM_WARPS}
    _normalise[blocks](masses_S7N, bounds_S1, weights_6N, N, S, **options)
    _diverge[_grid(N, S)](*hidden[1:], *tables[1:], bounds_S1, weights_6N, divergence_SN, N, D, **options)
    _agree[blocks](divergence_SN, weights_6N, N, S, **options)
    _search[_grid(N, S)](*hidden, *tables, bounds_S1, weights_6N, token_SN, best_SN, second_SN, N, D, **options)
    score_N, span_N = best_SN.max(dim=0)  # the first of equals, which holds the lowest token
    token_N = token_SN.gather(0, span_N[None])[0].long()
    # The runner-up is the winner's span's second, or another span's best.
    others_SN = best_SN.scatter(0, span_N[None], second_SN.gather(0, span_N[None]))
    alpha_N, beta_N = weights_6N[ALPHA.value], weights_6N[BETA.value]
    return Decisions(token_N, alpha_N, beta_N, score_N, score_N - others_SN.amax(dim=0))


def _grid(N: int, S: int) -> tuple[int, int]:
    return triton.cdiv(N, BLOCK_POSITIONS.value), S


@KERNEL
def _weigh_items(
    target_hidden, base_hidden, source_hidden, target_table, base_table, source_table, bounds, masses, N, D
):
    """
    Pass 1, one block of positions and one span: masses [S, 7, N].

    Relative to the span's largest logit m: mass = sum exp(l - m), moment = sum exp(l - m) (l - m).
    """
    rows, inside = _rows(N)
    span = tl.program_id(1)
    start, stop = tl.load(bounds + span), tl.load(bounds + span + 1)
    target_largest, base_largest, source_largest = _filled(LOWEST), _filled(LOWEST), _filled(LOWEST)
    target_mass, base_mass, source_mass = _filled(0.0), _filled(0.0), _filled(0.0)
    target_moment = _filled(0.0)
    for first in range(start, stop, BLOCK_ITEMS):
        items = first + tl.arange(0, BLOCK_ITEMS)
        real = (items < stop)[None, :]
        logits = _logits(target_hidden, target_table, rows, inside, items, stop, D)
        largest = tl.maximum(target_largest, tl.max(tl.where(real, logits, LOWEST), axis=1))
        below = tl.where(real, logits - largest[:, None], 0.0)
        terms = tl.where(real, tl.exp(below), 0.0)
        # What was summed so far is relative to the largest so far.
        shift = target_largest - largest
        target_moment = tl.exp(shift) * (target_moment + shift * target_mass) + tl.sum(terms * below, axis=1)
        target_mass = tl.exp(shift) * target_mass + tl.sum(terms, axis=1)
        target_largest = largest
        logits = _logits(base_hidden, base_table, rows, inside, items, stop, D)
        base_largest, base_mass = _add_mass(logits, real, base_largest, base_mass)
        logits = _logits(source_hidden, source_table, rows, inside, items, stop, D)
        source_largest, source_mass = _add_mass(logits, real, source_largest, source_mass)
    own = masses + span * NUM_MASSES * N + rows
    tl.store(own + TARGET_LARGEST * N, target_largest, mask=inside)
    tl.store(own + TARGET_MASS * N, target_mass, mask=inside)
    tl.store(own + TARGET_MOMENT * N, target_moment, mask=inside)
    tl.store(own + BASE_LARGEST * N, base_largest, mask=inside)
    tl.store(own + BASE_MASS * N, base_mass, mask=inside)
    tl.store(own + SOURCE_LARGEST * N, source_largest, mask=inside)
    tl.store(own + SOURCE_MASS * N, source_mass, mask=inside)


@KERNEL
def _normalise(masses, bounds, weights, N, S):
    """Largest logit and log-mass of base and source expert, and alpha, of one block of positions, [6, N]."""
    rows, inside = _rows(N)
    base_largest, base_mass = _whole(masses, BASE_LARGEST, BASE_MASS, rows, inside, N, S)
    source_largest, source_mass = _whole(masses, SOURCE_LARGEST, SOURCE_MASS, rows, inside, N, S)
    tl.store(weights + BASE_SHIFT * N + rows, base_largest, mask=inside)
    tl.store(weights + BASE_LOG_MASS * N + rows, tl.log(base_mass).to(tl.float32), mask=inside)
    tl.store(weights + SOURCE_SHIFT * N + rows, source_largest, mask=inside)
    tl.store(weights + SOURCE_LOG_MASS * N + rows, tl.log(source_mass).to(tl.float32), mask=inside)
    tl.store(weights + ALPHA * N + rows, _confidence(masses, bounds, rows, inside, N, S), mask=inside)


@KERNEL
def _diverge(base_hidden, source_hidden, base_table, source_table, bounds, weights, divergence, N, D):
    """
    Pass 2: sum p (ln p - ln m) + q (ln q - ln m) with m = (p + q) / 2 over one span, [S, N].

    p and q are the softmax of base and source expert over all spans.
    """
    rows, inside = _rows(N)
    span = tl.program_id(1)
    start, stop = tl.load(bounds + span), tl.load(bounds + span + 1)
    base_largest = tl.load(weights + BASE_SHIFT * N + rows, mask=inside, other=0.0)
    base_log = tl.load(weights + BASE_LOG_MASS * N + rows, mask=inside, other=0.0)
    source_largest = tl.load(weights + SOURCE_SHIFT * N + rows, mask=inside, other=0.0)
    source_log = tl.load(weights + SOURCE_LOG_MASS * N + rows, mask=inside, other=0.0)
    sums = _filled(0.0)
    for first in range(start, stop, BLOCK_ITEMS):
        items = first + tl.arange(0, BLOCK_ITEMS)
        log_p = _logits(base_hidden, base_table, rows, inside, items, stop, D) - base_largest[:, None]
        log_q = _logits(source_hidden, source_table, rows, inside, items, stop, D) - source_largest[:, None]
        real = (items < stop)[None, :]
        log_p = tl.where(real, log_p - base_log[:, None], 0.0)
        log_q = tl.where(real, log_q - source_log[:, None], 0.0)
        p, q = tl.exp(log_p), tl.exp(log_q)
        # Where both underflow, p and q are 0 and the logarithm need only be finite.
        log_mean = tl.log(tl.maximum((p + q) * 0.5, SMALLEST))
        terms = p * (log_p - log_mean) + q * (log_q - log_mean)
        sums += tl.sum(tl.where(real, terms, 0.0), axis=1)
    tl.store(divergence + span * N + rows, sums, mask=inside)


@KERNEL
def _agree(divergence, weights, N, S):
    """Weight beta = 1 - JSD(p_M, p_S) / ln 2 of one block of positions; JSD is half the sum over all spans."""
    rows, inside = _rows(N)
    sums = tl.zeros((BLOCK_POSITIONS,), dtype=tl.float64)
    for span in range(0, S):
        sums += tl.load(divergence + span * N + rows, mask=inside, other=0.0).to(tl.float64)
    beta = 1.0 - 0.5 * sums / LOG_2
    tl.store(weights + BETA * N + rows, tl.minimum(tl.maximum(beta, 0.0), 1.0).to(tl.float32), mask=inside)


@KERNEL
def _search(
    target_hidden, base_hidden, source_hidden, target_table, base_table, source_table,
    bounds, weights, tokens, best_scores, second_scores, N, D,
):  # fmt: skip
    """Pass 3: best token, its score and the second-best score of one span, [S, N]."""
    rows, inside = _rows(N)
    span = tl.program_id(1)
    start, stop = tl.load(bounds + span), tl.load(bounds + span + 1)
    alpha = tl.load(weights + ALPHA * N + rows, mask=inside, other=0.0)
    beta = tl.load(weights + BETA * N + rows, mask=inside, other=0.0)
    best, second = _filled(-float("inf")), _filled(-float("inf"))
    token = tl.zeros((BLOCK_POSITIONS,), dtype=tl.int32)
    for first in range(start, stop, BLOCK_ITEMS):
        items = first + tl.arange(0, BLOCK_ITEMS)
        scores = (1.0 + alpha)[:, None] * _logits(target_hidden, target_table, rows, inside, items, stop, D)
        contrast = _logits(base_hidden, base_table, rows, inside, items, stop, D)
        contrast -= _logits(source_hidden, source_table, rows, inside, items, stop, D)
        scores = tl.where(items[None, :] < stop, scores + beta[:, None] * contrast, -float("inf"))
        tile_best = tl.max(scores, axis=1)
        # Among equals the lowest item: the smallest of those that reach the tile's best.
        tile_token = tl.min(tl.where(scores == tile_best[:, None], items[None, :], stop), axis=1)
        rest = tl.where(items[None, :] == tile_token[:, None], -float("inf"), scores)
        second = tl.maximum(tl.maximum(second, tl.max(rest, axis=1)), tl.minimum(tile_best, best))
        # A later item must be better, not as good.
        token = tl.where(tile_best > best, tile_token, token)
        best = tl.maximum(best, tile_best)
    own = span * N + rows
    tl.store(tokens + own, token, mask=inside)
    tl.store(best_scores + own, best, mask=inside)
    tl.store(second_scores + own, second, mask=inside)


@triton.jit
def _rows(N):
    """Positions of this program, and which of them exist."""
    rows = tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS)
    return rows, rows < N


@triton.jit
def _filled(value):
    return tl.full((BLOCK_POSITIONS,), value, dtype=tl.float32)


@triton.jit
def _logits(hidden, table, rows, inside, items, stop, D):
    """
    Logits [C, X] of a block of positions and items, 0 beyond *stop*.

    Each product of float32 is made of three in the tensor cores' shorter format, and is off by 2^-21 of itself at
    most, where float32 rounds it by 2^-24. A GPU without such cores multiplies in float32.
    """
    sums = tl.zeros((BLOCK_POSITIONS, BLOCK_ITEMS), dtype=tl.float32)
    for first in range(0, D, BLOCK_WIDTH):
        columns = first + tl.arange(0, BLOCK_WIDTH)
        left = tl.load(
            hidden + rows.to(tl.int64)[:, None] * D + columns[None, :],
            mask=inside[:, None] & (columns < D)[None, :],
            other=0.0,
        )
        right = tl.load(
            table + items.to(tl.int64)[None, :] * D + columns[:, None],
            mask=(items < stop)[None, :] & (columns < D)[:, None],
            other=0.0,
        )
        sums = tl.dot(left, right, sums, input_precision="tf32x3")
    return sums


@triton.jit
def _add_mass(logits, real, largest, mass):
    """Largest logit so far, and the mass relative to it."""
    new_largest = tl.maximum(largest, tl.max(tl.where(real, logits, LOWEST), axis=1))
    terms = tl.where(real, tl.exp(tl.where(real, logits - new_largest[:, None], 0.0)), 0.0)
    return new_largest, tl.exp(largest - new_largest) * mass + tl.sum(terms, axis=1)


@triton.jit
def _whole(masses, LARGEST: tl.constexpr, MASS: tl.constexpr, rows, inside, N, S):
    """Largest logit over all spans, and the mass relative to it in float64, spans added in their order."""
    largest = _filled(LOWEST)
    for span in range(0, S):
        own = masses + span * NUM_MASSES * N + rows
        largest = tl.maximum(largest, tl.load(own + LARGEST * N, mask=inside, other=0.0))
    mass = tl.zeros((BLOCK_POSITIONS,), dtype=tl.float64)
    for span in range(0, S):
        own = masses + span * NUM_MASSES * N + rows
        share = tl.exp(tl.load(own + LARGEST * N, mask=inside, other=0.0) - largest).to(tl.float64)
        mass += share * tl.load(own + MASS * N, mask=inside, other=1.0).to(tl.float64)
    return largest, mass


@triton.jit
def _confidence(masses, bounds, rows, inside, N, S):
    """Weight alpha = 1 - H(p_T) / ln X of each position; H = ln mass - moment / mass."""
    largest, mass = _whole(masses, TARGET_LARGEST, TARGET_MASS, rows, inside, N, S)
    moment = tl.zeros((BLOCK_POSITIONS,), dtype=tl.float64)
    for span in range(0, S):
        own = masses + span * NUM_MASSES * N + rows
        shift = tl.load(own + TARGET_LARGEST * N, mask=inside, other=0.0) - largest
        part = tl.load(own + TARGET_MOMENT * N, mask=inside, other=0.0)
        part += shift * tl.load(own + TARGET_MASS * N, mask=inside, other=1.0)
        moment += tl.exp(shift).to(tl.float64) * part.to(tl.float64)
    num_items = (tl.load(bounds + S) - tl.load(bounds)).to(tl.float64)
    # A single item is certain; its logarithm would divide by 0.
    alpha = 1.0 - (tl.log(mass) - moment / mass) / tl.log(tl.maximum(num_items, 2.0))
    alpha = tl.where(num_items > 1.0, alpha, 1.0)
    return tl.minimum(tl.maximum(alpha, 0.0), 1.0).to(tl.float32)


# What a launch of ``decide_paper`` runs, in order; the others are parts of these.
KERNELS = (_weigh_items, _normalise, _diverge, _agree, _search)

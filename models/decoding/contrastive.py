"""
Adaptive contrastive decoding (eq. 12-15): for a source item with history s[:t], replace it by a target item or delete.

Three decoders read the history: the target expert theta_T, the base theta_M and the expert theta_S of the source
item's own domain. Their logits l_T, l_M, l_S over the items are weighed against one another by a rule:

``paper``
    alpha = 1 - H(p_T) / ln|X|            how sure the target expert is, in [0, 1]
    beta  = 1 - JSD(p_M, p_S) / ln 2      how far base and source expert agree, in [0, 1]
    score(x) = (1 + alpha) l_T(x) + beta (l_M(x) - l_S(x))
    Global step, X = all items: an argmax outside the target domain deletes the item. Local step, X = the target
    domain: alpha and beta anew, the argmax replaces the item.
    The stored text of the paper lost its formulas. This is our reading of its prose, its figure 3 and the shape of
    the released code.
``without-sde``, ``without-gcs``, ``without-lcs``
    The same with one part missing (the paper's table 3): score = l_T, the target expert alone; no global step, so
    every item is replaced by the local argmax; no local step, so the global argmax itself replaces. See ``PaperParts``.
``reference``
    What the released code computes, padding column, off-by-one and all: element-wise weights, score
    (1 + alpha) l_T - beta l_S, local scores written over the global ones before one argmax over everything, and
    argmax + 1 as the token. For parity and for measuring what the off-by-one leaks; not for use.
``reference-corrected``
    The same without the + 1.

Everything here is a pure function of hidden states and item tables. Logits exist for one block of positions at a
time, never for all. Among equal scores the lowest token wins.

Shapes: N = positions, C = positions of one block, D = width, V = num_items + 1, X = candidate items (a column range).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.rules import ContrastiveRule
from models.kernels import paper_rule
from models.kernels.paper_rule import Decided
from models.vocabulary import PADDING, TokenRange

DELETED = PADDING
# Logits of one decoder held at once, in elements: 2 M floats are 8 MB, about a core's share of the last-level cache; a
# GPU wants enough to be busy, 128 MB.
BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS = 1 << 21, 1 << 25
# A row of a matrix product is computed alike whatever the other rows hold, and however many there are, as long as
# there are at least this many (below, the libraries take other kernels that round differently).
MIN_BLOCK_ROWS = 16
# More rows than this gain no speed.
MAX_BLOCK_ROWS, GPU_MAX_BLOCK_ROWS = 256, 2048
# A GPU's softmax reads 16 bytes at a time from wherever a row begins, and sums in that order.
GPU_ALIGNMENT = 4
# The released code's guard of logarithm and quotient.
REFERENCE_EPSILON = 1e-10


class View(NamedTuple):
    """One decoder's part: its hidden states [N, D] at the positions to decide, and its item table [V, D]."""

    hidden_ND: Tensor
    table_VD: Tensor


@dataclass(frozen=True)
class Decisions:
    """
    What happens to each of N source items; every field has shape [N].

    Args:
        token_ids_N: int64, the replacing token of the target domain, or 0: deleted.
        alpha_N: weight of the target expert in the deciding step (rule ``paper``: the local step where there was
            one, else the global; ``without-sde``: 0; reference rules: at the winning item).
        beta_N: weight of the contrast, likewise.
        score_N: the winning score of the deciding step.
        margin_N: its lead over the runner-up's in the same step, >= 0; infinite when there is one candidate only. Of
            a replaced item it says how clear the choice among target items was, not how clear it was to replace it.
    """

    token_ids_N: Tensor
    alpha_N: Tensor
    beta_N: Tensor
    score_N: Tensor
    margin_N: Tensor


@dataclass(frozen=True)
class PaperParts:
    """
    Which parts of rule ``paper`` are in place; each of its ablations lacks one.

    Args:
        contrast: alpha and beta weigh the three decoders; without, both are 0 and the score is l_T.
        gate: the global step deletes items whose argmax is foreign; without, every item is replaced.
        local: the local step chooses the replacement; without, it is the global argmax.
    """

    contrast: bool = True
    gate: bool = True
    local: bool = True

    def __post_init__(self) -> None:
        assert self.gate or self.local, "the global argmax of an item that was not gated may be foreign"


def prepare(rule: ContrastiveRule, table_VD: Tensor) -> None:
    """Compile what *rule* can use on such item tables, if it is not yet: seconds that the first decision would wait."""
    view = View(table_VD[:1], table_VD[:2])
    decide(rule, target_expert=view, base=view, source_experts=[view], target_range=TokenRange(1, 1))


def decide(
    rule: ContrastiveRule, *, target_expert: View, base: View, source_experts: Sequence[View], target_range: TokenRange
) -> Decisions:
    """
    Decide N source items for one target domain.

    Rule ``paper`` runs in compiled code where that is available (``kernels/``, for CPU and GPU), everything else in
    ``decide_in_blocks``. The two agree up to float32 rounding: a token may differ where its margin, or
    the lead of the global step that replaced or deleted the item, is below that.

    Args:
        rule: see the top of this file.
        target_expert: theta_T, hidden states after s[:t], those of one source domain after those of another.
        base: theta_M, likewise.
        source_experts: theta_S, one view per source domain, each with the hidden states of its own items.
        target_range: the target domain's tokens.

    Returns:
        One decision per position, in the order given. A position's decision does not depend on the others.
    """
    stops = list(accumulate(len(view.hidden_ND) for view in source_experts))
    assert len(target_expert.hidden_ND) == len(base.hidden_ND) == (stops[-1] if stops else 0)
    views = (target_expert, base, *source_experts)
    compiled = (
        _compiled([tensor for view in views for tensor in view]) if rule == "paper" and stops and stops[-1] else None
    )
    if compiled:
        decided = compiled(
            [target_expert.hidden_ND, base.hidden_ND, torch.cat([view.hidden_ND for view in source_experts])],
            [target_expert.table_VD, base.table_VD],
            [paper_rule.SourceGroup(view.table_VD, len(view.hidden_ND)) for view in source_experts],
            target_range,
        )
        return Decisions(*decided)
    groups = [
        decide_in_blocks(
            rule,
            target_expert=View(target_expert.hidden_ND[start:stop], target_expert.table_VD),
            base=View(base.hidden_ND[start:stop], base.table_VD),
            source_expert=source_expert,
            target_range=target_range,
        )
        for source_expert, start, stop in zip(source_experts, [0, *stops], stops, strict=False)
    ]
    if not groups:
        return _no_decisions(base)
    return Decisions(*(torch.cat(parts) for parts in zip(*(_fields(group) for group in groups), strict=True)))


def decide_in_blocks(
    rule: ContrastiveRule,
    *,
    target_expert: View,
    base: View,
    source_expert: View,
    target_range: TokenRange,
    block_elements: int | None = None,
) -> Decisions:
    """
    ``decide`` for items of one source domain, in plain torch on any device, block by block: the definition.

    Args:
        rule: see the top of this file.
        target_expert: theta_T, hidden states after s[:t].
        base: theta_M, likewise.
        source_expert: theta_S, the expert of the items' own domain, likewise.
        target_range: the target domain's tokens.
        block_elements: most logits of one decoder held at once (at least 16 positions are taken); by default
            BLOCK_ELEMENTS, on a GPU GPU_BLOCK_ELEMENTS.

    Returns:
        One decision per position, on a CPU the same to the bit whatever *block_elements*.
    """
    N = len(base.hidden_ND)
    rows = _block_rows(base.table_VD, block_elements)
    blocks = [
        _BLOCK_RULES[rule](
            _block_logits(target_expert, start, rows),
            _block_logits(base, start, rows),
            _block_logits(source_expert, start, rows),
            target_range,
        )
        for start in range(0, N, rows)
    ]
    if not blocks:
        return _no_decisions(base)
    return Decisions(*(torch.cat(parts)[:N] for parts in zip(*blocks, strict=True)))


def logits_in_blocks(view: View) -> Iterator[Tensor]:
    """
    Logits [C, V] of all positions of *view*, block after block, as many at once as ``decide_in_blocks`` holds.

    A position's logits are the same to the bit whatever the others and however many there are.
    """
    N = len(view.hidden_ND)
    rows = _block_rows(view.table_VD)
    for start in range(0, N, rows):
        yield _block_logits(view, start, rows)[: N - start]


def log_softmax(logits_CX: Tensor) -> Tensor:
    """Logarithm of every row's softmax, the same to the bit wherever among the others the row stands."""
    return torch.log_softmax(_aligned(logits_CX), dim=1)[:, : logits_CX.shape[1]]


def confidence(logits_CX: Tensor) -> Tensor:
    """
    How sure a decoder is, alpha of rule ``paper``: 1 - H(p) / ln X with p = softmax(logits), [C] in [0, 1].

    1 for a certain distribution (and for a single candidate), 0 for a uniform one.
    """
    X = logits_CX.shape[1]
    if X == 1:
        return torch.ones_like(logits_CX[:, 0])
    # Relative to the largest logit: H is a difference, and logits of 1000 would leave only two digits of it.
    below_CX = logits_CX - logits_CX.amax(dim=1, keepdim=True)
    normaliser_C = torch.logsumexp(below_CX, dim=1)
    probabilities_CX = torch.exp(below_CX - normaliser_C[:, None])
    # H = -sum p ln p = ln Z - sum p l
    entropy_C = normaliser_C - (probabilities_CX * below_CX).sum(dim=1)
    return (1 - entropy_C / math.log(X)).clamp(0, 1)


def agreement(first_CX: Tensor, second_CX: Tensor) -> Tensor:
    """
    How far two decoders agree, beta of rule ``paper``: 1 - JSD(p, q) / ln 2, [C] in [0, 1].

    p and q are the softmax of the two logits. 1 for equal distributions, 0 for disjoint ones.
    """
    log_p_CX, log_q_CX = log_softmax(first_CX), log_softmax(second_CX)
    p_CX, q_CX = log_p_CX.exp(), log_q_CX.exp()
    # JSD = (sum p ln p + sum q ln q) / 2 - sum m ln m with m = (p + q) / 2. A probability that underflows to 0 meets
    # a finite logarithm of its own, and xlogy(0, 0) = 0, so every term is finite.
    mean_CX = (p_CX + q_CX).mul_(0.5)
    own_C = (p_CX.mul_(log_p_CX) + q_CX.mul_(log_q_CX)).sum(dim=1) / 2
    divergence_C = own_C - torch.xlogy(mean_CX, mean_CX).sum(dim=1)
    return (1 - divergence_C / math.log(2)).clamp(0, 1)


def paper_scores(target_CX: Tensor, base_CX: Tensor, source_CX: Tensor, alpha_C: Tensor, beta_C: Tensor) -> Tensor:
    """Score (1 + alpha) l_T + beta (l_M - l_S) of every candidate, [C, X] (eq. 14 in our reading)."""
    return (1 + alpha_C[:, None]) * target_CX + beta_C[:, None] * (base_CX - source_CX)


def reference_confidence(logits_CX: Tensor) -> Tensor:
    """
    The released code's alpha, per candidate: (1 - h_i) / (1 - max_j h_j), h_i = -p_i ln(p_i + 1e-10), [C, X].

    Differs from the paper's text, whose alpha is one number per position.
    """
    probabilities_CX = torch.softmax(_aligned(logits_CX), dim=1)[:, : logits_CX.shape[1]]
    terms_CX = -probabilities_CX * torch.log(probabilities_CX + REFERENCE_EPSILON)
    return (1 - terms_CX) / (1 - terms_CX.amax(dim=1, keepdim=True))


def reference_divergence(base_CX: Tensor, source_CX: Tensor) -> Tensor:
    """
    Terms of the released code's divergence: (m ln(m / p_M) + m ln(m / p_S)) / 2, m the mean, [C, X].

    Its arguments are swapped against the Jensen-Shannon divergence. In logarithms throughout, so that a probability
    that underflows gives 0 where the released code gives NaN.
    """
    log_p_CX, log_q_CX = log_softmax(base_CX), log_softmax(source_CX)
    log_mean_CX = torch.logaddexp(log_p_CX, log_q_CX) - math.log(2)
    return log_mean_CX.exp() * (log_mean_CX - (log_p_CX + log_q_CX) / 2)


def reference_disagreement(base_CX: Tensor, source_CX: Tensor) -> Tensor:
    """The released code's beta, per candidate: js_i / (max_j js_j + 1e-10), [C, X]."""
    terms_CX = reference_divergence(base_CX, source_CX)
    return terms_CX / (terms_CX.amax(dim=1, keepdim=True) + REFERENCE_EPSILON)


def reference_scores(target_CX: Tensor, source_CX: Tensor, alpha_CX: Tensor, beta_CX: Tensor) -> Tensor:
    """Score (1 + alpha) l_T - beta l_S of the released code, [C, X]; the base's logits enter through beta only."""
    return (1 + alpha_CX) * target_CX - beta_CX * source_CX


def _aligned(logits_CX: Tensor) -> Tensor:
    """On a GPU, with so many columns of probability 0 more that every row begins at a multiple of 16 bytes."""
    missing = -logits_CX.shape[1] % GPU_ALIGNMENT if logits_CX.is_cuda else 0
    return F.pad(logits_CX, (0, missing), value=-math.inf) if missing else logits_CX


def _compiled(tensors: Sequence[Tensor]) -> Callable[..., Decided] | None:
    """What decides by rule ``paper`` where these tensors are, if anything but the definition can."""
    if paper_rule.fits(*tensors):
        return paper_rule.decide_paper if paper_rule.is_available() else None
    # Triton comes with torch's CUDA builds, and is imported where it is needed only.
    if all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in tensors) and find_spec("triton"):
        from models.kernels import paper_rule_gpu

        return paper_rule_gpu.decide_paper if paper_rule_gpu.runs_on(tensors[0].device) else None
    return None


_BlockDecisions = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _fields(decisions: Decisions) -> _BlockDecisions:
    return decisions.token_ids_N, decisions.alpha_N, decisions.beta_N, decisions.score_N, decisions.margin_N


def _no_decisions(view: View) -> Decisions:
    empty = view.hidden_ND.new_zeros(0)
    return Decisions(empty.long(), empty, empty, empty, empty)


def _block_rows(table_VD: Tensor, block_elements: int | None = None) -> int:
    most_elements, most_rows = BLOCK_ELEMENTS, MAX_BLOCK_ROWS
    if table_VD.is_cuda:
        most_elements, most_rows = GPU_BLOCK_ELEMENTS, GPU_MAX_BLOCK_ROWS
    elements = most_elements if block_elements is None else block_elements
    return min(most_rows, max(MIN_BLOCK_ROWS, elements // len(table_VD)))


def _block_logits(view: View, start: int, rows: int) -> Tensor:
    """
    Logits [C, V] of positions start.. in a product of at least MIN_BLOCK_ROWS rows; the padded rows are zero.

    On a GPU every product has all *rows*: its library chooses the order of a sum by the shape.
    """
    hidden_CD = view.hidden_ND[start : start + rows]
    least = rows if hidden_CD.is_cuda else MIN_BLOCK_ROWS
    if len(hidden_CD) < least:
        padded_CD = hidden_CD.new_zeros(least, hidden_CD.shape[1])
        padded_CD[: len(hidden_CD)] = hidden_CD
        hidden_CD = padded_CD
    return hidden_CD @ view.table_VD.T


def _decide_paper(
    target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, target_range: TokenRange, *, parts: PaperParts
) -> _BlockDecisions:
    step = partial(_paper_step, contrast=parts.contrast)
    if not parts.gate:
        return step(target_CV, base_CV, source_CV, target_range.columns)
    # 1. Global step over all items; column 0 is padding and no candidate.
    items = slice(1, target_CV.shape[1])
    token_C, alpha_C, beta_C, score_C, margin_C = step(target_CV, base_CV, source_CV, items)
    convertible_C = (token_C >= target_range.first) & (token_C <= target_range.last)
    token_C = torch.where(convertible_C, token_C, DELETED)
    # 2. Local step over the target domain, where the global argmax fell into it.
    if parts.local:
        local = step(target_CV[convertible_C], base_CV[convertible_C], source_CV[convertible_C], target_range.columns)
        for decided_C, local_C in zip((token_C, alpha_C, beta_C, score_C, margin_C), local, strict=True):
            decided_C[convertible_C] = local_C
    return token_C, alpha_C, beta_C, score_C, margin_C


def _paper_step(
    target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, columns: slice, *, contrast: bool
) -> _BlockDecisions:
    target_CX, base_CX, source_CX = target_CV[:, columns], base_CV[:, columns], source_CV[:, columns]
    if contrast:
        alpha_C, beta_C = confidence(target_CX), agreement(base_CX, source_CX)
    else:
        alpha_C, beta_C = target_CX.new_zeros(2, len(target_CX))
    scores_CX = paper_scores(target_CX, base_CX, source_CX, alpha_C, beta_C)
    column_C, score_C, margin_C = _best(scores_CX)
    return column_C + columns.start, alpha_C, beta_C, score_C, margin_C


def _decide_reference(
    target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, target_range: TokenRange, *, shift: int
) -> _BlockDecisions:
    # 1. Global scores over every column, padding included.
    alpha_CV, beta_CV = reference_confidence(target_CV), reference_disagreement(base_CV, source_CV)
    scores_CV = reference_scores(target_CV, source_CV, alpha_CV, beta_CV)
    best_C = scores_CV.argmax(dim=1)
    convertible_C1 = ((best_C >= target_range.first) & (best_C <= target_range.last))[:, None]
    # 2. Local scores over the target domain's columns, written over the global ones where the argmax fell into it.
    columns = target_range.columns
    target_CX = target_CV[:, columns]
    alpha_CX = reference_confidence(target_CX)
    beta_CX = reference_disagreement(base_CV[:, columns], source_CV[:, columns])
    local_CX = reference_scores(target_CX, source_CV[:, columns], alpha_CX, beta_CX)
    for whole_CV, part_CX in ((scores_CV, local_CX), (alpha_CV, alpha_CX), (beta_CV, beta_CX)):
        whole_CV[:, columns] = torch.where(convertible_C1, part_CX, whole_CV[:, columns])
    # 3. One argmax over the mixture.
    winner_C, score_C, margin_C = _best(scores_CV)
    written_C = winner_C + shift
    in_target_C = (written_C >= target_range.first) & (written_C <= target_range.last)
    alpha_C, beta_C = (weights_CV.gather(1, winner_C[:, None])[:, 0] for weights_CV in (alpha_CV, beta_CV))
    return torch.where(in_target_C, written_C, DELETED), alpha_C, beta_C, score_C, margin_C


def _best(scores_CX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column, score and lead of each row's best candidate; the lowest column among equals."""
    best_C, column_C = scores_CX.max(dim=1)  # the first of equals, which topk does not promise
    if scores_CX.shape[1] == 1:
        return column_C, best_C, torch.full_like(best_C, torch.inf)
    return column_C, best_C, best_C - scores_CX.topk(2, dim=1).values[:, 1]


# What decides one block under each rule: logits [C, V] of target expert, base and source expert, and the target range.
_BLOCK_RULES: Mapping[ContrastiveRule, Callable[[Tensor, Tensor, Tensor, TokenRange], _BlockDecisions]] = (
    MappingProxyType(
        {
            "paper": partial(_decide_paper, parts=PaperParts()),
            "without-sde": partial(_decide_paper, parts=PaperParts(contrast=False)),
            "without-gcs": partial(_decide_paper, parts=PaperParts(gate=False)),
            "without-lcs": partial(_decide_paper, parts=PaperParts(local=False)),
            "reference": partial(_decide_reference, shift=1),
            "reference-corrected": partial(_decide_reference, shift=0),
        }
    )
)

"""
Rule ``paper``: adaptive contrastive decoding (eq. 12-15), and its ablations.

With the logits l_T, l_M, l_S of target expert, base and source expert over the candidate items X:

    alpha = 1 - H(p_T) / ln|X|            how sure the target expert is, in [0, 1]
    beta  = 1 - JSD(p_M, p_S) / ln 2      how far base and source expert agree, in [0, 1]
    score(x) = (1 + alpha) l_T(x) + beta (l_M(x) - l_S(x))

Global step, X = all items: an argmax outside the target domain deletes the item. Local step, X = the target domain:
alpha and beta anew, the argmax replaces the item.

The stored text of the paper lost its formulas. This is our reading of its prose, its figure 3 and the shape of the
released code.

``without-sde``, ``without-gcs`` and ``without-lcs`` lack one part each (the paper's table 3): score = l_T, the target
expert alone; no global step, so every item is replaced by the local argmax; no local step, so the global argmax itself
replaces. See ``PaperParts``.

Shapes: C = positions of one block, V = num_items + 1, X = candidate items (a column range).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from models.decoding.blocks import best_candidates, log_softmax
from models.decoding.contrastive import ContrastiveRule
from models.kernels import paper_rule
from models.kernels.paper_rule import Decisions
from models.vocabulary import PADDING, TokenRange


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


def _find_compiled(tensors: Sequence[Tensor]) -> Callable[..., Decisions] | None:
    """What decides by rule ``paper`` where these tensors are, if anything but the definition can."""
    if paper_rule.fits(*tensors):
        return paper_rule.decide_paper if paper_rule.is_available() else None
    # Triton comes with torch's CUDA builds, and is imported where it is needed only.
    if all(tensor.is_cuda and tensor.dtype == torch.float32 for tensor in tensors) and find_spec("triton"):
        from models.kernels import paper_rule_gpu

        return paper_rule_gpu.decide_paper if paper_rule_gpu.runs_on(tensors[0].device) else None
    return None


def _decide_paper(
    target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, target_range: TokenRange, *, parts: PaperParts
) -> Decisions:
    step = partial(_paper_step, contrast=parts.contrast)
    if not parts.gate:
        return step(target_CV, base_CV, source_CV, target_range.columns)
    # 1. Global step over all items; column 0 is padding and no candidate.
    items = slice(1, target_CV.shape[1])
    token_C, alpha_C, beta_C, score_C, margin_C = step(target_CV, base_CV, source_CV, items)
    convertible_C = target_range.mask(token_C)
    token_C = torch.where(convertible_C, token_C, PADDING)
    # 2. Local step over the target domain, where the global argmax fell into it.
    if parts.local:
        local = step(target_CV[convertible_C], base_CV[convertible_C], source_CV[convertible_C], target_range.columns)
        for decided_C, local_C in zip((token_C, alpha_C, beta_C, score_C, margin_C), local, strict=True):
            decided_C[convertible_C] = local_C
    return Decisions(token_C, alpha_C, beta_C, score_C, margin_C)


def _paper_step(target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, columns: slice, *, contrast: bool) -> Decisions:
    target_CX, base_CX, source_CX = target_CV[:, columns], base_CV[:, columns], source_CV[:, columns]
    if contrast:
        alpha_C, beta_C = confidence(target_CX), agreement(base_CX, source_CX)
    else:
        alpha_C, beta_C = target_CX.new_zeros(2, len(target_CX))
    scores_CX = paper_scores(target_CX, base_CX, source_CX, alpha_C, beta_C)
    column_C, score_C, margin_C = best_candidates(scores_CX)
    return Decisions(column_C + columns.start, alpha_C, beta_C, score_C, margin_C)


PAPER = ContrastiveRule(partial(_decide_paper, parts=PaperParts()), find_compiled=_find_compiled)
WITHOUT_SDE = ContrastiveRule(partial(_decide_paper, parts=PaperParts(contrast=False)))
WITHOUT_GCS = ContrastiveRule(partial(_decide_paper, parts=PaperParts(gate=False)))
WITHOUT_LCS = ContrastiveRule(partial(_decide_paper, parts=PaperParts(local=False)))

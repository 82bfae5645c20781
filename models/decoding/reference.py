"""
Rule ``reference``: what the authors' released code computes, and the same without its off-by-one.

Its padding column is a candidate, its weights are one per candidate, its score is (1 + alpha) l_T - beta l_S, its
local scores are written over the global ones before one argmax over everything, and the token that it writes is
argmax + 1. ``reference-corrected`` is the same without the + 1. For parity and for measuring what the off-by-one
leaks; not for use.

Shapes: C = positions of one block, V = num_items + 1, X = candidate items (a column range).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from models.decoding.blocks import aligned, best_candidates, log_softmax
from models.decoding.contrastive import ContrastiveRule
from models.kernels.paper_rule import Decisions
from models.vocabulary import PADDING, TokenRange

# The released code's guard of logarithm and quotient.
REFERENCE_EPSILON = 1e-10


def reference_confidence(logits_CX: Tensor) -> Tensor:
    """
    The released code's alpha, per candidate: (1 - h_i) / (1 - max_j h_j), h_i = -p_i ln(p_i + 1e-10), [C, X].

    Differs from the paper's text, whose alpha is one number per position.
    """
    probabilities_CX = torch.softmax(aligned(logits_CX), dim=1)[:, : logits_CX.shape[1]]
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


def _decide_reference(
    target_CV: Tensor, base_CV: Tensor, source_CV: Tensor, target_range: TokenRange, *, shift: int
) -> Decisions:
    # 1. Global scores over every column, padding included.
    alpha_CV, beta_CV = reference_confidence(target_CV), reference_disagreement(base_CV, source_CV)
    scores_CV = reference_scores(target_CV, source_CV, alpha_CV, beta_CV)
    best_C = scores_CV.argmax(dim=1)
    convertible_C1 = target_range.mask(best_C)[:, None]
    # 2. Local scores over the target domain's columns, written over the global ones where the argmax fell into it.
    columns = target_range.columns
    target_CX = target_CV[:, columns]
    alpha_CX = reference_confidence(target_CX)
    beta_CX = reference_disagreement(base_CV[:, columns], source_CV[:, columns])
    local_CX = reference_scores(target_CX, source_CV[:, columns], alpha_CX, beta_CX)
    for whole_CV, part_CX in ((scores_CV, local_CX), (alpha_CV, alpha_CX), (beta_CV, beta_CX)):
        whole_CV[:, columns] = torch.where(convertible_C1, part_CX, whole_CV[:, columns])
    # 3. One argmax over the mixture.
    winner_C, score_C, margin_C = best_candidates(scores_CV)
    written_C = winner_C + shift
    in_target_C = target_range.mask(written_C)
    alpha_C, beta_C = (weights_CV.gather(1, winner_C[:, None])[:, 0] for weights_CV in (alpha_CV, beta_CV))
    return Decisions(torch.where(in_target_C, written_C, PADDING), alpha_C, beta_C, score_C, margin_C)


REFERENCE = ContrastiveRule(partial(_decide_reference, shift=1))
REFERENCE_CORRECTED = ContrastiveRule(partial(_decide_reference, shift=0))

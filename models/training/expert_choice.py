"""
Whether a domain's expert is the adapted decoder alone, or its log-probabilities and the joint expert's, half and half.

Chosen on the domain's validation rows: the two together have to be better by more than a standard error. Where nobody
can tell, a domain keeps the expert that the method describes. Halves are not tuned: what is best on validation items
was not better on others, and neither was either of the two alone (docs/experiments/one-decoder-inside-domains.md). Each
decoder has the shares of its readings that are best for it (``own_shares``).

Shapes: N = validation rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.network.decoder import Decoder
from models.network.expert_parts import ExpertPart, read_parts, table_of
from models.training.objective import HeldOut
from models.training.own_shares import ShareTrial, ndcg_by_row, try_own_shares
from models.tuning import JointShare
from models.vocabulary import TokenRange

JOINT_WEIGHT = 0.5


@dataclass(frozen=True)
class PartsTrial:
    """
    An adapted decoder and the joint one on one domain's validation rows: mean NDCG@10 among unseen items.

    Args:
        adapted: of the adapted decoder.
        joint: of the joint one.
        both: of their log-probabilities added.
        standard_error: of the difference between both and the adapted one, over rows.
    """

    adapted: float
    joint: float
    both: float
    standard_error: float

    @property
    def gains(self) -> bool:
        """
        Whether both are better than the adapted one by more than a standard error.

        >>> [PartsTrial(0.04, 0.05, both, 0.002).gains for both in (0.041, 0.043)]
        [False, True]
        """
        return self.both - self.adapted > self.standard_error


@dataclass(frozen=True)
class ExpertChoice:
    """
    What one domain's expert is.

    Args:
        readings: shares of the adapted decoder's readings.
        joint: the joint decoder's part; None where the adapted one is all.
        trial: how the two compare; None where there was no joint one.
    """

    readings: ShareTrial
    joint: JointShare | None = None
    trial: PartsTrial | None = None


def choose_expert(adapted: Decoder, joint: Decoder | None, held_out: HeldOut, domain: TokenRange) -> ExpertChoice:
    """Rank the *held_out* items of *domain* by the *adapted* decoder, and with the *joint* one where there is one."""
    readings = try_own_shares(adapted, held_out, domain)
    if joint is None:
        return ExpertChoice(readings)
    joint_readings = try_own_shares(joint, held_out, domain)
    own = ExpertPart(adapted, readings.shares, 1 - JOINT_WEIGHT)
    others = ExpertPart(joint, joint_readings.shares, JOINT_WEIGHT)

    def ranked(*parts: ExpertPart) -> npt.NDArray[np.float64]:
        return ndcg_by_row(read_parts(parts, held_out.histories, domain), table_of(parts, domain), held_out, domain)

    adapted_N, joint_N, both_N = ranked(own), ranked(others), ranked(own, others)
    error = float(np.std(both_N - adapted_N, ddof=1)) / math.sqrt(len(both_N))
    trial = PartsTrial(float(adapted_N.mean()), float(joint_N.mean()), float(both_N.mean()), error)
    share = JointShare(JOINT_WEIGHT, joint_readings.shares) if trial.gains else None
    return ExpertChoice(readings, share, trial)

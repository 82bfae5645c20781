"""
Which expert a domain takes, chosen on its validation rows: the adapted one, or the joint one where there is one.

The joint one has to be better by more than a standard error: where nobody can tell, a domain keeps the expert that the
method describes. Either comes with the shares of its readings that are best for it (``own_shares``).

Shapes: N = validation rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.network.decoder import Decoder
from models.training.objective import HeldOut
from models.training.own_shares import ShareTrial, ndcg_by_row, try_own_shares
from models.vocabulary import TokenRange


@dataclass(frozen=True)
class WayTrial:
    """
    An adapted and the joint expert on one domain's validation rows.

    Args:
        adapted: mean NDCG@10 among unseen items, under the best shares of its readings.
        joint: likewise.
        standard_error: of their difference, over rows.
    """

    adapted: float
    joint: float
    standard_error: float

    @property
    def prefers_joint(self) -> bool:
        """
        Whether the joint expert is better by more than a standard error.

        >>> [WayTrial(0.04, joint, 0.002).prefers_joint for joint in (0.041, 0.043)]
        [False, True]
        """
        return self.joint - self.adapted > self.standard_error


@dataclass(frozen=True)
class ExpertChoice:
    """
    What one domain takes.

    Args:
        readings: shares of the chosen expert's readings.
        ways: how the two experts compare; None where there was one.
    """

    readings: ShareTrial
    ways: WayTrial | None = None

    @property
    def takes_joint(self) -> bool:
        """Whether it is the joint expert."""
        return self.ways is not None and self.ways.prefers_joint


def choose_expert(adapted: Decoder, joint: Decoder | None, held_out: HeldOut, domain: TokenRange) -> ExpertChoice:
    """Rank the *held_out* items of *domain* by the *adapted* expert, and by the *joint* one if it is to be compared."""
    readings = try_own_shares(adapted, held_out, domain)
    if joint is None:
        return ExpertChoice(readings)
    joint_readings = try_own_shares(joint, held_out, domain)
    adapted_N, joint_N = (
        ndcg_by_row(expert, held_out, domain, trial.shares)
        for expert, trial in ((adapted, readings), (joint, joint_readings))
    )
    error = float(np.std(joint_N - adapted_N, ddof=1)) / math.sqrt(len(joint_N))
    ways = WayTrial(float(adapted_N.mean()), float(joint_N.mean()), error)
    return ExpertChoice(joint_readings if ways.prefers_joint else readings, ways)

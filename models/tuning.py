"""
What validation chose for every target domain; a bundle carries it, and every use of the bundle keeps to it.

Torch-free, for commands and settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class OwnShares:
    """
    What share of a target expert is its reading of the target's own items (``network.two_readings``), each in [0, 1].

    Args:
        after_target: for histories whose last item is the target's.
        after_source: for histories whose last item is another domain's.

    Raises:
        ValueError: a share is no number in [0, 1].
    """

    after_target: float = 0.0
    after_source: float = 0.0

    def __post_init__(self) -> None:
        for share in (self.after_target, self.after_source):
            if not (_is_number(share) and 0 <= share <= 1):
                raise ValueError(f"an own share of {share!r} is not in [0, 1]")


# The mixed history alone: what an expert read before it had two readings.
MIXED_ALONE = OwnShares()


@dataclass(frozen=True)
class JointShare:
    """
    What the joint expert adds to the adapted one of a target (``network.expert_parts``).

    Args:
        weight: w of its log-probabilities, 1 - w of the adapted expert's, in (0, 1).
        own_shares: of its two readings.

    Raises:
        ValueError: the weight is no number in (0, 1).
    """

    weight: float
    own_shares: OwnShares

    def __post_init__(self) -> None:
        if not (_is_number(self.weight) and 0 < self.weight < 1):
            raise ValueError(f"a joint expert's weight of {self.weight!r} is not in (0, 1)")


@dataclass(frozen=True)
class Guard:
    """
    How much of regeneration helped a recommender of one target on validation; the rest is left undone.

    Args:
        training_hints: most items that a run of source items leaves behind in a training row (``decoding.anticipate``);
            0 replaces nothing, and the composite is the original.
        serving_hints: likewise in a live history; 0 passes its target items through.
        finding: the reason in a sentence with its numbers.
        expert_weight: w in [0, 1] of the target expert's log-probabilities beside the recommender's, (1 - w) and w, for
            whoever ranks by both: of a recommender that learned and is served as said above. 0: it adds nothing.

    Raises:
        ValueError: a number of hints is no whole number from 0 on, finding no text, or the weight not in [0, 1].
    """

    training_hints: int
    serving_hints: int
    finding: str
    expert_weight: float = 0.0

    def __post_init__(self) -> None:
        for hints in (self.training_hints, self.serving_hints):
            if not (_is_number(hints) and isinstance(hints, int) and hints >= 0):
                raise ValueError(f"{hints!r} hints are no whole number from 0 on")
        if not isinstance(self.finding, str):
            raise ValueError("a finding that is no text")
        if not (_is_number(self.expert_weight) and 0 <= self.expert_weight <= 1):
            raise ValueError(f"an expert's weight of {self.expert_weight!r} is not in [0, 1]")


@dataclass(frozen=True)
class TargetTuning:
    """
    Everything that was chosen for one target domain.

    Args:
        own_shares: of its adapted expert's two readings.
        guard: None where nothing was tried: everything is replaced and served.
        joint: None where the adapted expert is the whole expert.
    """

    own_shares: OwnShares = field(default_factory=OwnShares)
    guard: Guard | None = None
    joint: JointShare | None = None

    @property
    def content(self) -> dict[str, Any]:
        """As JSON has it; without a word of a joint expert where there is none, as before there were any."""
        content = dataclasses.asdict(self)
        if self.joint is None:
            del content["joint"]
        return content


def tuning_of(content: Any) -> TargetTuning:
    """
    What ``TargetTuning.content`` said, read again.

    Raises:
        ValueError: it is none.

    >>> tuning_of({"own_shares": {"after_target": 0.25, "after_source": 1}, "guard": None}).own_shares.after_target
    0.25
    """
    try:
        if not isinstance(content, Mapping) or set(content) - {"joint"} != {"own_shares", "guard"}:
            raise ValueError(f"{content!r} has not just own_shares, guard and perhaps joint")
        guard, joint = content["guard"], content.get("joint")
        return TargetTuning(
            OwnShares(**content["own_shares"]),
            None if guard is None else Guard(**guard),
            None if joint is None else JointShare(**{**joint, "own_shares": OwnShares(**joint["own_shares"])}),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from error

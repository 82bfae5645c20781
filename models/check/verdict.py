"""
One sentence from many numbers: helps, harms or undecided, for the two uses of a bundle.

A bundle can be used to regenerate, or to advise: the expert's scores added to the recommender's. Each family has lines
of its own. Of a family the line is judged that was best on validation items, after its standard error is taken off;
its interval is of test items, so it is one comparison that nothing was picked by. Regeneration is compared with the
better (on validation) of the original and the duplicated rows, advice with the same recommender alone.

An interval over users does not know that another seed would have trained other weights. Where a line and its baseline
were trained on different rows, ``TRAINING_NOISE`` is added to its variance.

Shapes: S = seeds, N = rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.evaluation.bootstrap import Interval, bootstrap_gains

Outcome = Literal["helps", "harms", "undecided"]
Values = npt.NDArray[np.float64]

ORIGINAL, DUPLICATED = "original", "duplicated"
BASELINES = (ORIGINAL, DUPLICATED)
REGENERATION = ("regenerated", "served")
ADVICE = ("with expert", "served with expert")
# Standard deviation of the relative difference of two trainings that nothing but chance sets apart: ``duplicated`` over
# ``original`` scattered with 5 to 8 % between targets (docs/results.md), the users' part of it included.
TRAINING_NOISE = 0.05
# Two-sided 95 %, and what is to be added to it so that 80 of 100 such checks would show the gain.
SURE, LIKELY = 1.96, 0.84
SHOWN_GAIN = 0.05


@dataclass(frozen=True)
class LineValues:
    """
    One line's metric of every row, per seed.

    Args:
        validation_SN, test_SN: NDCG@10 of validation and of test rows.
        rows: which training rows the recommender learned from.
    """

    validation_SN: Values
    test_SN: Values
    rows: str


@dataclass(frozen=True)
class Use:
    """
    One line against its baseline.

    Args:
        line, baseline: their names.
        validation_gain, validation_error: mean paired difference on validation, and its standard error over users.
        gain: of test items, relative to the baseline's mean; None where too few users hit for a ratio.
        user_error: standard error of ``gain`` over users alone.
    """

    line: str
    baseline: str
    validation_gain: float
    validation_error: float
    gain: Interval | None
    user_error: float

    @property
    def sure_validation_gain(self) -> float:
        """What is left of the gain on validation when one standard error is taken off."""
        return self.validation_gain - self.validation_error

    @property
    def outcome(self) -> Outcome:
        """What the interval of test items shows."""
        if self.gain is None or not self.gain.excludes_zero:
            return "undecided"
        return "helps" if self.gain.low > 0 else "harms"


@dataclass(frozen=True)
class FamilyVerdict:
    """
    The verdict on one family of uses.

    Args:
        family: regeneration or advice.
        judged: the line that validation picked.
        uses: all lines of the family.
        users: test users, N.
        users_for_shown_gain: so many would show a gain of ``SHOWN_GAIN`` in 80 of 100 checks, were training noise
            averaged out by seeds; None where that cannot be told.
    """

    family: Literal["regeneration", "advice"]
    judged: Use
    uses: tuple[Use, ...]
    users: int
    users_for_shown_gain: int | None

    @property
    def outcome(self) -> Outcome:
        """Of the line that is judged."""
        return self.judged.outcome


@dataclass(frozen=True)
class Verdict:
    """What a check found of *target*; there is no advice where a recommender gave lists instead of scores."""

    target: str
    recommender: str
    seeds: int
    regeneration: FamilyVerdict
    advice: FamilyVerdict | None

    @property
    def outcome(self) -> Outcome:
        """Helps if either use does; else what regeneration does."""
        outcomes = [family.outcome for family in (self.regeneration, self.advice) if family is not None]
        return "helps" if "helps" in outcomes else outcomes[0]

    @property
    def sentence(self) -> str:
        """The finding in one sentence, the use that helps first."""
        parts = [_regeneration_sentence(self)]
        if self.advice is not None:
            parts.append(_advice_sentence(self.advice, self.target))
            if self.advice.outcome == "helps" != self.regeneration.outcome:
                parts.reverse()
        sentence = "; ".join(parts)
        return f"{sentence[0].upper()}{sentence[1:]}."

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What to do with it."""
        return _next_steps(self)


def judge(target: str, recommender: str, lines: Mapping[str, LineValues], *, seed: int) -> Verdict:
    """
    The verdict that *lines* allow.

    Args:
        lines: ``original`` and at least one line of ``REGENERATION``; every other of this file may lack.
        seed: of the bootstrap.
    """
    baseline = max((name for name in BASELINES if name in lines), key=lambda name: lines[name].validation_SN.mean())
    regeneration = _judge_family("regeneration", REGENERATION, baseline, lines, seed)
    assert regeneration is not None
    advice = _judge_family("advice", ADVICE, ORIGINAL, lines, seed)
    return Verdict(target, recommender, len(lines[ORIGINAL].test_SN), regeneration, advice)


def _judge_family(
    family: Literal["regeneration", "advice"],
    names: tuple[str, ...],
    baseline: str,
    lines: Mapping[str, LineValues],
    seed: int,
) -> FamilyVerdict | None:
    uses = tuple(compare(lines, name, baseline, seed=seed) for name in names if name in lines)
    if not uses:
        return None
    judged = max(uses, key=lambda use: use.sure_validation_gain)
    users = lines[baseline].test_SN.shape[1]
    return FamilyVerdict(family, judged, uses, users, users_to_show(judged.user_error, users))


def compare(lines: Mapping[str, LineValues], line: str, baseline: str, *, seed: int) -> Use:
    """Line against baseline, paired by row, averaged over seeds."""
    ours, theirs = lines[line], lines[baseline]
    validation_N = (ours.validation_SN - theirs.validation_SN).mean(axis=0)
    error = float(validation_N.std(ddof=1)) / math.sqrt(len(validation_N)) if len(validation_N) > 1 else math.inf
    baseline_N = theirs.test_SN.mean(axis=0)
    difference_N = ours.test_SN.mean(axis=0) - baseline_N
    [(_, relative)] = bootstrap_gains(difference_N[:, None], baseline_N[:, None], seed=seed)
    if relative is None:
        return Use(line, baseline, float(validation_N.mean()), error, None, math.inf)
    user_error = (relative.high - relative.low) / (2 * SURE)
    noise = 0.0 if ours.rows == theirs.rows else TRAINING_NOISE / math.sqrt(len(ours.test_SN))
    gain = Interval(
        relative.mean,
        relative.mean - math.hypot(relative.mean - relative.low, SURE * noise),
        relative.mean + math.hypot(relative.high - relative.mean, SURE * noise),
    )
    return Use(line, baseline, float(validation_N.mean()), error, gain, user_error)


def users_to_show(user_error: float, users: int, *, gain: float = SHOWN_GAIN) -> int | None:
    """
    So many users would show a relative *gain* in 80 of 100 checks, given the error that *users* of them had.

    >>> users_to_show(0.05, 1000)
    7840
    """
    if not math.isfinite(user_error):
        return None
    return math.ceil(round(users * ((SURE + LIKELY) * user_error / gain) ** 2, 6))


def percent(gain: Interval | None) -> str:
    """
    A relative gain with its interval.

    >>> percent(Interval(0.123, 0.04, 0.2))
    '+12.3 % [+4.0, +20.0]'
    """
    if gain is None:
        return "no ratio: too few users hit"
    return f"{100 * gain.mean:+.1f} % [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _regeneration_sentence(verdict: Verdict) -> str:
    found = verdict.regeneration
    target, judged = verdict.target, found.judged
    if found.outcome == "helps":
        way = "training rows and live histories" if judged.line == "served" else "training rows alone"
        return f"regeneration helps {target} by {percent(judged.gain)} ({way})"
    if found.outcome == "harms":
        return f"regeneration harms {target}: {percent(judged.gain)}, do not use it there"
    return f"whether regeneration helps {target} is undecided: {percent(judged.gain)}{_power(found)}"


def _advice_sentence(found: FamilyVerdict, target: str) -> str:
    judged = found.judged
    regenerated = " after regenerated histories" if judged.line == "served with expert" else ""
    what = f"the expert's scores added to your recommender's{regenerated}"
    if found.outcome == "helps":
        return f"{what} help {target} by {percent(judged.gain)}"
    if found.outcome == "harms":
        return f"{what} harm {target}: {percent(judged.gain)}"
    return f"what {what} do is undecided: {percent(judged.gain)}{_power(found)}"


def _power(found: FamilyVerdict) -> str:
    if found.users_for_shown_gain is None:
        return ""
    there = f"there were {found.users:,}"
    if found.users_for_shown_gain <= found.users:
        return f" ({there}, enough to show {SHOWN_GAIN:+.0%} by users; more seeds would narrow it)"
    return f" (about {_rounded(found.users_for_shown_gain):,} test users would show {SHOWN_GAIN:+.0%}, {there})"


def _rounded(number: int) -> int:
    """
    Two digits are all that such an estimate has.

    >>> _rounded(31_415), _rounded(7)
    (31000, 7)
    """
    return int(round(number, 1 - len(str(number)) + 1)) if number >= 100 else number


def _next_steps(verdict: Verdict) -> tuple[str, ...]:
    regeneration, advice = verdict.regeneration, verdict.advice
    steps: list[str] = []
    if regeneration.outcome == "helps":
        steps.append("Train for production: taesar train DATASET --out BUNDLE --refit, and set up docs/daily.md.")
        if regeneration.judged.line == "served":
            steps.append("Train your recommender on the regenerated rows and call POST /regenerate before it ranks.")
        else:
            steps.append("Train your recommender on the regenerated rows; pass live histories through as they are.")
    elif regeneration.outcome == "harms":
        steps.append(f"Leave regeneration off for {verdict.target}; the guard of `taesar train` does.")
    else:
        steps.append(
            "Give more users (a longer period, --overlap any), more --seeds or more --minutes, and check again."
        )
        steps.append("Until then nothing is lost: the guard of `taesar train` replaces nothing that did not stand out.")
    if advice is not None and advice.outcome == "helps":
        steps.append(
            "Ask POST /regenerate for the expert's likely items and add their log-probabilities to your recommender's."
        )
    return tuple(steps)

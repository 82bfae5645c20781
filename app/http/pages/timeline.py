"""What became of every item of a sequence, and why, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from app.http.pages.sequence_text import PastedItem

Fate = Literal["kept", "replaced", "deleted", "unknown", "not read"]
MOST_HINTS = 3  # of rule anticipate, where no guard chose fewer
RUNNERS_UP = 4


@dataclass(frozen=True)
class Candidate:
    """A target item and how probable the target's expert takes it, in [0, 1]."""

    item_id: str
    probability: float


@dataclass(frozen=True)
class Moment:
    """
    One item of the sequence.

    Args:
        fate: what became of it.
        became: the item that stands in its place.
        probability: of that, where the rule scores by one.
        score, margin: of the decision, and its lead over the runner-up; None where there is none.
        runners_up: what else was expected, the most probable first.
        why: the reason, for people.
    """

    item: PastedItem
    fate: Fate
    became: str | None = None
    probability: float | None = None
    score: float | None = None
    margin: float | None = None
    runners_up: tuple[Candidate, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Question:
    """
    The sequence that was asked about, and what is known of the model that answered.

    Args:
        items: the sequence.
        target: its domain to be.
        known: which of the items the model knows.
        rule: the model's.
        serving_hints: items that a run leaves behind in a live history; None: no guard was tried.
    """

    items: Sequence[PastedItem]
    target: str
    known: frozenset[PastedItem]
    rule: str
    serving_hints: int | None = field(default=None)

    @property
    def most_hints(self) -> int:
        """Items that a run of other domains' items leaves behind."""
        return MOST_HINTS if self.serving_hints is None else min(MOST_HINTS, self.serving_hints)

    def num_unread(self, truncated: int) -> int:
        """How many positions at the beginning were not read, if *truncated* of those that could be were not."""
        position = 0
        while truncated and position < len(self.items):
            item = self.items[position]
            truncated -= item in self.known or item.domain == self.target
            position += 1
        return position

    def run_ends(self, first: int) -> dict[int, int]:
        """Of every known item of another domain from *first* on, the last position of its run."""
        read = [at for at in range(first, len(self.items)) if self.items[at] in self.known]
        ends: dict[int, int] = {}
        for is_source, run in groupby(read, key=lambda at: self.items[at].domain != self.target):
            positions = list(run)
            if is_source:
                ends |= dict.fromkeys(positions, positions[-1])
        return ends


def tell(question: Question, answer: Mapping[str, Any], expected: Mapping[int, Sequence[Candidate]]) -> list[Moment]:
    """
    The story of a sequence.

    Args:
        question: what was asked.
        answer: a regenerated sequence of the API, with its steps.
        expected: by the last position of a run, what the target's expert expects after it.
    """
    steps = {step["position"]: step for step in answer["steps"]}
    first = question.num_unread(answer["truncated"])
    ends = question.run_ends(first)
    seen: set[str] = set()
    moments = []
    for position, item in enumerate(question.items):
        if position in steps:
            taken = {step["item_id"] for at, step in steps.items() if ends.get(at) == ends.get(position)}
            listed = [c for c in expected.get(ends.get(position, -1), ()) if c.item_id not in taken | seen]
            moments.append(_decided(question, item, steps[position], position, ends, listed))
        else:
            moments.append(_undecided(question, item, was_read=position >= first))
        if item.domain == question.target:
            seen.add(item.item_id)
    return moments


def _decided(
    question: Question,
    item: PastedItem,
    step: Mapping[str, Any],
    position: int,
    ends: Mapping[int, int],
    listed: Sequence[Candidate],
) -> Moment:
    if step["action"] == "deleted":
        return Moment(item, "deleted", score=step["score"], margin=step["margin"], why=_why_deleted(question, step))
    is_anticipated = question.rule == "anticipate"
    probability = math.exp(step["score"]) if is_anticipated and step["score"] is not None else None
    runners_up = tuple(listed[:RUNNERS_UP]) if position == ends.get(position) else ()
    why = (
        f"The {question.target} expert, having read this stretch, expects this item."
        if is_anticipated
        else "The experts and the base score this item highest together."
    )
    return Moment(
        item, "replaced", step["item_id"], probability, step["score"], step["margin"], runners_up=runners_up, why=why
    )


def _why_deleted(question: Question, step: Mapping[str, Any]) -> str:
    if question.rule == "anticipate":
        if not question.most_hints:
            return (
                f"Validation found that items of other domains do not help {question.target}, so this model leaves "
                "them out."
            )
        noun = "item" if question.most_hints == 1 else "items"
        return (
            f"Of a stretch of other domains' items only the last {question.most_hints} {noun} leave something behind."
        )
    if step["score"] is None:
        return "The first item of a sequence has nothing before it to decide by."
    return f"No item of {question.target} came out ahead as its counterpart."


def _undecided(question: Question, item: PastedItem, *, was_read: bool) -> Moment:
    if not was_read:
        return Moment(item, "not read", why="Older than what the model reads of a sequence.")
    if item.domain == question.target:
        known = item in question.known
        return Moment(item, "kept", item.item_id, why="" if known else "The model does not know it; it stays in place.")
    return Moment(item, "unknown", why="The model does not know this item, or its domain.")

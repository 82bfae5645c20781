"""
What clients send and receive, as pydantic models with examples. Limits on counts live in the settings, not here: over
a limit is 413, a wrong shape is 422.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.data.reading.identifiers import ID_PATTERN, MAX_CHARACTERS

Action = Literal["replaced", "deleted"]
OnUnknown = Literal["skip", "error"]

MAX_LIKELY_ITEMS = 1000
# The one policy of ids. A JSON text that spells half a surrogate pair is refused by its parser
Name = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, pattern=ID_PATTERN)]


class _Body(BaseModel):
    # Strict and closed: a typing error in a field's name or type is reported, never guessed around
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _whole(number: object) -> object:
    # To JSON Schema 3.0 is an integer, and some clients write every number so
    return int(number) if isinstance(number, float) and number.is_integer() else number


class Item(_Body):
    """One interaction of the submitted sequence."""

    item_id: Name = Field(description="The item's id in its domain, as in the training data.")
    domain: Name = Field(description="The item's domain.")


class MixedSequence(_Body):
    """One user's interactions over all domains, oldest first."""

    user_id: Name | None = Field(default=None, description="Returned as sent; not used otherwise.")
    # The first invalid element of a list ends its reading: naming thousands would hold up everybody else for seconds
    items: list[Item] = Field(fail_fast=True, description="Oldest first. May be empty.")


_REQUEST_EXAMPLE: dict[str, Any] = {
    "target_domain": "kitchen",
    "explain": True,
    "on_unknown": "skip",
    "sequences": [
        {
            "user_id": "A1",
            "items": [
                {"item_id": "B000", "domain": "food"},
                {"item_id": "K042", "domain": "kitchen"},
                {"item_id": "B001", "domain": "food"},
            ],
        }
    ],
}


class RegenerateRequest(_Body):
    """Mixed sequences to rewrite for one target domain."""

    model_config = ConfigDict(json_schema_extra={"examples": [_REQUEST_EXAMPLE]})

    target_domain: Name = Field(description="The domain whose items the answer holds.")
    model_version: Name | None = Field(
        default=None,
        description="The version that answers, one of those that GET /models lists as loaded; without it the active "
        "one, or for its share of the users the canary.",
    )
    explain: bool = Field(default=False, description="Also return every decision with its numbers.")
    likely_items: Annotated[int, BeforeValidator(_whole)] = Field(
        default=0,
        ge=0,
        le=MAX_LIKELY_ITEMS,
        description="Also return so many of the items that the target's expert expects next after the whole history, "
        "with their log-probabilities: added to the logarithms of a recommender's own probabilities, with the weight "
        "that GET /models shows as expert_weight, they mostly rank better than either (docs/results.md).",
    )
    on_unknown: OnUnknown = Field(
        default="skip",
        description="Items (or their domains) that the model does not know: 'skip' leaves those of the target domain "
        "in place, drops the others, and counts both; 'error' refuses the request with 422, counts them and names the "
        "first hundred.",
    )
    sequences: list[MixedSequence] = Field(min_length=1, fail_fast=True, description="At least one.")


class Step(BaseModel):
    """The decision about one item of another domain."""

    position: int = Field(ge=0, description="Index into the submitted items.")
    source: Item
    action: Action
    item_id: str | None = Field(description="The target item that took its place; null when deleted.")
    alpha: float | None = Field(
        description="Weight of the target expert in the deciding step; null for a sequence's first item, which has no "
        "history to decide by, and under rule anticipate, which weighs nothing."
    )
    beta: float | None = Field(description="Weight of the contrast between base and source expert; null likewise.")
    score: float | None = Field(
        description="Winning score of the deciding step; under rule anticipate the item's log-probability. Null where "
        "nothing was scored."
    )
    margin: float | None = Field(
        description="Its lead over the runner-up; null where nothing was scored, and where there is no other candidate."
    )


class LikelyTargetItem(BaseModel):
    """An item that the target's expert expects next."""

    item_id: str
    log_probability: float = Field(le=0, description="Natural logarithm, over all items of the target domain.")


class RegeneratedSequence(BaseModel):
    """
    One rewritten sequence.

    kept + replaced + deleted + unknown + unknown_kept + truncated is the number of submitted items.
    """

    user_id: str | None
    items: list[str] = Field(description="Target items, oldest first, no consecutive repeats.")
    kept: int = Field(ge=0, description="Items of the target domain that the model knows.")
    replaced: int = Field(ge=0, description="Items of other domains that became a target item.")
    deleted: int = Field(ge=0, description="Items of other domains that have no counterpart.")
    unknown: int = Field(ge=0, description="Items of other domains that the model does not know; skipped.")
    unknown_kept: int = Field(
        ge=0, description="Items of the target domain that the model does not know; they stay in place."
    )
    truncated: int = Field(
        ge=0,
        description="Oldest items beyond the model's length, known ones and those of the target domain; not read.",
    )
    steps: list[Step] | None = Field(
        default=None, description="With explain: one per item of another domain that was read."
    )
    likely_items: list[LikelyTargetItem] | None = Field(
        default=None,
        description="With likely_items: the most probable first, those of the history among them; none where nothing "
        "of the sequence is known.",
    )


class RegenerateResponse(BaseModel):
    """The rewritten sequences, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "target_domain": "kitchen",
                    "model_version": "4f0c2a9be1d7",
                    "sequences": [
                        {
                            "user_id": "A1",
                            "items": ["K007", "K042"],
                            "kept": 1,
                            "replaced": 1,
                            "deleted": 1,
                            "unknown": 0,
                            "unknown_kept": 0,
                            "truncated": 0,
                            "steps": [
                                {
                                    "position": 0,
                                    "source": {"item_id": "B000", "domain": "food"},
                                    "action": "replaced",
                                    "item_id": "K007",
                                    "alpha": 0.4,
                                    "beta": 0.9,
                                    "score": 7.1,
                                    "margin": 0.3,
                                },
                                {
                                    "position": 2,
                                    "source": {"item_id": "B001", "domain": "food"},
                                    "action": "deleted",
                                    "item_id": None,
                                    "alpha": 0.7,
                                    "beta": 0.2,
                                    "score": 5.2,
                                    "margin": 0.1,
                                },
                            ],
                        }
                    ],
                }
            ]
        }
    )

    target_domain: str
    model_version: str
    sequences: list[RegeneratedSequence]

"""What clients receive about models, as pydantic models with examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.decoding.rules import Rule, describe_rules


class Domain(BaseModel):
    """One domain of a model."""

    name: str
    num_items: int
    own_share_after_target: float = Field(
        description="Of its expert, as a target: the share of the reading of its own items alone, after a history that "
        "ends with one of them (docs/experiments/two-readings.md)."
    )
    own_share_after_source: float = Field(description="The same after a history that ends with another domain's item.")
    joint_weight: float = Field(
        description="Of its expert, as a target: the weight of the joint decoder's log-probabilities, the rest being "
        "the adapted one's; 0: that is all."
    )
    training_hints: int | None = Field(
        description="Most items that a run of other domains' items leaves behind in a training row; 0 replaces none. "
        "Null: this was not tried with the model's rule, which replaces everything that it chooses to."
    )
    serving_hints: int | None = Field(description="The same in a live history: 0 passes its target items through.")
    expert_weight: float | None = Field(
        description="The share w, chosen on validation, for whoever ranks by both: (1 - w) times the recommender's "
        "log-probability of an item plus w times that of its likely_items entry. 0: the expert adds nothing; null: "
        "not tried."
    )
    finding: str | None = Field(description="What validation said of regenerating for this target, with its numbers.")


class DataPeriod(BaseModel):
    """The time that data covers: numbers as the log had them, and the dates that they are."""

    first: float | None
    last: float | None
    first_date: str | None
    last_date: str | None


class Model(BaseModel):
    """A bundle in memory."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": "4f0c2a9be1d7",
                    "name": "spring",
                    "created": "2026-03-01T04:00:00+00:00",
                    "period": {
                        "first": 957_225_600.0,
                        "last": 1_406_073_600.0,
                        "first_date": "2000-05-02",
                        "last_date": "2014-07-23",
                    },
                    "active": True,
                    "rule": "anticipate",
                    "max_items": 128,
                    "domains": [
                        {
                            "name": "kitchen",
                            "num_items": 8675,
                            "own_share_after_target": 0.25,
                            "own_share_after_source": 0.5,
                            "joint_weight": 0.5,
                            "training_hints": 3,
                            "serving_hints": 3,
                            "expert_weight": 0.4,
                            "finding": "Training rows with at most 3 hints a run and regenerated live histories were "
                            "best (NDCG@10 of SASRec among unseen items, 3,532 validation users of kitchen: 0.0310 "
                            "instead of 0.0270, +14.8 % ± 4.1).",
                        }
                    ],
                    "provenance": {"seed": 2025},
                }
            ]
        }
    )

    version: str = Field(description="Hash of the bundle's content.")
    name: str | None = Field(
        description="What people call it; null in bundles of earlier versions, as are the next two."
    )
    created: str | None = Field(description="When it was trained, ISO 8601; null likewise.")
    period: DataPeriod | None = Field(description="The time that its training data covers; null likewise.")
    active: bool = Field(description="Whether POST /regenerate is answered by it.")
    rule: Rule = Field(description=f"How source items are replaced. {describe_rules()}")
    max_items: int = Field(description="Items of a sequence that it reads, counted from the end.")
    domains: list[Domain]
    provenance: dict[str, Any] = Field(description="How it was trained.")


class Share(BaseModel):
    """How much a canary answers."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"share": 0.05}]})

    share: float = Field(
        gt=0,
        le=1,
        strict=True,
        description="Share of the requests that the canary answers; which, is decided by the first sequence's user_id, "
        "or without one by X-Request-ID: a user always meets the same version, on every replica.",
    )


class Canary(BaseModel):
    """A version that answers a share of the requests."""

    version: str
    share: float = Field(description="In (0, 1].")


class Models(BaseModel):
    """What serves and what can; active, previous and canary are the same on every replica."""

    active: str | None = Field(description="The version that serves; null when none is.")
    previous: str | None = Field(description="The version that a roll back would activate; null when there is none.")
    canary: Canary | None = Field(description="The version that answers a share of the requests; null without one.")
    loaded: list[Model] = Field(
        description="In the memory of the process that answers, most recently active first; a request may name any."
    )
    available: list[str] = Field(description="Versions in the bundle folder that activation would load.")


class KnownItem(BaseModel):
    """An item that a model knows."""

    number: int = Field(description="Its place in GET /models/{version}/map, from 0; domains follow one another.")
    domain: str
    item_id: str


class ItemMatches(BaseModel):
    """Items that were asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_version": "4f0c2a9be1d7",
                    "items": [{"number": 778, "domain": "kitchen", "item_id": "K007"}],
                    "total": 1,
                }
            ]
        }
    )

    model_version: str
    items: list[KnownItem]
    total: int = Field(description="How many there are in all; the answer holds the first of them.")

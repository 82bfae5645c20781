"""What clients receive about models, as pydantic models with examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.decoding.rules import Rule, describe_rules


class Domain(BaseModel):
    """One domain of a model."""

    name: str
    num_items: int


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
                    "domains": [{"name": "food", "num_items": 6752}, {"name": "kitchen", "num_items": 8675}],
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


class Models(BaseModel):
    """What can serve."""

    active: str | None = Field(description="The version that serves; null when none is.")
    loaded: list[Model] = Field(description="In memory, most recently active first.")
    available: list[str] = Field(description="Versions in the bundle folder that activation would load.")

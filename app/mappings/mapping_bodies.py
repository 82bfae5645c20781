"""What clients receive about mappings, as pydantic models with examples."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from app.mappings.mapping_store import DictionaryKey, MappingRow
from app.storage.tables import ALL_JOBS


class MappingLine(BaseModel):
    """How often a source item became this target item."""

    source_domain: str
    source_item: str
    target_item: str | None = Field(description="null: the line that counts the source item's deletions.")
    count: int
    share: float = Field(description="count / all decisions of the source item; its lines sum to 1.")
    mean_score: float | None = Field(description="Mean score of these decisions; null for deletions.")
    decisions: int = Field(description="All decisions of the source item.")
    deletions: int = Field(description="Those that deleted it.")

    @classmethod
    def of(cls, row: MappingRow) -> MappingLine:
        """The row as clients see it."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class MappingPage(BaseModel):
    """Lines of a dictionary, ordered by source domain, source item and target item."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "target_domain": "kitchen",
                    "model_version": "4f0c2a9be1d7",
                    "rule": "paper",
                    "job_id": None,
                    "mappings": [
                        {
                            "source_domain": "food",
                            "source_item": "B000",
                            "target_item": "K007",
                            "count": 31,
                            "share": 0.62,
                            "mean_score": 7.1,
                            "decisions": 50,
                            "deletions": 4,
                        }
                    ],
                    "next": None,
                }
            ]
        }
    )

    target_domain: str
    model_version: str
    rule: str
    job_id: str | None = Field(description="The job whose decisions these are; null: all finished jobs.")
    mappings: list[MappingLine]
    next: str | None = Field(description="Cursor of the next page; null on the last.")

    @classmethod
    def of(cls, key: DictionaryKey, lines: list[MappingRow], following: str | None) -> MappingPage:
        """One page of the dictionary of *key*."""
        return cls(
            target_domain=key.target_domain,
            model_version=key.model_version,
            rule=key.rule,
            job_id=None if key.job_id == ALL_JOBS else key.job_id,
            mappings=[MappingLine.of(line) for line in lines],
            next=following,
        )

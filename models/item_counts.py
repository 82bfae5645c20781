"""What can become of the items of a sequence: the one list of these counts; all that counts is made from it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    """
    What became of items; all together they are as many as were submitted.

    Args:
        kept: items of the target domain that the model knows.
        replaced: items of other domains that became a target item.
        deleted: items of other domains that have no counterpart.
        unknown: items of other domains that the model does not know; skipped.
        truncated: oldest items beyond the model's length, known ones and those of the target domain; not read.
        unknown_kept: items of the target domain that the model does not know; they stay in place.
    """

    kept: int = 0
    replaced: int = 0
    deleted: int = 0
    unknown: int = 0
    truncated: int = 0
    unknown_kept: int = 0  # younger than the others: columns of older files are the first of these


@dataclass(frozen=True, kw_only=True)
class SequenceCounts(ItemCounts):
    """What became of the items of so many sequences."""

    sequences: int = 0


ITEM_COUNTS = tuple(field.name for field in fields(ItemCounts))
SEQUENCE_COUNTS = ("sequences", *ITEM_COUNTS)

"""What can become of an item has one list of names, in the service as in the composite."""

from __future__ import annotations

from app.counts import ITEM_COUNTS
from models.composite.regenerated_rows import COUNTS


def test_jobs_and_composites_count_the_same_things() -> None:
    """``models`` cannot read the service's list; this keeps the two equal."""
    assert sorted(COUNTS) == sorted(ITEM_COUNTS)

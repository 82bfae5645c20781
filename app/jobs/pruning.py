"""Removing results past their retention, and files that no job needs."""

from __future__ import annotations

from contextlib import suppress

from app.errors import UnknownJobError
from app.jobs.parts import UPLOAD, JobParts
from app.jobs.records import created_at_ms_of
from app.storage.database import now_ms
from app.storage.job_files import is_partial_of

# An upload appears before the record of its job, and is left alone for so long.
ARRIVAL_MS = 24 * 3600 * 1000
DAY_MS = 24 * 3600 * 1000


def prune(parts: JobParts, *, retention_days: float) -> list[str]:
    """
    Remove results and bad rows past their retention, and files that no job needs; the ids of the jobs it took from.

    Records and counts stay.
    """
    # Not before 1970: no job is older, and the database holds no such number
    pruned = parts.jobs.prune(finished_before_ms=max(0, now_ms() - round(retention_days * DAY_MS)))
    for job_id in pruned:
        parts.storage.delete_folder(job_id)
    for folder in parts.storage.folders():
        created_at_ms = created_at_ms_of(folder)
        if created_at_ms is not None and not _may_be_arriving(parts, folder, created_at_ms):
            parts.remove_files_of_ended(folder)
    return pruned


def _may_be_arriving(parts: JobParts, folder: str, created_at_ms: int) -> bool:
    """Whether the folder may hold an input whose job is about to be recorded: young, and nothing else is in it."""
    with suppress(UnknownJobError):
        parts.jobs.get(folder)
        return False
    is_young = created_at_ms > now_ms() - ARRIVAL_MS
    return is_young and all(name == UPLOAD or is_partial_of(UPLOAD, name) for name in parts.storage.names(folder))

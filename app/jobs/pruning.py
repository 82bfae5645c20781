"""Removing results past their retention, and files that no job needs."""

from __future__ import annotations

from app.jobs.parts import JobParts
from app.jobs.records import created_at_ms_of
from app.storage.database import now_ms

# Files of an upload appear before their job does; younger folders without a job are left alone.
ORPHAN_AGE_MS = 24 * 3600 * 1000


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
        if created_at_ms is None or created_at_ms > now_ms() - ORPHAN_AGE_MS:
            continue
        if not parts.jobs.keeps_files(folder):
            parts.storage.delete_folder(folder)
    return pruned

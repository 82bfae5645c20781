"""What SQL says of all jobs together, for metrics."""

from __future__ import annotations

from sqlalchemy import Engine, func, or_, select

from app.jobs.records import ACTIVE, JobState
from app.runtime.job_metrics import JobMetrics
from app.storage.database import now_ms, reading
from app.storage.tables import chunks, jobs

# Scrapes read what was found last, so they never wait for the database.
GAUGE_SECONDS = 5.0
# A chunk in work is renewed every 10 s: what has not been for this long is not worked on.
AT_WORK_MS = 30_000


def refresh_job_gauges(engine: Engine, metrics: JobMetrics) -> None:
    """Read the gauges of ``JobMetrics`` anew; raises StoreUnavailableError."""
    now = now_ms()
    of_job = chunks.c.job_id == jobs.c.job_id
    unfinished = chunks.c.output_name.is_(None)
    at_work = or_(
        jobs.c.claimed_at_ms > now - AT_WORK_MS,
        select(chunks.c.job_id).where(of_job, chunks.c.claimed_at_ms > now - AT_WORK_MS).exists(),
    )
    with reading(engine) as connection:
        found = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
        oldest = connection.execute(
            select(func.min(jobs.c.created_at_ms)).where(jobs.c.state.in_(ACTIVE), ~func.coalesce(at_work, False))
        ).scalar_one()
        num_chunks = connection.execute(
            select(func.count()).select_from(jobs).join(chunks, of_job).where(jobs.c.state.in_(ACTIVE), unfinished)
        ).scalar_one()
        uncut = connection.execute(
            select(func.count()).select_from(jobs).where(jobs.c.state.in_(ACTIVE), jobs.c.num_chunks.is_(None))
        ).scalar_one()
    counts = {state.value: 0 for state in JobState} | {row[0]: row[1] for row in found}
    metrics.set_jobs(
        counts,
        oldest_waiting_seconds=0.0 if oldest is None else (now - oldest) / 1000,
        unfinished_chunks=num_chunks + uncut,
    )

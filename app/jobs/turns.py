"""
Fair turns between jobs: the queue holds a few chunks of each job at a time.

A chunk that is begun or done lets its job queue the next one. So a small job waits for a few chunks of a large one,
never for all of them, and however many workers there are, each finds the next chunk in the queue.
"""

from __future__ import annotations

from sqlalchemy import Engine, func, select, update

from app.jobs.records import JobState
from app.jobs.tasks import Task, TaskKind
from app.storage.database import now_ms, reading, writing
from app.storage.tables import chunks, jobs

CHUNKS_AHEAD = 2
"""Chunks of one job that wait in the queue: enough that a worker finds the next one while the last is being begun."""

NOT_YET_MS = 1 << 62
"""``queued_at_ms`` of a chunk whose turn has not come: behind every instant, so that it never passes for lost."""


class Turns:
    """
    Says which chunks are to be queued next.

    Args:
        engine: of the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, job_id: str) -> list[Task]:
        """The chunks of the job whose turn has come; the caller puts them on the queue. Each is told once."""
        of_job = chunks.c.job_id == job_id
        begun_well = chunks.c.claimed_at_ms.is_not(None) & chunks.c.last_error.is_(None)
        in_queue = select(func.count()).where(
            of_job, chunks.c.output_name.is_(None), chunks.c.queued_at_ms < NOT_YET_MS, ~begun_well
        )
        is_later = (of_job, chunks.c.queued_at_ms == NOT_YET_MS)
        with reading(self._engine) as connection:
            if connection.execute(select(chunks.c.chunk_index).where(*is_later).limit(1)).one_or_none() is None:
                return []
            if connection.execute(in_queue).scalar_one() >= CHUNKS_AHEAD:
                return []
        with writing(self._engine) as connection:
            room = CHUNKS_AHEAD - connection.execute(in_queue).scalar_one()
            following = (
                select(chunks.c.chunk_index)
                .where(*is_later)  # an ended job has no chunk that waits
                .order_by(chunks.c.chunk_index)
                .limit(max(0, room))
                .with_for_update(skip_locked=True, of=chunks)
            )
            indices = connection.execute(following).scalars().all()
            if indices:
                marked = update(chunks).where(of_job, chunks.c.chunk_index.in_(indices))
                connection.execute(marked.values(queued_at_ms=now_ms()))
            return [Task(TaskKind.CHUNK, job_id, chunk_index) for chunk_index in indices]

    def take_all(self) -> list[Task]:
        """``take`` for every job that runs: what was killed between two chunks goes on."""
        waits = select(chunks.c.job_id).where(chunks.c.job_id == jobs.c.job_id, chunks.c.queued_at_ms == NOT_YET_MS)
        running = select(jobs.c.job_id).where(jobs.c.state == JobState.RUNNING, waits.exists())
        with reading(self._engine) as connection:
            job_ids = connection.execute(running.order_by(jobs.c.job_id)).scalars().all()
        return [task for job_id in job_ids for task in self.take(job_id)]

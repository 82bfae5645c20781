"""
The workers' side of jobs, as SQL: cutting the input, chunks, and how a job ends. The clients' side is ``store``.

A job's input is cut into chunks; a chunk is begun at least once and counts exactly once: its counts, its bad rows, its
mapping increments and the name of its output change in one transaction, which first takes the job's row and goes
through only while the job is running and the chunk is not done. So whatever is killed, repeated or late, nothing is
lost and nothing doubled; and once a cancellation has committed, nothing of the job can be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from app.jobs.formats import BadRow
from app.jobs.queue import Task, TaskKind
from app.jobs.records import (
    ACTIVE,
    TERMINAL,
    ChunkCounts,
    Job,
    JobLimits,
    JobState,
    end_job,
    find_job,
    get_job,
    printable,
)
from app.mappings.mapping_store import Increment, fold_in, merge_staged, stage
from app.storage.database import now_ms, reading, writing
from app.storage.tables import bad_rows, chunks, jobs


@dataclass(frozen=True)
class ChunkWork:
    """A chunk that was begun: its job, its place and its input."""

    job: Job
    chunk_index: int
    input_name: str


class InputChangedError(Exception):
    """The input, read again after an interruption, is not what it was."""


class _NotAddedError(Exception):
    """Takes a transaction back: the chunk counted before, or its job no longer runs."""


class ChunkStore:
    """What workers do to jobs; every method is one transaction."""

    def __init__(self, engine: Engine, limits: JobLimits) -> None:
        self._engine = engine
        self._limits = limits

    # Cutting the input

    def begin_cutting(self, job_id: str) -> Job | None:
        """
        Count an attempt to cut the input; None when there is nothing (more) to cut, or it was begun too often.

        Attempts count from the last chunk that was new: a large input may be interrupted as often as it makes headway.
        """
        with writing(self._engine) as connection:
            job = find_job(connection, job_id, lock=True)
            if job is None or job.state in TERMINAL or job.num_chunks is not None:
                return None
            now = now_ms()
            attempts = connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id)
                .values(
                    state=JobState.RUNNING,
                    attempts=jobs.c.attempts + 1,
                    claimed_at_ms=now,
                    started_at_ms=func.coalesce(jobs.c.started_at_ms, now),
                )
                .returning(jobs.c.attempts)
            ).scalar_one()
            if attempts > self._limits.max_chunk_attempts:
                last = job.reason or "its worker died"
                reason = f"the input could not be read in {self._limits.max_chunk_attempts} attempts, the last: {last}"
                end_job(connection, job, JobState.FAILED, reason)
                return None
            return get_job(connection, job_id)

    def add_chunk(
        self, job_id: str, chunk_index: int, *, input_name: str, num_rows: int, rows_read: int, bad: Sequence[BadRow]
    ) -> bool:
        """
        Record a chunk and the rows that were read for it; False when the job no longer runs. Again: no change.

        Raises:
            InputChangedError: the chunk is known with another content.
        """
        with writing(self._engine) as connection:
            if not self._touch_running(connection, job_id):
                return False
            known = connection.execute(
                select(chunks.c.input_name).where(chunks.c.job_id == job_id, chunks.c.chunk_index == chunk_index)
            ).scalar_one_or_none()
            if known is not None:
                if known != input_name:
                    raise InputChangedError("the input, or how it is cut, changed while the job was reading it")
                return True
            connection.execute(
                insert(chunks).values(
                    job_id=job_id,
                    chunk_index=chunk_index,
                    num_rows=num_rows,
                    input_name=input_name,
                    attempts=0,
                    queued_at_ms=now_ms(),
                )
            )
            self._add_rows(connection, job_id, rows_read, bad)
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(attempts=0, reason=None))
            return True

    def cutting_failed(self, job_id: str, error: Exception) -> None:
        """Record why an attempt to cut the input failed, for the reason of the job if it was the last one."""
        with writing(self._engine) as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.num_chunks.is_(None))
                .values(reason=_reason(error))
            )

    def renew_cutting(self, job_id: str) -> None:
        """Say that the input is still being read: a chunk's worth of rows may take long to come together."""
        with writing(self._engine) as connection:
            self._touch_running(connection, job_id)

    def end_cutting(self, job_id: str, *, num_chunks: int, rows_read: int, bad: Sequence[BadRow]) -> None:
        """Record that the input ends here, with rows behind the last chunk; fails a job without sequences."""
        with writing(self._engine) as connection:
            if not self._touch_running(connection, job_id):
                return
            job = get_job(connection, job_id)
            if job.num_chunks is not None:
                return
            connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(num_chunks=num_chunks, reason=None))
            self._add_rows(connection, job_id, rows_read, bad)
            job = get_job(connection, job_id)
            if self._too_bad(job):
                end_job(connection, job, JobState.FAILED, self._too_bad_reason(job))
            elif num_chunks == 0:
                end_job(connection, job, JobState.FAILED, "the input holds no sequence")

    # Chunks

    def begin_chunk(self, job_id: str, chunk_index: int) -> ChunkWork | None:
        """Count an attempt at the chunk; None when there is nothing (more) to do, or it was begun too often."""
        with writing(self._engine) as connection:
            row = connection.execute(
                update(chunks)
                .where(
                    chunks.c.job_id == job_id,
                    chunks.c.chunk_index == chunk_index,
                    chunks.c.output_name.is_(None),
                    chunks.c.job_id.in_(select(jobs.c.job_id).where(jobs.c.state == JobState.RUNNING)),
                )
                .values(attempts=chunks.c.attempts + 1, claimed_at_ms=now_ms())
                .returning(chunks.c.attempts, chunks.c.input_name, chunks.c.last_error)
            ).one_or_none()
            if row is None:
                return None
            job = get_job(connection, job_id)
            if row.attempts <= self._limits.max_chunk_attempts:
                return ChunkWork(job, chunk_index, row.input_name)
        self.fail(job_id, self._poison_reason(chunk_index, row.last_error or "its worker died"))
        return None

    def renew_chunk(self, work: ChunkWork) -> None:
        """Say that the chunk is still being worked on, so that it does not pass for lost."""
        with writing(self._engine) as connection:
            connection.execute(
                update(chunks)
                .where(
                    chunks.c.job_id == work.job.job_id,
                    chunks.c.chunk_index == work.chunk_index,
                    chunks.c.output_name.is_(None),
                )
                .values(claimed_at_ms=now_ms())
            )

    def commit_chunk(
        self,
        work: ChunkWork,
        *,
        output_name: str,
        counts: ChunkCounts,
        bad: Sequence[BadRow],
        increments: Sequence[Increment],
    ) -> bool:
        """
        Let the chunk count, in one transaction; False when it counted before or the job no longer runs.

        ``output_name`` must be durable in the storage already.
        """
        try:
            with writing(self._engine) as connection:
                stage(connection, increments)  # before the job's row is locked: this takes no lock that others want
                self._mark_done(connection, work, output_name, counts)
                self._add_rows(connection, work.job.job_id, 0, bad)
                if increments:
                    merge_staged(connection, work.job.dictionary)
        except _NotAddedError:
            return False
        return True

    def chunk_failed(self, work: ChunkWork, error: Exception) -> bool:
        """Record why an attempt failed; False when it was the last one, which fails the job."""
        job_id, reason = work.job.job_id, _reason(error)
        with writing(self._engine) as connection:
            attempts = connection.execute(
                update(chunks)
                .where(chunks.c.job_id == job_id, chunks.c.chunk_index == work.chunk_index)
                .values(last_error=reason)
                .returning(chunks.c.attempts)
            ).scalar_one_or_none()
        if attempts is None or attempts < self._limits.max_chunk_attempts:
            return attempts is not None
        self.fail(job_id, self._poison_reason(work.chunk_index, reason))
        return False

    # Ends

    def finish(self, job_id: str) -> Job | None:
        """Settle a job whose every chunk is done: fold its dictionary into the sum. None when it is not so far."""
        with writing(self._engine) as connection:
            job = find_job(connection, job_id, lock=True)
            if job is None or job.state != JobState.RUNNING or job.num_chunks != job.chunks_done:
                return None
            if self._too_bad(job):
                end_job(connection, job, JobState.FAILED, self._too_bad_reason(job))
            else:
                fold_in(connection, job.dictionary)
                connection.execute(
                    update(jobs)
                    .where(jobs.c.job_id == job_id)
                    .values(state=JobState.SUCCEEDED, finished_at_ms=now_ms())
                )
            return get_job(connection, job_id)

    def fail(self, job_id: str, reason: str) -> None:
        """End the job as failed and forget its counts, unless it has ended already."""
        with writing(self._engine) as connection:
            job = find_job(connection, job_id, lock=True)
            if job is not None and job.state not in TERMINAL:
                end_job(connection, job, JobState.FAILED, reason)

    def lost_tasks(self, *, older_than_ms: int, queue_is_empty: bool) -> list[Task]:
        """
        Tasks that unfinished jobs need and that no queue holds any more, so far as can be told; each is told once.

        Work counts as lost when nobody has begun it since *older_than_ms* and it was queued before that, and either
        the queue is empty or work that was queued later has been begun.
        """
        is_active = jobs.c.state.in_(ACTIVE)
        with reading(self._engine) as connection:
            overtaken = connection.execute(
                select(func.max(chunks.c.queued_at_ms))
                .join_from(jobs, chunks)
                .where(is_active, chunks.c.claimed_at_ms.is_not(None))
            ).scalar_one()
            horizon = older_than_ms if queue_is_empty else min(older_than_ms, overtaken or 0)
            in_parts = (
                select(chunks.c.job_id)
                .where(chunks.c.job_id == jobs.c.job_id, chunks.c.output_name.is_(None))
                .where(_idle_since(chunks, older_than_ms, horizon))
            )
            whole = and_(_whole_is_due(), _idle_since(jobs, older_than_ms, horizon))
            suspected = select(jobs.c.job_id).where(is_active, or_(whole, in_parts.exists()))
            job_ids = list(connection.execute(suspected.order_by(jobs.c.job_id)).scalars())
        return [task for job_id in job_ids for task in self._lost_tasks_of(job_id, older_than_ms, horizon)]

    def _lost_tasks_of(self, job_id: str, older_than_ms: int, horizon_ms: int) -> list[Task]:
        with writing(self._engine) as connection:
            # Whoever holds the row is at work on the job, or looks for its lost tasks already.
            active = select(jobs.c.job_id).where(jobs.c.job_id == job_id, jobs.c.state.in_(ACTIVE))
            if connection.execute(active.with_for_update(skip_locked=True)).one_or_none() is None:
                return []
            whole = connection.execute(
                update(jobs)
                .where(
                    jobs.c.job_id == job_id,
                    _whole_is_due(),
                    _idle_since(jobs, older_than_ms, horizon_ms),
                )
                .values(queued_at_ms=now_ms())
                .returning(jobs.c.num_chunks)
            ).all()
            parts = connection.execute(
                update(chunks)
                .where(
                    chunks.c.job_id == job_id,
                    chunks.c.output_name.is_(None),
                    _idle_since(chunks, older_than_ms, horizon_ms),
                )
                .values(queued_at_ms=now_ms())
                .returning(chunks.c.chunk_index)
            ).scalars()
            tasks = [Task(TaskKind.CUT if row.num_chunks is None else TaskKind.FINISH, job_id) for row in whole]
            return tasks + [Task(TaskKind.CHUNK, job_id, chunk_index) for chunk_index in sorted(parts)]

    def _touch_running(self, connection: Connection, job_id: str) -> bool:
        """Take the job's row and say that its input is being read; False when it does not run."""
        touched = connection.execute(
            update(jobs).where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING).values(claimed_at_ms=now_ms())
        )
        return bool(touched.rowcount)

    def _mark_done(self, connection: Connection, work: ChunkWork, output_name: str, counts: ChunkCounts) -> None:
        job_id = work.job.job_id
        added = {name: jobs.c[name] + value for name, value in asdict(counts).items()}
        of_job = connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING)
            .values(chunks_done=jobs.c.chunks_done + 1, **added)
        )
        of_chunk = connection.execute(
            update(chunks)
            .where(chunks.c.job_id == job_id, chunks.c.chunk_index == work.chunk_index, chunks.c.output_name.is_(None))
            .values(output_name=output_name, last_error=None)
        )
        if of_job.rowcount == 0 or of_chunk.rowcount == 0:
            raise _NotAddedError

    def _add_rows(self, connection: Connection, job_id: str, rows_read: int, bad: Sequence[BadRow]) -> None:
        rows_bad = sum(row.num_rows for row in bad)  # in the unit of rows_read: their share is what fails a job
        connection.execute(
            update(jobs)
            .where(jobs.c.job_id == job_id)
            .values(rows_read=jobs.c.rows_read + rows_read, rows_bad=jobs.c.rows_bad + rows_bad)
        )
        if bad:
            values = [{"job_id": job_id, "line": row.line, "reason": printable(row.reason)} for row in bad]
            connection.execute(insert(bad_rows), values)

    def _too_bad(self, job: Job) -> bool:
        return job.rows_bad > self._limits.max_bad_row_share * job.rows_read

    def _too_bad_reason(self, job: Job) -> str:
        return (
            f"{job.rows_bad} of {job.rows_read} rows are bad; at most a share of {self._limits.max_bad_row_share:g} may"
            " be (TAESAR_MAX_BAD_ROW_SHARE); GET /jobs/{id}/errors lists them"
        )

    def _poison_reason(self, chunk_index: int, reason: str) -> str:
        return f"chunk {chunk_index} failed in {self._limits.max_chunk_attempts} attempts, the last: {reason}"


def _whole_is_due() -> Any:
    """The job waits for being cut, or finished, rather than for a chunk."""
    return or_(jobs.c.num_chunks.is_(None), jobs.c.num_chunks == jobs.c.chunks_done)


def _idle_since(table: Any, older_than_ms: int, horizon_ms: int) -> Any:
    begun = table.c.claimed_at_ms
    return and_(table.c.queued_at_ms < horizon_ms, or_(begun.is_(None), begun < older_than_ms))


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")

"""What clients ask of jobs, as SQL: record, look up, list, cancel, remove."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.access.audit import Act, append_act
from app.errors import IdempotencyConflictError, JobStateError, KeyLimitError, QueueFullError, ResultGoneError
from app.jobs.formats import BadRow
from app.jobs.records import (
    ACTIVE,
    JOB_COLUMNS,
    TERMINAL,
    Job,
    JobLimits,
    JobState,
    NewJob,
    end_job,
    find_job,
    get_job,
    job_of,
    output_names_of,
)
from app.mappings.mapping_store import drop, take_back
from app.runtime.logs import current_key_name
from app.storage.database import now_ms, reading, writing
from app.storage.tables import bad_rows, chunks, jobs
from models.item_counts import SEQUENCE_COUNTS

RETRY_AFTER_SECONDS = 30
BAD_ROWS_PAGE = 1000


class JobStore:
    """What clients ask of jobs; every method is one transaction."""

    def __init__(self, engine: Engine, limits: JobLimits) -> None:
        self.engine = engine
        self._limits = limits

    def record(self, job_id: str, new: NewJob) -> tuple[Job, bool]:
        """
        Record a job; (the job, whether it is new). An idempotency key that came before returns the job of then.

        Raises:
            IdempotencyConflictError: the key came before with another request.
            QueueFullError: too many jobs are unfinished.
            KeyLimitError: too many of the key that submits it are.
        """
        submitted_by = current_key_name()
        try:
            with writing(self.engine) as connection:
                known = _find_key(connection, new.idempotency_key, new.request_digest)
                if known is not None:
                    return known, False
                self._check_share(connection, submitted_by)
                unfinished = _num_unfinished(connection)
                if unfinished >= self._limits.max_unfinished_jobs:
                    raise QueueFullError(
                        waiting=unfinished,
                        capacity=self._limits.max_unfinished_jobs,
                        retry_after_seconds=RETRY_AFTER_SECONDS,
                    )
                zeros = dict.fromkeys((*SEQUENCE_COUNTS, "attempts", "chunks_done", "rows_read", "rows_bad"), 0)
                now = now_ms()
                connection.execute(
                    insert(jobs).values(
                        **asdict(new),
                        **zeros,
                        job_id=job_id,
                        state=JobState.QUEUED,
                        submitted_by=submitted_by,
                        created_at_ms=now,
                        queued_at_ms=now,
                    )
                )
                append_act(connection, Act.SUBMIT, job_id, source=new.source_uri or new.source_name)
                return get_job(connection, job_id), True
        except IntegrityError:  # the same key, at the same time
            with reading(self.engine) as connection:
                known = _find_key(connection, new.idempotency_key, new.request_digest)
                assert known is not None
                return known, False

    def with_key(self, key: str | None, request_digest: str) -> Job | None:
        """
        The job that the idempotency key made before, if any.

        Raises:
            IdempotencyConflictError: it did so with another request.
        """
        with reading(self.engine) as connection:
            return _find_key(connection, key, request_digest)

    def get(self, job_id: str) -> Job:
        """The job; raises UnknownJobError."""
        with reading(self.engine) as connection:
            return get_job(connection, job_id)

    def page(self, *, state: JobState | None, before: str | None, limit: int) -> list[Job]:
        """Up to *limit* jobs, newest first, older than the job *before*."""
        statement = select(*JOB_COLUMNS).order_by(jobs.c.job_id.desc()).limit(limit)
        if state is not None:
            statement = statement.where(jobs.c.state == state)
        if before is not None:
            statement = statement.where(jobs.c.job_id < before)
        with reading(self.engine) as connection:
            return [job_of(row) for row in connection.execute(statement)]

    def cancel(self, job_id: str) -> Job:
        """
        Stop the job and forget its counts; a chunk that is being worked on will not be added. Again: no change.

        Raises:
            UnknownJobError: there is none.
            JobStateError: it has succeeded or failed.
        """
        with writing(self.engine) as connection:
            job = get_job(connection, job_id, lock=True)
            if job.state in (JobState.SUCCEEDED, JobState.FAILED):
                raise JobStateError(f"job {job_id} has {job.state} already; remove=true removes it")
            if job.state != JobState.CANCELLED:
                end_job(connection, job, JobState.CANCELLED, None)
                append_act(connection, Act.CANCEL, job_id)
            return get_job(connection, job_id)

    def remove(self, job_id: str) -> None:
        """Forget the job, running or not, and take its counts back; raises UnknownJobError."""
        with writing(self.engine) as connection:
            job = get_job(connection, job_id, lock=True)
            if job.state == JobState.SUCCEEDED:
                take_back(connection, job.dictionary)
            drop(connection, job_id=job_id)
            connection.execute(delete(jobs).where(jobs.c.job_id == job_id))
            append_act(connection, Act.REMOVE, job_id)

    def _check_share(self, connection: Connection, submitted_by: str | None) -> None:
        if submitted_by is None:
            return
        of_key = _num_unfinished(connection, jobs.c.submitted_by == submitted_by)
        if of_key >= self._limits.max_unfinished_jobs_per_key:
            what = f"the key {submitted_by} has {of_key} unfinished jobs, its share"
            raise KeyLimitError(what, "TAESAR_KEY_UNFINISHED_JOBS", retry_after_seconds=RETRY_AFTER_SECONDS)

    def output_names(self, job_id: str) -> list[str]:
        """
        Names of the chunks' outputs, in input order.

        Raises:
            UnknownJobError: there is no such job.
            JobStateError: it has not succeeded.
            ResultGoneError: the result was pruned.
        """
        with reading(self.engine) as connection:
            job = get_job(connection, job_id)
            if job.state != JobState.SUCCEEDED:
                raise JobStateError(f"job {job_id} is {job.state}; only a succeeded job has a result")
            if job.pruned_at_ms is not None:
                raise ResultGoneError(f"the result of job {job_id} is past its retention and was removed")
            return output_names_of(connection, job_id)

    def bad_rows(self, job_id: str, *, after: int = 0, limit: int = BAD_ROWS_PAGE) -> list[BadRow]:
        """
        Up to *limit* of the bad rows found so far, by line, behind the line *after*.

        Raises:
            UnknownJobError: there is no such job.
            ResultGoneError: they were pruned.
        """
        statement = (
            select(bad_rows.c.line, bad_rows.c.reason)
            .where(bad_rows.c.job_id == job_id, bad_rows.c.line > after)
            .order_by(bad_rows.c.line)
            .limit(limit)
        )
        with reading(self.engine) as connection:
            if get_job(connection, job_id).pruned_at_ms is not None:
                raise ResultGoneError(f"the bad rows of job {job_id} are past their retention and were removed")
            return [BadRow(row.line, row.reason) for row in connection.execute(statement)]

    def prune(self, *, finished_before_ms: int) -> list[str]:
        """Forget results and bad rows of jobs that ended before the instant; their ids. Records and counts stay."""
        with writing(self.engine) as connection:
            pruned = (
                connection.execute(
                    update(jobs)
                    .where(
                        jobs.c.state.in_(TERMINAL),
                        jobs.c.finished_at_ms < finished_before_ms,
                        jobs.c.pruned_at_ms.is_(None),
                    )
                    .values(pruned_at_ms=now_ms())
                    .returning(jobs.c.job_id)
                )
                .scalars()
                .all()
            )
            for job_id in pruned:
                connection.execute(delete(chunks).where(chunks.c.job_id == job_id))
                connection.execute(delete(bad_rows).where(bad_rows.c.job_id == job_id))
            return sorted(pruned)

    def keeps_files(self, job_id: str) -> bool:
        """Whether the files of *job_id* are still needed."""
        with reading(self.engine) as connection:
            job = find_job(connection, job_id)
        ended = job is None or job.state in (JobState.FAILED, JobState.CANCELLED) or job.pruned_at_ms is not None
        return not ended


def _num_unfinished(connection: Connection, *which: ColumnElement[bool]) -> int:
    statement = select(func.count()).select_from(jobs).where(jobs.c.state.in_(ACTIVE), *which)
    return int(connection.execute(statement).scalar_one())


def _find_key(connection: Connection, key: str | None, request_digest: str) -> Job | None:
    if key is None:
        return None
    row = connection.execute(
        select(jobs.c.job_id, jobs.c.request_digest).where(jobs.c.idempotency_key == key)
    ).one_or_none()
    if row is None:
        return None
    if row.request_digest != request_digest:
        raise IdempotencyConflictError(f"the key {key!r} came before, with another request")
    return get_job(connection, row.job_id)

"""
How the work of jobs is tried again. All of it is here: attempts, reasons, back-off, lost work.

**Attempts.** To begin with an input or a chunk counts as an attempt before anything is done, so an attempt that kills
its worker is counted too. After the last one the job fails with the reason of the last. Attempts at an input count
from its last new chunk.

**Which errors count.** ``fault_of`` says it. A refusal fails the job at once. An outage, such as a full disk or a
database that is away, says nothing about the work: the attempt is taken back, and the job says what it waits for. Any
other error uses up its attempt.

**Back-off.** The queue delivers what failed again, later and later.

**Lost work.** Work that nobody has begun for long, although the queue is empty or has gone past it, is queued again.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from dramatiq.middleware import Retries
from sqlalchemy import Connection, Engine, and_, case, func, or_, select, update

from app.errors import (
    DestinationNotAllowedError,
    FilesUnavailableError,
    InvalidSourceError,
    ModelNotRunningError,
    ModelUnavailableError,
    RequestTooLargeError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StoreUnavailableError,
    UnknownModelError,
    UnsupportedFormatError,
)
from app.jobs.chunk_files import ChunkFileDamagedError
from app.jobs.records import ACTIVE, TERMINAL, Job, JobState, end_job, fail_job, find_job, get_job, printable
from app.jobs.tasks import Task, TaskKind
from app.storage.database import now_ms, reading, writing
from app.storage.tables import chunks, jobs
from models.errors import BundleError, InputFormatError, UnknownDomainError

MIN_BACKOFF_MS = 500
MAX_BACKOFF_MS = 15_000


class InputChangedError(Exception):
    """The input, read again after an interruption, is not what it was."""


REFUSALS = (
    InvalidSourceError,
    SourceNotAllowedError,
    DestinationNotAllowedError,
    SourceNotFoundError,
    RequestTooLargeError,
    UnsupportedFormatError,
    InputFormatError,
    InputChangedError,
    ChunkFileDamagedError,
    UnknownDomainError,
)
"""What no further attempt can mend: it lies in what the client asked for, or in what was kept of it."""


OUTAGES = (
    StoreUnavailableError,
    FilesUnavailableError,
    ModelUnavailableError,
    ModelNotRunningError,
    UnknownModelError,
    BundleError,
)
"""What has to do with where the work is done, not with the work: database, files, or the model."""

OUTAGE_CODES = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ETIMEDOUT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)
"""Errors of the system that do, whatever raised them: no room, no descriptors, no answer."""

WAITING = "waiting: "
"""How the reason of a job begins that waits for an outage to end."""


class Fault(Enum):
    """What an error means for the work that it ended."""

    REFUSAL = auto()  # the job fails at once
    OUTAGE = auto()  # the work waits; the attempt does not count
    FAILURE = auto()  # the attempt is used up


def fault_of(error: BaseException) -> Fault:
    """What *error* means for the work that it ended; an outage may stand behind another error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OUTAGES) or (isinstance(cause, OSError) and cause.errno in OUTAGE_CODES):
            return Fault.OUTAGE
        cause = cause.__cause__ or cause.__context__
    return Fault.REFUSAL if isinstance(error, REFUSALS) else Fault.FAILURE


def backoff() -> Retries:
    """The queue's part: a task that raised comes again, later and later, without end: attempts are counted in SQL."""
    return Retries(min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS)


@dataclass(frozen=True)
class ChunkWork:
    """A chunk that was begun: its job, its place and its input."""

    job: Job
    chunk_index: int
    input_name: str


class RetryStore:
    """
    Attempts in SQL; every method is one transaction.

    Args:
        engine: of the database.
        max_attempts: at a chunk, or at an input without a new chunk.
    """

    def __init__(self, engine: Engine, max_attempts: int) -> None:
        self._engine = engine
        self._max_attempts = max_attempts
        self._unsettled: deque[Callable[[], None]] = deque()
        self._settling = threading.Lock()

    # Inputs

    def begin_cutting(self, job_id: str) -> Job | None:
        """Count an attempt at the input; None when there is nothing (more) to cut, or it was begun too often."""
        self.settle()
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
            if attempts > self._max_attempts:
                last = "its worker died" if job.reason is None or job.reason.startswith(WAITING) else job.reason
                reason = f"the input could not be read in {self._max_attempts} attempts, the last: {last}"
                end_job(connection, job, JobState.FAILED, reason)
                return None
            return get_job(connection, job_id)

    def renew_cutting(self, job_id: str) -> None:
        """Say that the input is still being read: a chunk's worth of rows may take long to come together."""
        with writing(self._engine) as connection:
            renew_input(connection, job_id)

    def cutting_failed(self, job_id: str, error: Exception) -> bool:
        """Record why an attempt at the input failed; False when the job failed with it, True to try again."""
        if fault_of(error) is Fault.OUTAGE:
            self._settle_later(partial(self._take_back_cutting, job_id, error))
            return True
        with writing(self._engine) as connection:
            if fault_of(error) is Fault.REFUSAL:
                fail_job(connection, job_id, str(error))
                return False
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.num_chunks.is_(None))
                .values(reason=_describe(error))
            )
        return True  # also after the last attempt: beginning again finds that it was the last

    # Results

    def begin_delivery(self, job_id: str) -> Job | None:
        """Count an attempt to deliver the result; None when there is none (any more), or it was begun too often."""
        self.settle()
        with writing(self._engine) as connection:
            job = find_job(connection, job_id, lock=True)
            if job is None or job.state != JobState.RUNNING or job.num_chunks != job.chunks_done:
                return None
            attempts = connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id)
                .values(attempts=jobs.c.attempts + 1, claimed_at_ms=now_ms())
                .returning(jobs.c.attempts)
            ).scalar_one()
            if attempts > self._max_attempts:
                last = "its worker died" if job.reason is None or job.reason.startswith(WAITING) else job.reason
                reason = f"the result could not be written in {self._max_attempts} attempts, the last: {last}"
                end_job(connection, job, JobState.FAILED, reason)
                return None
            return job

    def delivery_failed(self, job_id: str, error: Exception) -> bool:
        """Record why the result could not be written; False when the job failed with it, True to try again."""
        if fault_of(error) is Fault.OUTAGE:
            self._settle_later(partial(self._take_back_delivery, job_id, error))
            return True
        with writing(self._engine) as connection:
            if fault_of(error) is Fault.REFUSAL:
                fail_job(connection, job_id, str(error))
                return False
            connection.execute(update(jobs).where(*_undelivered(job_id)).values(reason=_describe(error)))
        return True  # also after the last attempt: beginning again finds that it was the last

    # Chunks

    def begin_chunk(self, job_id: str, chunk_index: int) -> ChunkWork | None:
        """Count an attempt at the chunk; None when there is nothing (more) to do, or it was begun too often."""
        self.settle()
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
            if row.attempts <= self._max_attempts:
                return ChunkWork(job, chunk_index, row.input_name)
        died = row.last_error is None or row.last_error.startswith(WAITING)
        self._give_up(job_id, chunk_index, "its worker died" if died else row.last_error)
        return None

    def renew_chunk(self, work: ChunkWork) -> None:
        """Say that the chunk is still being worked on, so that it does not pass for lost."""
        with writing(self._engine) as connection:
            connection.execute(update(chunks).where(*_open_chunk(work)).values(claimed_at_ms=now_ms()))

    def chunk_failed(self, work: ChunkWork, error: Exception) -> bool:
        """Record why an attempt at the chunk failed; False when the job failed with it, True to try again."""
        if fault_of(error) is Fault.OUTAGE:
            self._settle_later(partial(self._take_back_chunk, work, error))
            return True
        job_id, reason = work.job.job_id, _describe(error)
        with writing(self._engine) as connection:
            if fault_of(error) is Fault.REFUSAL:
                fail_job(connection, job_id, str(error))
                return False
            attempts = connection.execute(
                update(chunks).where(*_open_chunk(work)).values(last_error=reason).returning(chunks.c.attempts)
            ).scalar_one_or_none()
        if attempts is None or attempts < self._max_attempts:
            return attempts is not None
        self._give_up(job_id, work.chunk_index, reason)
        return False

    # Outages

    def settle(self) -> None:
        """Take back the attempts that outages ended, as soon as the database answers; to be called now and then."""
        if not self._settling.acquire(blocking=False):
            return  # another thread does it
        try:
            while self._unsettled:
                self._unsettled[0]()
                self._unsettled.popleft()
        except StoreUnavailableError:
            pass  # the outage itself; later, then
        finally:
            self._settling.release()

    def _settle_later(self, take_back: Callable[[], None]) -> None:
        self._unsettled.append(take_back)
        self.settle()

    def _take_back_cutting(self, job_id: str, error: Exception) -> None:
        with writing(self._engine) as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.num_chunks.is_(None))
                .values(attempts=_one_less(jobs), reason=_describe_outage(error))
            )

    def _take_back_delivery(self, job_id: str, error: Exception) -> None:
        with writing(self._engine) as connection:
            values = {"attempts": _one_less(jobs), "reason": _describe_outage(error)}
            connection.execute(update(jobs).where(*_undelivered(job_id)).values(**values))

    def _take_back_chunk(self, work: ChunkWork, error: Exception) -> None:
        reason = _describe_outage(error)
        with writing(self._engine) as connection:
            is_open = select(chunks.c.job_id).where(*_open_chunk(work)).exists()
            connection.execute(  # the job's row first, as everywhere
                update(jobs)
                .where(jobs.c.job_id == work.job.job_id, jobs.c.state == JobState.RUNNING, is_open)
                .values(reason=reason)
            )
            connection.execute(
                update(chunks).where(*_open_chunk(work)).values(attempts=_one_less(chunks), last_error=reason)
            )

    # Lost work

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
                .where(jobs.c.job_id == job_id, _whole_is_due(), _idle_since(jobs, older_than_ms, horizon_ms))
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

    def _give_up(self, job_id: str, chunk_index: int, reason: str) -> None:
        """Fail the job in a transaction of its own: its row is locked before its chunks, never after."""
        with writing(self._engine) as connection:
            fail_job(
                connection, job_id, f"chunk {chunk_index} failed in {self._max_attempts} attempts, the last: {reason}"
            )


def renew_input(connection: Connection, job_id: str) -> bool:
    """Take the job's row and say that its input is being read; False when it does not run."""
    renewed = connection.execute(
        update(jobs).where(jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING).values(claimed_at_ms=now_ms())
    )
    return bool(renewed.rowcount)


def forget_attempts(connection: Connection, job_id: str) -> None:
    """Let attempts at the input count from here, since it has made headway; it waits for nothing any more."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(attempts=0, reason=None))


def forget_outage(connection: Connection, job_id: str) -> None:
    """Let a job whose chunk was done say no more that it waits."""
    waits = (jobs.c.job_id == job_id, jobs.c.reason.startswith(WAITING))
    connection.execute(update(jobs).where(*waits).values(reason=None))


def _open_chunk(work: ChunkWork) -> tuple[Any, ...]:
    is_it = (chunks.c.job_id == work.job.job_id, chunks.c.chunk_index == work.chunk_index)
    return (*is_it, chunks.c.output_name.is_(None))


def _whole_is_due() -> Any:
    """The job waits for being cut, or finished, rather than for a chunk."""
    return or_(jobs.c.num_chunks.is_(None), jobs.c.num_chunks == jobs.c.chunks_done)


def _idle_since(table: Any, older_than_ms: int, horizon_ms: int) -> Any:
    begun = table.c.claimed_at_ms
    return and_(table.c.queued_at_ms < horizon_ms, or_(begun.is_(None), begun < older_than_ms))


def _undelivered(job_id: str) -> tuple[Any, ...]:
    """The job, while all that is left to do is to write its result."""
    return jobs.c.job_id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.num_chunks == jobs.c.chunks_done


def _one_less(table: Any) -> Any:
    return case((table.c.attempts > 0, table.c.attempts - 1), else_=0)


def _describe_outage(error: Exception) -> str:
    return printable(f"{WAITING}{type(error).__name__}: {error}")


def _describe(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")

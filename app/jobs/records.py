"""
Jobs as SQL holds them: records, states and counts. ``job_store`` is the clients' side, ``chunks`` the workers'.

    queued -> running -> succeeded | failed | cancelled

Order of locks, which keeps transactions from deadlocking: one job's row, then its chunks, then dictionaries.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import Connection, delete, select, update

from app.errors import UnknownJobError
from app.jobs.formats import SourceFormat
from app.mappings.mapping_store import DictionaryKey, drop
from app.storage.database import now_ms
from app.storage.tables import chunks, jobs
from models.exports.encoding import ResultView
from models.item_counts import SequenceCounts

MAX_REASON = 500

Purpose = Literal["live", "training"]
"""What a job's sequences are: histories to answer after, or the rows that the bundle was trained on."""


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = tuple(state for state in JobState if state not in TERMINAL)


@dataclass(frozen=True)
class NewJob:
    """
    What a client asks for.

    Args:
        source_uri: the input, or None when it was uploaded to the job's storage.
        input_description: of ``job_input``, where the URI or the upload does not say all.
        request_digest: hash of everything that makes the request what it is, uploaded content included.
        result_uri, result_format, result_view: where the result goes, and in which form; None: it is downloaded.
        carried: a JSON list of the input's columns that come along, or None.
        traceparent: the trace that the request belongs to, or None.
    """

    target_domain: str
    model_version: str
    rule: str
    on_unknown: str
    purpose: Purpose
    source_uri: str | None
    source_name: str
    source_format: SourceFormat
    request_digest: str
    input_description: str | None = None
    idempotency_key: str | None = None
    result_uri: str | None = None
    result_format: str | None = None
    result_view: ResultView | None = None
    carried: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job(SequenceCounts):
    """A job as SQL holds it, with its counts so far; see ``app.storage.tables`` for what is not said by the names."""

    job_id: str
    state: JobState
    target_domain: str
    model_version: str
    rule: str
    on_unknown: str
    purpose: Purpose
    source_uri: str | None
    source_name: str
    source_format: SourceFormat
    input_description: str | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    pruned_at_ms: int | None
    num_chunks: int | None
    chunks_done: int
    rows_read: int
    rows_bad: int
    reason: str | None
    result_uri: str | None = None
    result_format: str | None = None
    result_view: ResultView | None = None
    carried: str | None = None
    traceparent: str | None = None
    input_warnings: str | None = None
    whole_times: bool | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the input, once it has been read to its end."""
        return tuple(json.loads(self.input_warnings or "[]"))

    @property
    def carried_columns(self) -> tuple[str, ...]:
        """The input's columns that come along."""
        return tuple(json.loads(self.carried or "[]"))

    @property
    def dictionary(self) -> DictionaryKey:
        """The key of the job's own dictionary."""
        return DictionaryKey(self.target_domain, self.model_version, self.rule, self.job_id)


@dataclass(frozen=True)
class JobLimits:
    """Settings, with their defaults filled in."""

    max_unfinished_jobs: int
    max_unfinished_jobs_per_key: int
    max_bad_row_share: float


def new_job_id() -> str:
    """32 hexadecimal digits that begin with the present instant, so ids sort by age."""
    return f"{now_ms():012x}{secrets.token_hex(10)}"


def created_at_ms_of(job_id: str) -> int | None:
    """The instant that ``new_job_id`` wrote into *job_id*; None when it is no job id."""
    try:
        return int(job_id[:12], 16) if len(job_id) == 32 and int(job_id, 16) >= 0 else None
    except ValueError:
        return None


JOB_COLUMNS = tuple(jobs.c[field.name] for field in fields(Job))


def job_of(row: Any) -> Job:
    """The job of a row of ``JOB_COLUMNS``."""
    values = dict(row._mapping)
    return Job(**{**values, "state": JobState(values["state"])})


def find_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job | None:
    """The job or None; *lock* holds its row until the transaction ends."""
    if created_at_ms_of(job_id) is None:  # never asked of the database, which may refuse such text (NUL)
        return None
    statement = select(*JOB_COLUMNS).where(jobs.c.job_id == job_id)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    return None if row is None else job_of(row)


def output_names_of(connection: Connection, job_id: str) -> list[str]:
    """Names of the outputs of the job's chunks, in input order."""
    statement = select(chunks.c.output_name).where(chunks.c.job_id == job_id).order_by(chunks.c.chunk_index)
    return list(connection.execute(statement).scalars())


def get_job(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    """``find_job`` that raises UnknownJobError."""
    job = find_job(connection, job_id, lock=lock)
    if job is None:
        raise UnknownJobError(job_id)
    return job


def end_job(connection: Connection, job: Job, state: JobState, reason: str | None) -> None:
    """
    Give a job whose row is locked its last state; its counts and chunks go, its bad rows stay to be read.

    Not for success: ``ChunkStore.finish`` keeps what this removes.
    """
    assert state in (JobState.FAILED, JobState.CANCELLED)
    drop(connection, job_id=job.job_id)
    connection.execute(delete(chunks).where(chunks.c.job_id == job.job_id))
    connection.execute(
        update(jobs)
        .where(jobs.c.job_id == job.job_id)
        .values(state=state, finished_at_ms=now_ms(), reason=None if reason is None else printable(reason))
    )


def fail_job(connection: Connection, job_id: str, reason: str) -> None:
    """End the job as failed and forget its counts, unless it has ended already."""
    job = find_job(connection, job_id, lock=True)
    if job is not None and job.state not in TERMINAL:
        end_job(connection, job, JobState.FAILED, reason)


def printable(text: str) -> str:
    """PostgreSQL refuses NUL in text; a reason or a name is one short line."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON]

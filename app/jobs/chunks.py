"""
The workers' side of jobs, as SQL: chunks are added, count once, and end their job. Attempts are in ``retries``.

A job's input is cut into chunks; a chunk is begun at least once and counts exactly once: its counts, its bad rows, its
mapping increments and the name of its output change in one transaction, which first takes the job's row and goes
through only while the job is running and the chunk is not done. So whatever is killed, repeated or late, nothing is
lost and nothing doubled; and once a cancellation has committed, nothing of the job can be added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, Engine, insert, select, update

from app.jobs.formats import BadRow
from app.jobs.records import Job, JobLimits, JobState, end_job, find_job, get_job, output_names_of, printable
from app.jobs.retries import ChunkWork, InputChangedError, forget_attempts, forget_outage, renew_input
from app.jobs.turns import NOT_YET_MS
from app.mappings.mapping_store import Increment, fold_in, merge_staged, stage
from app.storage.database import now_ms, reading, writing
from app.storage.tables import bad_rows, chunks, jobs
from models.item_counts import SequenceCounts


class _NotAddedError(Exception):
    """Takes a transaction back: the chunk counted before, or its job no longer runs."""


class ChunkStore:
    """What workers do to jobs; every method is one transaction."""

    def __init__(self, engine: Engine, limits: JobLimits) -> None:
        self._engine = engine
        self._limits = limits

    def add_chunk(
        self, job_id: str, chunk_index: int, *, input_name: str, num_rows: int, rows_read: int, bad: Sequence[BadRow]
    ) -> bool:
        """
        Record a chunk and the rows that were read for it; False when the job no longer runs. Again: no change.

        ``Turns`` says when it is queued.

        Raises:
            InputChangedError: the chunk is known with another content.
        """
        with writing(self._engine) as connection:
            if not renew_input(connection, job_id):
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
                    queued_at_ms=NOT_YET_MS,
                )
            )
            self._add_rows(connection, job_id, rows_read, bad)
            forget_attempts(connection, job_id)
            return True

    def end_cutting(
        self,
        job_id: str,
        *,
        num_chunks: int,
        rows_read: int,
        bad: Sequence[BadRow],
        warnings: Sequence[str] = (),
        whole_times: bool = False,
    ) -> None:
        """
        Record that the input ends here, with rows behind the last chunk; fails a job without sequences.

        Args:
            warnings: what is odd about the input.
            whole_times: every time of it is a whole number.
        """
        with writing(self._engine) as connection:
            if not renew_input(connection, job_id):
                return
            job = get_job(connection, job_id)
            if job.num_chunks is not None:
                return
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id)
                .values(
                    num_chunks=num_chunks,
                    attempts=0,
                    reason=None,
                    input_warnings=json.dumps([printable(warning) for warning in warnings]),
                    whole_times=whole_times,
                )
            )
            self._add_rows(connection, job_id, rows_read, bad)
            job = get_job(connection, job_id)
            if self._too_bad(job):
                end_job(connection, job, JobState.FAILED, self._too_bad_reason(job))
            elif num_chunks == 0:
                end_job(connection, job, JobState.FAILED, "the input holds no sequence")

    def commit_chunk(
        self,
        work: ChunkWork,
        *,
        output_name: str,
        counts: SequenceCounts,
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
                forget_outage(connection, work.job.job_id)
                self._add_rows(connection, work.job.job_id, 0, bad)
                if increments:
                    merge_staged(connection, work.job.dictionary)
        except _NotAddedError:
            return False
        return True

    def finish(self, job_id: str, *, delivered: bool = False) -> Job | None:
        """
        Settle a job whose every chunk is done: fold its dictionary into the sum. None when it is not so far.

        A job whose result is to be written somewhere stays running until it is *delivered*.
        """
        with writing(self._engine) as connection:
            job = find_job(connection, job_id, lock=True)
            if job is None or job.state != JobState.RUNNING or job.num_chunks != job.chunks_done:
                return None
            if self._too_bad(job):
                end_job(connection, job, JobState.FAILED, self._too_bad_reason(job))
            elif job.result_uri is not None and not delivered:
                return job
            else:
                fold_in(connection, job.dictionary)
                connection.execute(
                    update(jobs)
                    .where(jobs.c.job_id == job_id)
                    .values(state=JobState.SUCCEEDED, finished_at_ms=now_ms(), reason=None)
                )
            return get_job(connection, job_id)

    def output_names(self, job_id: str) -> list[str]:
        """Names of the outputs so far, in input order."""
        with reading(self._engine) as connection:
            return output_names_of(connection, job_id)

    def _mark_done(self, connection: Connection, work: ChunkWork, output_name: str, counts: SequenceCounts) -> None:
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
            .values(output_name=output_name)
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

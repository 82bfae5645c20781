"""
Carrying out tasks: cut a job's input, regenerate a chunk, finish a job.

Any task may come twice, late, or at the same time in another process: what counts is decided in SQL (``chunks``), what
is tried again in ``retries``, and files are named by their content.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from app.errors import StoreUnavailableError
from app.jobs.chunk_files import read_chunk_file, read_result, write_chunk_file
from app.jobs.chunk_regeneration import regenerate_rows
from app.jobs.cutting import ChunkRows, cut_rows
from app.jobs.destinations import format_of_result
from app.jobs.formats import BadRow, SequenceRow
from app.jobs.job_input import input_of
from app.jobs.job_models import ModelSource
from app.jobs.parts import JobParts
from app.jobs.reading_process import ReadingUnwantedError, read_in_process
from app.jobs.records import Job, JobState
from app.jobs.results import encode_results, input_file, output_file, read_input_file, read_output_file
from app.jobs.retries import ChunkWork, Fault, fault_of
from app.jobs.tasks import Task, TaskKind
from app.runtime.job_metrics import ChunkOutcome
from app.runtime.logs import logger, stopwatch
from app.runtime.tracing import span
from models.data.reading.times import are_whole

log = logger(__name__)


class JobRunner:
    """
    Carries out tasks. Any of them may come twice, late, or at the same time elsewhere.

    Args:
        parts: database, queue and files.
        chunk_sequences: sequences of one chunk.
        computing: chunks in the model at once; threads beyond that read and write meanwhile.
        models: where models come from.
    """

    def __init__(self, parts: JobParts, *, chunk_sequences: int, computing: int, models: ModelSource) -> None:
        self._parts = parts
        self._chunk_sequences = chunk_sequences
        self._models = models
        self._computing = threading.BoundedSemaphore(computing)
        # How to renew what is worked on; replaced whole, so that another thread may read it.
        self._in_hand: tuple[Callable[[], None], ...] = ()
        self._taking = threading.Lock()

    def run(self, task: Task) -> None:
        """Carry out *task*; raises what should make the queue deliver it again."""
        if task.step is TaskKind.CUT:
            self._cut(task.job_id)
        elif task.step is TaskKind.CHUNK:
            self._chunk(task.job_id, task.chunk_index)
        else:
            self._deliver(task.job_id)

    def renew(self) -> None:
        """Say of all that is in hand that it is being worked on; to be called now and then from another thread."""
        for renew in self._in_hand:
            renew()

    @contextlib.contextmanager
    def _keep_renewed(self, renew: Callable[[], None]) -> Iterator[None]:
        with self._taking:
            self._in_hand += (renew,)
        try:
            yield
        finally:
            with self._taking:
                self._in_hand = tuple(other for other in self._in_hand if other is not renew)

    def _cut(self, job_id: str) -> None:
        retries = self._parts.retries
        job = retries.begin_cutting(job_id)
        if job is None:
            self._parts.remove_files_of_ended(job_id)
            return
        try:
            with (
                self._keep_renewed(partial(retries.renew_cutting, job_id)),
                span("job cut", parent=job.traceparent, taesar_job=job_id),
            ):
                self._cut_files(job)
        except ReadingUnwantedError:
            self._parts.remove_files_of_ended(job_id)
        except Exception as error:
            log.warning("cutting_failed", job_id=job_id, exc_info=fault_of(error) is Fault.FAILURE, reason=str(error))
            if retries.cutting_failed(job_id, error):
                raise
            self._parts.remove_files_of_ended(job_id)

    def _cut_files(self, job: Job) -> None:
        parts = self._parts
        given = input_of(job)
        files = given.files(job.job_id, parts.storage, parts.roots, parts.limits)
        warnings: list[str] = []
        read = read_in_process(
            files, given.layout, parts.limits, warn=warnings.append, is_wanted=partial(self._is_wanted, job.job_id)
        )
        with contextlib.closing(read) as rows:
            self._cut_rows(job, rows, warnings)

    def _is_wanted(self, job_id: str) -> bool:
        """Whether the job goes on, as far as can be told."""
        try:
            return self._parts.jobs.keeps_files(job_id)
        except StoreUnavailableError:
            return True

    def _cut_rows(self, job: Job, rows: Iterator[SequenceRow | BadRow], warnings: Sequence[str]) -> None:
        """Cut *rows* into chunks; *warnings* are complete when the last of them has come."""
        num_chunks = 0
        whole_times = True
        rest = ChunkRows()
        for part in cut_rows(rows, self._chunk_sequences):
            self._parts.metrics.count_bad_rows(sum(row.num_rows for row in part.bad))
            if not part.rows:  # the last, of nothing but bad rows
                rest = part
            elif self._add_chunk(job, num_chunks, part):
                num_chunks += 1
                whole_times = whole_times and all(are_whole(row.times) for row in part.rows)
            else:
                self._parts.remove_files_of_ended(job.job_id)
                return
        for warning in warnings:
            log.warning("input_is_odd", job_id=job.job_id, warning=warning)
        self._parts.chunks.end_cutting(
            job.job_id,
            num_chunks=num_chunks,
            rows_read=rest.rows_read,
            bad=rest.bad,
            warnings=warnings,
            whole_times=whole_times,
        )
        self._finish(job.job_id)

    def _add_chunk(self, job: Job, chunk_index: int, part: ChunkRows) -> bool:
        """Keep *part* as a chunk and let it have its turn; false where the job has ended meanwhile."""
        name = write_chunk_file(self._parts.storage, job.job_id, "input", chunk_index, input_file(part.rows))
        added = self._parts.chunks.add_chunk(
            job.job_id,
            chunk_index,
            input_name=name,
            num_rows=len(part.rows),
            rows_read=part.rows_read,
            bad=part.bad,
        )
        if added:
            self._parts.queue_next_chunks(job.job_id)
        return added

    def _chunk(self, job_id: str, chunk_index: int) -> None:
        retries = self._parts.retries
        work = retries.begin_chunk(job_id, chunk_index)
        if work is None:
            self._parts.remove_files_of_ended(job_id)
            return
        self._parts.queue_next_chunks(job_id)
        elapsed = stopwatch()
        try:
            with (
                self._keep_renewed(partial(retries.renew_chunk, work)),
                span("job chunk", parent=work.job.traceparent, taesar_job=job_id, taesar_chunk=chunk_index),
            ):
                added = self._rewrite(work)
        except Exception as error:  # whatever a chunk does, its job ends with a reason and other jobs go on
            is_failure = fault_of(error) is Fault.FAILURE
            log.warning("chunk_failed", job_id=job_id, chunk=chunk_index, exc_info=is_failure, reason=str(error))
            again = retries.chunk_failed(work, error)
            outcome: ChunkOutcome = "failed" if not again else "retried" if is_failure else "waiting"
            self._parts.metrics.observe_chunk(outcome, elapsed())
            if again:
                raise
            self._parts.remove_files_of_ended(job_id)
            return
        self._parts.metrics.observe_chunk("done" if added else "dropped", elapsed())
        log.info("chunk_done", job_id=job_id, chunk=chunk_index, added=added)
        if not added:
            self._parts.remove_files_of_ended(job_id)
        self._parts.queue_next_chunks(job_id)
        self._finish(job_id)

    def _rewrite(self, work: ChunkWork) -> bool:
        rows = read_input_file(read_chunk_file(self._parts.storage, work.job.job_id, work.input_name))
        model = self._models.regenerator(work.job.model_version, work.job.rule)
        with self._computing, span("regenerate", taesar_sequences=len(rows)):
            result = regenerate_rows(model, work.job, rows)
        self._parts.metrics.count_bad_rows(sum(row.num_rows for row in result.bad))
        output = output_file(result.rows)
        name = write_chunk_file(self._parts.storage, work.job.job_id, "output", work.chunk_index, output)
        return self._parts.chunks.commit_chunk(
            work, output_name=name, counts=result.counts, bad=result.bad, increments=result.increments
        )

    def _finish(self, job_id: str, *, delivered: bool = False) -> None:
        job = self._parts.chunks.finish(job_id, delivered=delivered)
        if job is None:
            return
        if job.state is JobState.RUNNING:  # its result is to be written: a task of its own, which may fail by itself
            self._parts.queue.put(Task(TaskKind.FINISH, job_id))
            return
        self._remove_needless_files(job)

    def _remove_needless_files(self, ended: Job) -> None:
        log.info("job_ended", job_id=ended.job_id, state=ended.state, reason=ended.reason)
        if ended.state is JobState.SUCCEEDED:
            self._parts.storage.delete_folder(f"{ended.job_id}/input")
        else:
            self._parts.remove_files_of_ended(ended.job_id)

    def _deliver(self, job_id: str) -> None:
        """Write the result where the job says, if it does, and settle the job."""
        parts = self._parts
        waiting = parts.chunks.finish(job_id)
        if waiting is None:
            parts.remove_files_of_ended(job_id)
            return
        if waiting.state is not JobState.RUNNING:
            self._remove_needless_files(waiting)
            return
        job = parts.retries.begin_delivery(job_id)
        if job is None:
            parts.remove_files_of_ended(job_id)
            return
        try:
            with (
                self._keep_renewed(partial(parts.retries.renew_cutting, job_id)),
                span("job result", parent=job.traceparent, taesar_job=job_id),
            ):
                self._write_result(job)
        except Exception as error:
            log.warning("delivery_failed", job_id=job_id, exc_info=fault_of(error) is Fault.FAILURE, reason=str(error))
            if parts.retries.delivery_failed(job_id, error):
                raise
            parts.remove_files_of_ended(job_id)
            return
        self._finish(job_id, delivered=True)

    def _write_result(self, job: Job) -> None:
        assert job.result_uri is not None
        names = self._parts.chunks.output_names(job.job_id)
        tables = map(read_output_file, read_result(self._parts.storage, job.job_id, names))
        chosen = format_of_result(job.result_uri, job.result_format, job.result_view)
        encoded = encode_results(
            tables,
            chosen,
            job.result_view,
            carried=job.carried_columns,
            whole_times=bool(job.whole_times),
            is_download=False,
        )
        with contextlib.closing(encoded) as content:
            self._parts.destinations.write(job.result_uri, content)

"""
Carrying out tasks: cut a job's input, regenerate a chunk, finish a job.

Any task may come twice, late, or at the same time in another process: what counts is decided in SQL (``chunks``), what
is tried again in ``retries``, and files are named by their content.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from app.jobs.chunk_regeneration import regenerate_rows
from app.jobs.chunks import ChunkStore
from app.jobs.cutting import ChunkRows, cut_rows
from app.jobs.formats import SourceLimits, read_rows
from app.jobs.job_models import ModelSource
from app.jobs.queue import TaskQueue
from app.jobs.records import Job
from app.jobs.results import input_file, output_file, read_input_file
from app.jobs.retries import ChunkWork, InputChangedError, RetryStore
from app.jobs.sources import SourceRoots
from app.jobs.tasks import Task, TaskKind
from app.runtime.logs import logger
from app.storage.job_files import Storage

log = logger(__name__)

UPLOAD = "input/upload"
"""Name of an uploaded input inside its job's folder."""


class JobRunner:
    """
    Carries out tasks. Any of them may come twice, late, or at the same time elsewhere.

    Args:
        chunks: where chunks are added and counted.
        retries: where attempts are counted.
        queue: where following tasks are put.
        storage: jobs' files.
        roots: which URIs may be read.
        limits: of inputs.
        chunk_sequences: sequences of one chunk.
        computing: chunks in the model at once; threads beyond that read and write meanwhile.
        models: where models come from.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        retries: RetryStore,
        queue: TaskQueue,
        storage: Storage,
        *,
        roots: SourceRoots,
        limits: SourceLimits,
        chunk_sequences: int,
        computing: int,
        models: ModelSource,
    ) -> None:
        self._chunks = chunks
        self._retries = retries
        self._queue = queue
        self._storage = storage
        self._roots = roots
        self._limits = limits
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
            self._finish(task.job_id)

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
        job = self._retries.begin_cutting(job_id)
        if job is None:
            return
        try:
            with self._keep_renewed(partial(self._retries.renew_cutting, job_id)), self._open_input(job) as file:
                self._cut_file(job, file)
        except Exception as error:
            log.warning("cutting_failed", job_id=job_id, exc_info=True)
            if self._retries.cutting_failed(job_id, error):
                raise

    def _cut_file(self, job: Job, file: BinaryIO) -> None:
        num_chunks = 0
        rest = ChunkRows()
        for part in cut_rows(read_rows(file, job.source_format, self._limits), self._chunk_sequences):
            if not part.rows:
                rest = part
                break
            content = input_file(part.rows)
            name = f"input/{num_chunks:08d}-{_digest(content)}.parquet"
            self._storage.write(f"{job.job_id}/{name}", content)
            if not self._chunks.add_chunk(
                job.job_id,
                num_chunks,
                input_name=name,
                num_rows=len(part.rows),
                rows_read=part.rows_read,
                bad=part.bad,
            ):
                return
            self._queue.put(Task(TaskKind.CHUNK, job.job_id, num_chunks))
            num_chunks += 1
        self._chunks.end_cutting(job.job_id, num_chunks=num_chunks, rows_read=rest.rows_read, bad=rest.bad)
        self._finish(job.job_id)

    def _open_input(self, job: Job) -> BinaryIO:
        if job.source_uri is None:
            return self._storage.open(f"{job.job_id}/{UPLOAD}")
        return self._roots.open(job.source_uri, self._limits)

    def _chunk(self, job_id: str, chunk_index: int) -> None:
        work = self._retries.begin_chunk(job_id, chunk_index)
        if work is None:
            return
        try:
            with self._keep_renewed(partial(self._retries.renew_chunk, work)):
                added = self._rewrite(work)
        except Exception as error:  # whatever a chunk does, its job ends with a reason and other jobs go on
            log.warning("chunk_failed", job_id=job_id, chunk=chunk_index, exc_info=True)
            if self._retries.chunk_failed(work, error):
                raise
            return
        log.info("chunk_done", job_id=job_id, chunk=chunk_index, added=added)
        self._finish(job_id)

    def _rewrite(self, work: ChunkWork) -> bool:
        content = self._storage.read(f"{work.job.job_id}/{work.input_name}")
        if _digest(content) not in work.input_name:
            raise InputChangedError(f"{work.input_name} is damaged")
        rows = read_input_file(content)
        model = self._models.regenerator(work.job.model_version, work.job.rule)
        with self._computing:
            result = regenerate_rows(model, work.job, rows)
        output = output_file(result.rows)
        # Named by content: a repeated or simultaneous attempt writes the same file.
        name = f"output/{work.chunk_index:08d}-{_digest(output)}.parquet"
        self._storage.write(f"{work.job.job_id}/{name}", output)
        return self._chunks.commit_chunk(
            work, output_name=name, counts=result.counts, bad=result.bad, increments=result.increments
        )

    def _finish(self, job_id: str) -> None:
        job = self._chunks.finish(job_id)
        if job is not None:
            log.info("job_ended", job_id=job_id, state=job.state, reason=job.reason)
            self._storage.delete_folder(f"{job_id}/input")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]

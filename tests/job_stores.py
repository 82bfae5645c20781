"""The stores of jobs, carried through their states by hand, with a clock that stands still."""

from sqlalchemy import select

from app.jobs.records import JobState, NewJob, fail_job
from app.mappings.mapping_store import DictionaryKey, Increment, MappingFilter, find_dictionary, stream
from app.storage.database import reading, writing
from app.storage.tables import chunks
from models.item_counts import SequenceCounts

NEW = NewJob(
    target_domain="kitchen",
    model_version="v1",
    rule="paper",
    on_unknown="skip",
    purpose="live",
    source_uri="file:///in.ndjson",
    source_name="in.ndjson",
    source_format="ndjson",
    request_digest="d",
)
ONE = Increment("food", "f1", "k1", 1, 10)
FIRST, SECOND, THIRD = (f"{n:032x}" for n in (1, 2, 3))


class Clock:
    """The instant that the stores take for the present one."""

    def __init__(self):
        self.now = 1000

    def __call__(self):
        return self.now


class Stores:
    """Jobs that are carried through their states by hand."""

    def __init__(self, parts):
        self.parts = parts
        self.jobs, self.chunks, self.retries = parts.jobs, parts.chunks, parts.retries

    def submit(self, *job_ids):
        for job_id in job_ids:
            self.jobs.record(job_id, NEW)

    def add(self, job_id, index, *, rows_read=1, bad=(), name="in"):
        """Add a chunk and queue those whose turn has come."""
        added = self.chunks.add_chunk(
            job_id, index, input_name=f"{name}{index}", num_rows=1, rows_read=rows_read, bad=list(bad)
        )
        self.parts.turns.take(job_id)
        return added

    def cut(self, *job_ids, num_chunks=1):
        """Submit them, begin with their inputs and cut these into *num_chunks*."""
        for job_id in job_ids:
            self.submit(job_id)
            assert self.retries.begin_cutting(job_id) is not None
            for index in range(num_chunks):
                assert self.add(job_id, index)
            self.chunks.end_cutting(job_id, num_chunks=num_chunks, rows_read=0, bad=[])

    def do(self, job_id, index=0, *, increments=(ONE,), bad=(), **counts):
        work = self.retries.begin_chunk(job_id, index)
        return self.commit(work, increments=increments, bad=bad, **counts)

    def commit(self, work, *, increments=(), bad=(), **counts):
        return self.chunks.commit_chunk(
            work,
            output_name=f"out{work.chunk_index}",
            counts=SequenceCounts(**counts),
            bad=list(bad),
            increments=list(increments),
        )

    def fail(self, job_id, reason="no"):
        with writing(self.parts.engine) as connection:
            fail_job(connection, job_id, reason)

    def finished(self, *job_ids):
        self.cut(*job_ids)
        for job_id in job_ids:
            assert self.do(job_id)
            assert self.chunks.finish(job_id).state == JobState.SUCCEEDED

    def states(self, *job_ids):
        return [self.jobs.get(job_id).state for job_id in job_ids]

    def chunks_of(self, job_id):
        with reading(self.parts.engine) as connection:
            statement = select(chunks.c.chunk_index).where(chunks.c.job_id == job_id).order_by(chunks.c.chunk_index)
            return list(connection.execute(statement).scalars())

    def counted(self, job_id=""):
        """(source, target) -> count in the job's dictionary, or in that of all jobs."""
        with reading(self.parts.engine) as connection:
            found = find_dictionary(connection, DictionaryKey("kitchen", "v1", "paper", job_id))
            blocks = [] if found is None else stream(connection, found, MappingFilter())
            return {(row.source_item, row.target_item): row.count for block in blocks for row in block}

    def lost(self, *, older_than_ms, queue_is_empty=True):
        return self.retries.lost_tasks(older_than_ms=older_than_ms, queue_is_empty=queue_is_empty)

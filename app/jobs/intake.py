"""Accepting a job: its input is checked, an upload is kept, the record is made, and only then the work is queued."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import BinaryIO

from app.errors import IdempotencyConflictError, KeyLimitError, QueueFullError
from app.jobs.destinations import format_of_result
from app.jobs.formats import SourceFormat, format_of
from app.jobs.job_bodies import JobOptions, JobRequest
from app.jobs.job_input import JobInput, describe_input, with_domain
from app.jobs.parts import UPLOAD, JobParts
from app.jobs.reading_process import check_in_process
from app.jobs.records import Job, NewJob, new_job_id, printable
from app.jobs.sources import check_size
from app.jobs.tasks import Task, TaskKind
from app.runtime.tracing import current_traceparent
from models.data.reading.places import InputFile
from models.data.reading.rows import FileFacts

DIGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Accepted:
    """A job, and whether this request made it: False when its idempotency key came before."""

    job: Job
    is_new: bool


@dataclass(frozen=True)
class _Recorded:
    """What is recorded of an input: where it lies (None: uploaded), its name, and a hash of the whole request."""

    uri: str | None
    name: str
    format: SourceFormat
    digest: str
    description: str | None


class JobIntake:
    """
    Accepts jobs.

    Args:
        parts: of ``parts.job_parts``.
    """

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts

    def accept_uri(self, request: JobRequest, *, model_version: str, rule: str, key: str | None) -> Accepted:
        """
        Accept a job whose input lies at a URI.

        Raises:
            InvalidSourceError, SourceNotAllowedError, SourceNotFoundError, RequestTooLargeError: see ``SourceRoots``.
            DestinationNotAllowedError: the result may not go where it should.
            UnsupportedFormatError, InputFormatError: its beginning is not what it claims to be.
            IdempotencyConflictError, QueueFullError: see ``JobStore.record``.
        """
        digest = _digest(request.model_dump_json())
        known = self._parts.jobs.with_key(key, digest)  # first: by now the input may be gone
        if known is not None:
            return Accepted(known, is_new=False)
        self._check_destination(request)
        places, layout = request.places(), request.layout()
        files = self._parts.roots.files(places, self._parts.limits)
        format_of(files[0].facts.name, request.format)
        source_format = check_in_process(with_domain(files[0], request.domain), layout, self._parts.limits)
        name = places[0].rsplit("/", 1)[-1]
        described = describe_input(JobInput(tuple(places), name, request.domain, layout))
        given = _Recorded(" ".join(places), name, source_format, digest, described)
        return self._record(new_job_id(), _new_job(request, given, model_version=model_version, rule=rule, key=key))

    def accept_upload(
        self, options: JobOptions, file: BinaryIO, name: str, *, model_version: str, rule: str, key: str | None
    ) -> Accepted:
        """
        Accept a job whose input is *file*, which was uploaded under *name*; it is copied to the job's storage.

        Raises:
            RequestTooLargeError, UnsupportedFormatError, InputFormatError: the file cannot be used.
            InvalidSourceError, DestinationNotAllowedError: the result may not go where it should.
            IdempotencyConflictError, QueueFullError: see ``JobStore.record``.
        """
        self._check_destination(options)
        format_of(name, options.format)
        num_bytes = file.seek(0, 2)
        check_size(num_bytes, self._parts.limits)
        file.seek(0)
        shown_name = printable(name)[:255]
        facts = FileFacts(shown_name, options.domain)
        given_file = InputFile(facts, lambda: _another(file), num_bytes)
        source_format = check_in_process(given_file, options.layout(), self._parts.limits)
        file.seek(0)
        content = hashlib.sha256()
        while block := file.read(DIGEST_BYTES):
            content.update(block)
        file.seek(0)
        digest = _digest(json.dumps([options.model_dump_json(), source_format, content.hexdigest()]))
        described = describe_input(JobInput(None, shown_name, options.domain, options.layout()))
        given = _Recorded(None, shown_name, source_format, digest, described)
        new = _new_job(options, given, model_version=model_version, rule=rule, key=key)
        job_id = new_job_id()
        # The file first: a job that is known has its input.
        self._parts.storage.write_stream(f"{job_id}/{UPLOAD}", file)
        try:
            accepted = self._record(job_id, new)
        except (
            IdempotencyConflictError,
            QueueFullError,
            KeyLimitError,
        ):  # after others the job may have been recorded all the same
            self._parts.storage.delete_folder(job_id)
            raise
        if not accepted.is_new:
            self._parts.storage.delete_folder(job_id)
        return accepted

    def _check_destination(self, options: JobOptions) -> None:
        if options.result_uri is not None:
            self._parts.destinations.check(options.result_uri)
            format_of_result(options.result_uri, options.result_format, options.result_view)

    def _record(self, job_id: str, new: NewJob) -> Accepted:
        job, is_new = self._parts.jobs.record(job_id, new)
        if is_new:
            self._parts.queue.put(Task(TaskKind.CUT, job.job_id))
        return Accepted(job, is_new)


def _another(file: BinaryIO) -> BinaryIO:
    """An upload once more, at its start; closing it leaves *file* open."""
    file.seek(0)
    return os.fdopen(os.dup(file.fileno()), "rb")


def _new_job(options: JobOptions, given: _Recorded, *, model_version: str, rule: str, key: str | None) -> NewJob:
    return NewJob(
        target_domain=options.target_domain,
        model_version=model_version,
        rule=rule,
        on_unknown=options.on_unknown,
        purpose=options.purpose,
        source_uri=given.uri,
        source_name=given.name,
        source_format=given.format,
        request_digest=given.digest,
        input_description=given.description,
        idempotency_key=key,
        result_uri=options.result_uri,
        result_format=(
            None
            if options.result_uri is None
            else format_of_result(options.result_uri, options.result_format, options.result_view)
        ),
        result_view=options.result_view,
        carried=json.dumps(options.carry) if options.carry else None,
        traceparent=current_traceparent(),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

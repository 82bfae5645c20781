"""Bulk jobs: submit, watch, cancel, remove, download."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import StreamingResponse

from app.access.key_file import KeyScope
from app.errors import (
    ContentTypeError,
    DestinationNotAllowedError,
    FilesUnavailableError,
    IdempotencyConflictError,
    InvalidBodyError,
    InvalidCursorError,
    InvalidSourceError,
    JobStateError,
    KeyLimitError,
    ModelUnavailableError,
    NotAcceptableError,
    QueueFullError,
    RequestTooLargeError,
    ResultDamagedError,
    ResultGoneError,
    SourceNotAllowedError,
    SourceNotFoundError,
    StoreUnavailableError,
    UnknownJobError,
    UnknownModelError,
    UnsupportedFormatError,
)
from app.http.bodies import JSON, MAX_OPTIONS_BYTES, bodies_of, media_type, validated
from app.http.key_checks import check_scope, needs
from app.http.paging import decode_cursor, encode_cursor, preferred
from app.http.problems import problem_responses
from app.http.routes.models import inference_of
from app.http.streams import ClosingStream
from app.jobs.chunk_files import read_result
from app.jobs.formats import BadRow
from app.jobs.input_preview import InputPreview, preview_input
from app.jobs.intake import Accepted, JobIntake
from app.jobs.job_bodies import JobBody, JobOptions, JobPage, JobRequest
from app.jobs.parts import JobParts
from app.jobs.records import TERMINAL, Job, JobState
from app.jobs.results import MEDIA_TYPES, encode_results, read_output_file
from app.runtime.shutdown import Shutdown
from app.serving.model_registry import ModelRegistry
from models.errors import BundleError, InputFormatError, UnknownDomainError
from models.exports.encoding import ResultView
from models.exports.export_formats import FILE_FORMATS, FileFormatName, describe_formats

router = APIRouter(tags=["jobs"])

JOBS = needs(KeyScope.JOBS)
FORM = "multipart/form-data"
NDJSON = "application/x-ndjson"
EVENT_SECONDS = 0.5
MAX_PAGE = 1000
# Of the formats of one media type, the Accept header means the first.
_FORMAT_OF: dict[str, FileFormatName] = {kind: name for name, kind in reversed(list(MEDIA_TYPES.items()))}


def _in_a_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field as a form can send it: not null, but left out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if not kinds:
        return schema
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**rest, "anyOf": kinds}


UPLOAD_FORM: dict[str, Any] = {
    "title": "JobUpload",
    "type": "object",
    "additionalProperties": False,
    "required": ["target_domain", "file"],
    "properties": {
        **{name: _in_a_form(schema) for name, schema in JobOptions.model_json_schema()["properties"].items()},
        "file": {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
            "description": "The input.",
        },
    },
}
_UPLOAD = {"$ref": "#/components/schemas/JobUpload"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "example": {"target_domain": "kitchen", "source_uri": "file:///data/in/mixed.ndjson.gz"},
            },
            FORM: {"schema": _UPLOAD},
        },
    }
}


def _stream_of(*media_types: str) -> dict[str, Any]:
    return {"description": "A stream.", "content": {kind: {"schema": {"type": "string"}} for kind in media_types}}


def parts_of(request: Request) -> JobParts:
    """The application's job parts."""
    parts: JobParts = request.app.state.job_parts
    return parts


def shutdown_of(request: Request) -> Shutdown:
    """The end of the application's process."""
    shutdown: Shutdown = request.app.state.shutdown
    return shutdown


JobPartsOf = Annotated[JobParts, Depends(parts_of)]


@router.post(
    "/jobs",
    dependencies=[JOBS],
    status_code=202,
    summary="Submit a bulk job",
    openapi_extra=_BODY,
    responses=problem_responses(
        SourceNotAllowedError,
        DestinationNotAllowedError,
        SourceNotFoundError,
        UnknownDomainError,
        UnknownModelError,
        BundleError,
        IdempotencyConflictError,
        RequestTooLargeError,
        UnsupportedFormatError,
        ContentTypeError,
        RequestValidationError,
        InvalidBodyError,
        InvalidSourceError,
        InputFormatError,
        QueueFullError,
        KeyLimitError,
        ModelUnavailableError,
        StoreUnavailableError,
        FilesUnavailableError,
    ),
)
async def submit_job(
    request: Request,
    response: Response,
    parts: JobPartsOf,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x20-\x7e]+$",
            description="Sending a key again returns the job of the first time; with another request it is a 409.",
        ),
    ] = None,
) -> JobBody:
    """
    Rewrite a whole dataset, given as a URI (JSON) or as an upload (multipart form with the fields of JobOptions).

    The version that it names, or else the active one of now, does all of the job. 202: the job is recorded, and will be
    done whatever is restarted. The header Idempotent-Replayed says whether the key came before.
    """
    registry = inference_of(request).registry
    intake = JobIntake(parts)
    kind = media_type(request)
    if kind == FORM:
        accepted = await _accept_form(request, intake, registry, idempotency_key)
    elif kind == JSON:
        body = await bodies_of(request).options(JobRequest, request)
        bundle = await registry.description(body.model_version)
        bundle.vocabulary.domain_index(body.target_domain)
        accepted = await run_in_threadpool(
            intake.accept_uri, body, model_version=bundle.version, rule=registry.rule, key=idempotency_key
        )
    else:
        raise ContentTypeError(JSON, FORM)
    response.headers["Location"] = f"/jobs/{accepted.job.job_id}"
    response.headers["Idempotent-Replayed"] = "false" if accepted.is_new else "true"
    return JobBody.of(accepted.job)


@router.get(
    "/jobs",
    dependencies=[JOBS],
    summary="List jobs, newest first",
    responses=problem_responses(RequestValidationError, InvalidCursorError, StoreUnavailableError),
)
def list_jobs(
    parts: JobPartsOf,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs on a page.")] = 50,
    cursor: Annotated[str | None, Query(description="'next' of the page before.")] = None,
) -> JobPage:
    """Keyset pages: jobs submitted meanwhile neither shift nor repeat what the next page shows."""
    before = None if cursor is None else decode_cursor(cursor, 1)[0]
    found = parts.jobs.page(state=state, before=before, limit=limit + 1)
    following = encode_cursor([found[limit - 1].job_id]) if len(found) > limit else None
    return JobPage(jobs=[JobBody.of(job) for job in found[:limit]], next=following)


@router.get(
    "/jobs/{job_id}",
    dependencies=[JOBS],
    summary="One job",
    responses=problem_responses(UnknownJobError, RequestValidationError, StoreUnavailableError),
)
def get_job(job_id: str, parts: JobPartsOf) -> JobBody:
    """State, progress and counts."""
    return JobBody.of(parts.jobs.get(job_id))


@router.delete(
    "/jobs/{job_id}",
    dependencies=[JOBS],
    summary="Cancel or remove a job",
    response_model=JobBody,
    responses={
        **problem_responses(UnknownJobError, JobStateError, RequestValidationError, StoreUnavailableError),
        204: {"description": "Removed."},
    },
)
def delete_job(
    request: Request,
    job_id: str,
    parts: JobPartsOf,
    remove: Annotated[
        bool,
        Query(
            description="Remove the job, whatever its state: its record, its files and its counts. A key needs the "
            "scope admin for it."
        ),
    ] = False,
) -> Response | JobBody:
    """
    Cancel: no chunk of the job counts any more once this has been answered, and none of its counts remain.

    Cancelling twice changes nothing; what has succeeded or failed can only be removed.
    """
    if remove:
        check_scope(request, KeyScope.ADMIN)
        parts.jobs.remove(job_id)
        parts.storage.delete_folder(job_id)
        return Response(status_code=204)
    job = parts.jobs.cancel(job_id)
    parts.storage.delete_folder(job_id)
    return JobBody.of(job)


def job_of(job_id: str, parts: JobPartsOf) -> Job:
    """The job of the path; raises UnknownJobError."""
    return parts.jobs.get(job_id)


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[JOBS],
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses={
        **problem_responses(UnknownJobError, RequestValidationError, StoreUnavailableError),
        200: _stream_of("text/event-stream"),
    },
)
async def follow_job(
    job: Annotated[Job, Depends(job_of)], parts: JobPartsOf, shutdown: Annotated[Shutdown, Depends(shutdown_of)]
) -> AsyncIterator[ServerSentEvent]:
    """
    Server-sent events: `progress` with the job whenever it has changed, `end` with the job when it has ended.

    A stream without `end` was cut, as by a restart of the service: follow again.
    """
    shown: Job | None = None
    while True:
        if job != shown:
            name = "end" if job.state in TERMINAL else "progress"
            yield ServerSentEvent(event=name, data=JobBody.of(job))
            shown = job
        if job.state in TERMINAL:
            return
        if await shutdown.begins_within(EVENT_SECONDS):
            return  # a job takes longer than the server has; its follower asks the next one
        try:
            job = await run_in_threadpool(parts.jobs.get, job.job_id)
        except StoreUnavailableError:
            continue  # a restart of the database does not end the stream
        except UnknownJobError:
            yield ServerSentEvent(event="end", raw_data="null")
            return


@router.get(
    "/jobs/{job_id}/result",
    dependencies=[JOBS],
    summary="Download the result",
    response_class=StreamingResponse,
    responses={
        **problem_responses(
            UnknownJobError,
            NotAcceptableError,
            JobStateError,
            ResultGoneError,
            UnsupportedFormatError,
            ResultDamagedError,
            RequestValidationError,
            StoreUnavailableError,
            FilesUnavailableError,
        ),
        200: _stream_of(*_FORMAT_OF),
    },
)
def download_result(
    job_id: str,
    parts: JobPartsOf,
    result_format: Annotated[
        FileFormatName | None,
        Query(
            alias="format",
            description=f"Without it, the Accept header chooses. {describe_formats(FILE_FORMATS)}",
        ),
    ] = None,
    view: Annotated[
        ResultView | None,
        Query(
            description="'sequences': a row per sequence, or in text formats per item; 'interactions': a row per item "
            "that stays, with its time and where it comes from. Without it, sequences where the format has them."
        ),
    ] = None,
    accept: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """
    The rewritten sequences in the order of the input.

    As sequences, Parquet and NDJSON have one row per sequence with its counts; CSV and `.inter` one row per item, with
    its position from 1 as timestamp. As interactions, every format has one row per item: user, item, timestamp, origin
    (kept or replaced), source_item, source_domain, score; docs/files.md describes every column. In CSV, a text that a
    spreadsheet would take for a formula begins with '.
    """
    offered = list(dict.fromkeys(MEDIA_TYPES.values()))
    chosen = result_format or _FORMAT_OF[preferred(accept, offered)]
    contents = read_result(parts.storage, job_id, parts.jobs.output_names(job_id))
    job = parts.jobs.get(job_id)
    tables = (read_output_file(content) for content in contents)
    return ClosingStream(
        encode_results(tables, chosen, view, carried=job.carried_columns, whole_times=bool(job.whole_times)),
        media_type=MEDIA_TYPES[chosen],
        headers={"Content-Disposition": f'attachment; filename="{job_id}{FILE_FORMATS[chosen].suffix}"'},
    )


@router.get(
    "/jobs/{job_id}/errors",
    dependencies=[JOBS],
    summary="Download the bad rows",
    response_class=StreamingResponse,
    responses={
        **problem_responses(UnknownJobError, ResultGoneError, RequestValidationError, StoreUnavailableError),
        200: _stream_of(NDJSON),
    },
)
def download_errors(
    job_id: str,
    parts: JobPartsOf,
    limit: Annotated[int | None, Query(ge=1, le=MAX_PAGE, description="Only so many, the first; all else.")] = None,
) -> StreamingResponse:
    """One JSON object per bad row: its line in the input (in Parquet its row), from 1, and the reason."""
    if limit is not None:
        return StreamingResponse(iter(map(_error_line, parts.jobs.bad_rows(job_id, limit=limit))), media_type=NDJSON)
    first = parts.jobs.bad_rows(job_id)
    return StreamingResponse(_error_lines(parts, job_id, first), media_type=NDJSON)


def _error_lines(parts: JobParts, job_id: str, rows: list[BadRow]) -> Iterator[bytes]:
    """The bad rows from the page *rows* on. No connection waits with the generator for a client that reads slowly."""
    while rows:
        yield b"".join(map(_error_line, rows))
        rows = parts.jobs.bad_rows(job_id, after=rows[-1].line)


def _error_line(row: BadRow) -> bytes:
    return f"{json.dumps({'line': row.line, 'reason': row.reason})}\n".encode()


async def _accept_form(request: Request, intake: JobIntake, registry: ModelRegistry, key: str | None) -> Accepted:
    async with uploaded(request) as (options, file):
        bundle = await registry.description(options.model_version)
        bundle.vocabulary.domain_index(options.target_domain)
        return await run_in_threadpool(
            intake.accept_upload,
            options,
            file.file,
            _name_of(file),
            model_version=bundle.version,
            rule=registry.rule,
            key=key,
        )


@router.post(
    "/previews",
    dependencies=[JOBS],
    summary="See how an upload would be read",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/JobUpload"}}},
        }
    },
    responses=problem_responses(
        RequestTooLargeError,
        UnsupportedFormatError,
        ContentTypeError,
        RequestValidationError,
        InvalidBodyError,
        InvalidSourceError,
    ),
)
async def preview_upload(request: Request, parts: JobPartsOf) -> InputPreview:
    """
    The columns and first rows of a file, what each column is taken for, and why POST /jobs would refuse it, if so.

    Takes the form of POST /jobs and records nothing. The beginning of a text file is enough: some 256 KiB.
    """
    if media_type(request) != FORM:
        raise ContentTypeError(FORM)
    async with uploaded(request) as (options, file):
        return await run_in_threadpool(preview_input, options, file.file, _name_of(file), parts.limits)


@contextlib.asynccontextmanager
async def uploaded(request: Request) -> AsyncIterator[tuple[JobOptions, UploadFile]]:
    """
    The options and the file of a form, while the block runs.

    Raises:
        RequestValidationError: there is no file, or the options are none.
        InvalidBodyError: it is no form.
    """
    form = await _form_of(request)
    try:
        file = form.get("file")
        fields = {name: value for name, value in form.multi_items() if name != "file"}
        if not isinstance(file, UploadFile):
            missing = {"type": "missing", "loc": ("body", "file"), "msg": "a file is required", "input": None}
            raise RequestValidationError([missing])
        yield validated(JobOptions, json.dumps(fields, default=str)), file
    finally:
        await form.close()


async def _form_of(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=len(JobOptions.model_fields), max_part_size=MAX_OPTIONS_BYTES)
    except UnicodeError as error:  # the Content-Type may name any codec of Python's, also one that is none of text
        raise InvalidBodyError(f"the form is not in the charset that it names: {error}") from error


def _name_of(file: UploadFile) -> str:
    name = file.filename or ""
    try:
        name.encode()
    except UnicodeEncodeError as error:  # a charset such as utf-7 can spell half a character
        raise InvalidBodyError(f"the file's name is no text: {error.reason}") from error
    return name

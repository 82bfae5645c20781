"""What clients send and receive about jobs, as pydantic models with examples."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from app.errors import InvalidSourceError
from app.jobs.records import Job, JobState, Purpose
from app.serving.regeneration_bodies import Name, OnUnknown
from models.data.reading.input_formats import INPUT_FORMATS
from models.data.reading.layouts import (
    ENCODINGS,
    PRESETS,
    Condition,
    Layout,
    parse_condition,
    parse_separator,
    preset,
    with_columns,
)
from models.data.reading.times import TimeUnit
from models.errors import ConfigurationError
from models.exports.encoding import INTERACTION_COLUMNS, ResultView
from models.exports.export_formats import FileFormatName
from models.item_counts import ITEM_COUNTS

_JOB_ID = "019a1b2c3d4e5f60718293a4b5c6d7e8"
_JOB_EXAMPLE: dict[str, Any] = {
    "job_id": _JOB_ID,
    "state": "running",
    "target_domain": "kitchen",
    "model_version": "4f0c2a9be1d7",
    "rule": "paper",
    "on_unknown": "skip",
    "purpose": "live",
    "source": "file:///data/in/mixed.ndjson.gz",
    "format": "ndjson",
    "created_at": "2026-01-05T10:00:00Z",
    "started_at": "2026-01-05T10:00:00.120000Z",
    "finished_at": None,
    "progress": {"num_chunks": 20, "chunks_done": 7, "share": 0.35},
    "counts": {
        "rows_read": 10_240,
        "rows_bad": 3,
        "sequences": 3584,
        "kept": 40_211,
        "replaced": 37_404,
        "deleted": 12_870,
        "unknown": 12,
        "unknown_kept": 4,
        "truncated": 0,
    },
    "result_uri": "s3://results/march/kitchen.parquet",
    "result_format": "parquet",
    "result_view": "interactions",
    "carry": ["rating"],
    "reason": None,
    "warnings": [],
}


MAX_SOURCES = 256
# A job with more unknown items than this share has most likely been given another's ids.
MOSTLY = 0.5


def _one_or_more(value: object) -> object:
    # A form sends a list of one as the one
    return [value] if isinstance(value, str) else value


def _flag(value: object) -> object:
    # A form has no truth values; generated clients write Python's
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]


class JobOptions(BaseModel):
    """What is asked of a job, whatever its input."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    target_domain: Name = Field(description="The domain whose items the result holds.")
    model_version: Name | None = Field(
        None,
        description="The version that does all of the job, one of those that GET /models lists; without it the active "
        "one of now, never the canary.",
    )
    on_unknown: OnUnknown = Field(
        "skip",
        description="Items (or their domains) that the model does not know: 'skip' leaves those of the target domain "
        "in place, drops the others, and counts both; 'error' makes their row a bad row.",
    )
    purpose: Purpose = Field(
        "live",
        description="What the sequences are: 'live' histories, answered as POST /regenerate would; or 'training' rows "
        "of the data set that the bundle was trained on, to train recommenders on, as taesar regenerate would: rule "
        "anticipate then withholds what the experts recite of rows that they were trained on.",
    )
    format: Annotated[str, Field(max_length=16, json_schema_extra={"enum": list(INPUT_FORMATS)})] | None = Field(
        None, description="Of the input; without it, the ending of its name or its content says so."
    )
    domain: Name | None = Field(
        None, description="The domain of all rows, where neither a column nor the place of their file says it."
    )
    preset: Annotated[str, Field(max_length=64, json_schema_extra={"enum": list(PRESETS)})] | None = Field(
        None, description="Layout of a well-known log."
    )
    columns: Text | None = Field(
        None,
        description="Names of the columns, as 'user=reviewerID,item=asin,time=unixReviewTime' (domain=NAME, too); "
        "without a header their places from 1. Usual names are found without it.",
    )
    header: Flag | None = Field(None, description="Whether a first line names the columns; found without it.")
    separator: Annotated[str, Field(min_length=1, max_length=8)] | None = Field(
        None, description="Between the fields of a line, as ';' or '::'; found without it."
    )
    where: Annotated[list[Text], BeforeValidator(_one_or_more), Field(max_length=16)] | None = Field(
        None, description="Only rows for which these hold are read, as 'rating>=4'."
    )
    prefix_items: Flag = Field(False, description="Put the domain and a colon before every item.")
    time_unit: TimeUnit | None = Field(None, description="Of times that are numbers; found without it, for each file.")
    time_format: Annotated[str, Field(min_length=2, max_length=64)] | None = Field(
        None, description="Of times that are neither numbers nor dates of ISO 8601, as '%d/%m/%Y %H:%M'."
    )
    encoding: Annotated[str, Field(max_length=16, json_schema_extra={"enum": list(ENCODINGS)})] | None = Field(
        None, description="Of text that is not UTF-8; UTF-16 with its mark is found without it."
    )

    carry: Annotated[list[Name], BeforeValidator(_one_or_more), Field(max_length=16)] | None = Field(
        None,
        description="Columns of the input that come along, as texts, in the result's interactions; a replacement has "
        "those of its source item. Inputs of sequences have none.",
    )
    result_uri: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None,
        description="Where the result is written, whole, before the job has succeeded: under one of the places that "
        "TAESAR_OUTPUT_ROOTS allows. A file that is there is replaced.",
    )
    result_format: FileFormatName | None = Field(
        None, description="Of that; without it, the ending of its name says so."
    )
    result_view: ResultView | None = Field(
        None, description="Of that: a row per sequence or per interaction; see GET /jobs/{id}/result."
    )

    @field_validator("carry")
    @classmethod
    def _check_carry(cls, names: list[str] | None) -> list[str] | None:
        taken = [name for name in names or () if name in INTERACTION_COLUMNS]
        if taken:
            raise ValueError(f"{taken[0]!r} is a column of the result itself")
        if len(set(names or ())) < len(names or ()):
            raise ValueError("a column is named twice")
        return names

    @model_validator(mode="after")
    def _check_result(self) -> Self:
        if self.result_uri is None and (self.result_format or self.result_view):
            raise ValueError("result_format and result_view are of result_uri; a download says its own")
        return self

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str | None) -> str | None:
        if name is not None and name not in INPUT_FORMATS:
            raise ValueError(f"one of {', '.join(INPUT_FORMATS)}")
        return name

    def layout(self) -> Layout:
        """
        How the input is laid out, as ``taesar prepare`` is told.

        Raises:
            InvalidSourceError: columns, conditions or a format of times that are none, or no preset of that name.
        """
        try:
            layout = preset(self.preset) if self.preset else Layout()
            layout = with_columns(layout, self.columns) if self.columns else layout
            where = tuple(map(parse_condition, self.where or ()))
            return self._completed(layout, where)
        except ConfigurationError as error:
            raise InvalidSourceError(str(error)) from error

    def _completed(self, layout: Layout, where: tuple[Condition, ...]) -> Layout:
        return replace(
            layout,
            input_format=self.format or layout.input_format,
            header=layout.header if self.header is None else self.header,
            separator=parse_separator(self.separator) if self.separator else layout.separator,
            time_format=self.time_format,
            encoding=self.encoding,
            where=where,
            prefix_items=self.prefix_items,
            time_unit=self.time_unit or layout.time_unit,
            carried=tuple(self.carry or ()),
        )


class JobRequest(JobOptions):
    """A job whose input lies at a URI that the server may read: source_uri or sources says where."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"target_domain": "kitchen", "source_uri": "file:///data/in/mixed.ndjson.gz"}],
        },
    )

    source_uri: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None,
        description="A file, a folder or a glob under one of the places that TAESAR_INPUT_ROOTS allows, perhaps with "
        "its domain before it: 'books=file:///data/in/ratings_Books.csv'.",
    )
    sources: Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1)] | None = Field(
        None, max_length=MAX_SOURCES, description="Several of them, instead of source_uri."
    )

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if not self.model_fields_set & {"source_uri", "sources"}:
            raise ValueError("source_uri or sources is required")
        return self

    def places(self) -> list[str]:
        """Where the input lies; raises InvalidSourceError where nothing says so, or two fields do."""
        if (self.source_uri is None) == (self.sources is None):
            raise InvalidSourceError("either source_uri or sources says where the input lies")
        return [self.source_uri] if self.source_uri is not None else list(self.sources or ())


class JobProgress(BaseModel):
    """How far a job is."""

    num_chunks: int | None = Field(description="Parts of the input; null until it has been read to its end.")
    chunks_done: int
    share: float | None = Field(description="chunks_done / num_chunks, in [0, 1].")


class JobCounts(BaseModel):
    """What was read, and what became of it so far; sequences counts the rows of the result."""

    rows_read: int = Field(description="Lines or rows of the input.")
    rows_bad: int = Field(
        description="Those of rows_read that are left out; GET /jobs/{id}/errors lists them, a user who is left out "
        "with all rows once."
    )
    sequences: int
    kept: int
    replaced: int
    deleted: int
    unknown: int = Field(description="Items of other domains that the model does not know; skipped.")
    unknown_kept: int = Field(description="Items of the target domain that the model does not know; they stayed.")
    truncated: int


class JobBody(BaseModel):
    """A job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB_EXAMPLE]})

    job_id: str
    state: JobState
    target_domain: str
    model_version: str = Field(
        description="The bundle that the job named, or that was active when it came; it does all of it."
    )
    rule: str
    on_unknown: str
    purpose: str
    source: str = Field(description="The input's URI, or the name of the uploaded file.")
    format: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: JobProgress
    counts: JobCounts
    result_uri: str | None = Field(description="Where the result is once the job has succeeded; null: download it.")
    result_format: str | None
    result_view: str | None
    carry: list[str] = Field(description="Columns of the input that come along.")
    reason: str | None = Field(
        description="Why it failed; while it runs, what it waits for ('waiting: ...'), or why the last attempt at its "
        "input failed."
    )
    warnings: list[str] = Field(description="What is odd about its input so far, and what to do about it.")

    @classmethod
    def of(cls, job: Job) -> JobBody:
        """The job as clients see it."""
        share = None if not job.num_chunks else job.chunks_done / job.num_chunks
        return cls(
            job_id=job.job_id,
            state=job.state,
            target_domain=job.target_domain,
            model_version=job.model_version,
            rule=job.rule,
            on_unknown=job.on_unknown,
            purpose=job.purpose,
            source=job.source_uri or job.source_name,
            format=job.source_format,
            created_at=_instant(job.created_at_ms),
            started_at=None if job.started_at_ms is None else _instant(job.started_at_ms),
            finished_at=None if job.finished_at_ms is None else _instant(job.finished_at_ms),
            progress=JobProgress(num_chunks=job.num_chunks, chunks_done=job.chunks_done, share=share),
            counts=JobCounts(**{name: getattr(job, name) for name in JobCounts.model_fields}),
            result_uri=job.result_uri,
            result_format=job.result_format,
            result_view=job.result_view,
            carry=list(job.carried_columns),
            reason=job.reason,
            warnings=_warnings(job),
        )


class JobPage(BaseModel):
    """Jobs, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"jobs": [_JOB_EXAMPLE], "next": None}]})

    jobs: list[JobBody]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


def _warnings(job: Job) -> list[str]:
    found = list(job.warnings)
    unknown = job.unknown + job.unknown_kept
    num_items = sum(getattr(job, name) for name in ITEM_COUNTS)
    if unknown <= MOSTLY * num_items:
        return found
    return [
        *found,
        f"{unknown:,} of {num_items:,} items are unknown to the bundle: are items and domains named as in the log that "
        "it was trained on (GET /models lists its domains; prefix_items puts the domain before each item)?",
    ]


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

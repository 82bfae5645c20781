"""The recorded source -> target dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from app.errors import (
    InvalidCursorError,
    ModelUnavailableError,
    NotAcceptableError,
    StoreUnavailableError,
    UnknownJobError,
)
from app.http.paging import decode_cursor, encode_cursor, preferred
from app.http.problems import problem_responses
from app.http.routes.jobs import JobPartsOf
from app.http.routes.models import inference_of
from app.http.streams import ClosingStream
from app.jobs.results import MEDIA_TYPES
from app.mappings.mapping_bodies import MappingPage
from app.mappings.mapping_store import (
    Dictionary,
    DictionaryKey,
    MappingFilter,
    MappingKey,
    MappingRow,
    find_dictionary,
    page,
    stream,
)
from app.storage.database import reading
from app.storage.tables import ALL_JOBS
from models.decoding.rules import Rule, describe_rules
from models.errors import UnknownDomainError
from models.exports.as_csv import to_csv
from models.exports.as_ndjson import to_ndjson
from models.exports.as_parquet import to_parquet
from models.exports.encoding import FileParts

router = APIRouter(tags=["mappings"])

JSON = "application/json"
STREAMS = tuple(MEDIA_TYPES[name] for name in ("ndjson", "csv", "parquet"))
MAX_PAGE = 10_000
NO_NUL = r"^[^\x00]+$"  # PostgreSQL has no text with NUL
LINES = pa.schema(
    [
        ("source_domain", pa.string()),
        ("source_item", pa.string()),
        ("target_item", pa.string()),
        ("count", pa.int64()),
        ("share", pa.float64()),
        ("mean_score", pa.float64()),
        ("decisions", pa.int64()),
        ("deletions", pa.int64()),
    ]
)

_ItemFilter = Annotated[str | None, Query(pattern=NO_NUL, max_length=512)]


@dataclass(frozen=True)
class Selection:
    """A dictionary, and which of its lines."""

    key: DictionaryKey
    where: MappingFilter


def selection(
    request: Request,
    parts: JobPartsOf,
    domain: Annotated[str, Path(pattern=NO_NUL, max_length=512, description="The target domain.")],
    model_version: Annotated[
        str | None, Query(pattern=NO_NUL, max_length=255, description="Of a bundle; the active one by default.")
    ] = None,
    rule: Annotated[
        Rule | None, Query(description=f"The decoding rule; the service's by default. {describe_rules()}")
    ] = None,
    job_id: Annotated[
        str | None, Query(pattern=r"^[0-9a-f]{32}$", description="Only this job's decisions; all finished jobs else.")
    ] = None,
    source_domain: _ItemFilter = None,
    source_item: _ItemFilter = None,
    target_item: _ItemFilter = None,
) -> Selection:
    """What the query parameters ask for."""
    if source_item is not None and source_domain is None:
        missing = {
            "type": "missing",
            "loc": ("query", "source_domain"),
            "msg": "required with source_item",
            "input": None,
        }
        raise RequestValidationError([missing])
    where = MappingFilter(source_domain, source_item, target_item)
    if job_id is not None:
        job = parts.jobs.get(job_id)
        if job.target_domain != domain:
            raise UnknownDomainError(domain, (job.target_domain,))
        return Selection(job.dictionary, where)
    if model_version is None:
        model = inference_of(request).registry.active()
        model.bundle.vocabulary.domain_index(domain)
        model_version = model.bundle.version
    return Selection(DictionaryKey(domain, model_version, rule or request.app.state.settings.rule, ALL_JOBS), where)


@router.get(
    "/mappings/{domain:path}",  # a domain may be called Food/Drink
    summary="The source -> target dictionary of a domain",
    response_model=MappingPage,
    responses={
        **problem_responses(
            UnknownDomainError,
            UnknownJobError,
            NotAcceptableError,
            RequestValidationError,
            InvalidCursorError,
            ModelUnavailableError,
            StoreUnavailableError,
        ),
        200: {"content": {kind: {"schema": {"type": "string"}} for kind in STREAMS}},
        304: {"description": "Not changed since the version that If-None-Match names."},
    },
)
def read_mappings(
    parts: JobPartsOf,
    chosen: Annotated[Selection, Depends(selection)],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Lines on a page of JSON.")] = 100,
    cursor: Annotated[str | None, Query(description="'next' of the page before.")] = None,
    accept: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """
    Which items of other domains became which item of this one, how often, and with which mean score.

    JSON comes in pages. With NDJSON, CSV or Parquet in the Accept header the whole dictionary is streamed, as it was at
    one moment, whatever is added meanwhile.
    """
    media_type = preferred(accept, (JSON, *STREAMS))
    with reading(parts.engine) as connection:
        dictionary = find_dictionary(connection, chosen.key)
        headers = {"ETag": _etag(dictionary), "Vary": "Accept"}
        if if_none_match is not None and headers["ETag"] in (tag.strip() for tag in if_none_match.split(",")):
            return Response(status_code=304, headers=headers)
        if media_type == JSON:
            after = None if cursor is None else MappingKey(*decode_cursor(cursor, 3))
            lines = (
                [] if dictionary is None else page(connection, dictionary, chosen.where, after=after, limit=limit + 1)
            )
            following = _cursor(lines[limit - 1]) if len(lines) > limit else None
            body = MappingPage.of(chosen.key, lines[:limit], following)
            return JSONResponse(body.model_dump(mode="json"), headers=headers)
    blocks = iter(()) if dictionary is None else _blocks(parts, dictionary, chosen.where)
    return ClosingStream(encoded_lines(blocks, media_type), media_type=media_type, headers=headers)


def _blocks(parts: JobPartsOf, dictionary: Dictionary, where: MappingFilter) -> Iterator[list[MappingRow]]:
    with reading(parts.engine) as connection:
        yield from stream(connection, dictionary, where)


def encoded_lines(blocks: Iterable[list[MappingRow]], media_type: str) -> FileParts:
    """Every line of *blocks* as one file of the media type."""
    if media_type == MEDIA_TYPES["csv"]:
        return to_csv(LINES.names, ([_values(row) for row in block] for block in blocks))
    tables = (pa.table(list(zip(*map(_values, block), strict=True)), schema=LINES) for block in blocks)
    return to_parquet(LINES, tables) if media_type == MEDIA_TYPES["parquet"] else to_ndjson(LINES, tables)


def _values(row: MappingRow) -> tuple[object, ...]:
    return (
        row.source_domain,
        row.source_item,
        row.target_item,
        row.count,
        row.share,
        row.mean_score,
        row.decisions,
        row.deletions,
    )


def _cursor(row: MappingRow) -> str:
    return encode_cursor([row.key.source_domain, row.key.source_item, row.key.target_item])


def _etag(dictionary: Dictionary | None) -> str:
    """Weak: the same for every page and format of one state of the dictionary."""
    return 'W/"empty"' if dictionary is None else f'W/"{dictionary.dictionary_id}-{dictionary.revision}"'

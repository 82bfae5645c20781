"""The recorded source -> target dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import pyarrow as pa
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Connection, Engine
from starlette.concurrency import run_in_threadpool

from app.access.key_file import KeyScope
from app.errors import (
    InvalidCursorError,
    ModelUnavailableError,
    NotAcceptableError,
    StoreUnavailableError,
    UnknownJobError,
)
from app.http.key_checks import needs
from app.http.paging import decode_cursor, encode_cursor, is_unchanged, preferred
from app.http.problems import problem_responses
from app.http.routes.jobs import JobPartsOf
from app.http.routes.models import inference_of
from app.http.spools import Spool, Spools
from app.jobs.results import MEDIA_TYPES, without_formulas
from app.mappings.mapping_bodies import MappingPage
from app.mappings.mapping_store import (
    Dictionary,
    DictionaryKey,
    MappingFilter,
    MappingKey,
    MappingRow,
    find_dictionary,
    most_frequent,
    page,
    stream,
)
from app.storage.database import reading
from app.storage.tables import ALL_JOBS
from models.decoding.rules import Rule, describe_rules
from models.errors import UnknownDomainError
from models.exports.as_csv import to_csv
from models.exports.as_ndjson import to_ndjson
from models.exports.as_parquet import cut_anew, to_parquet
from models.exports.encoding import FileParts, plain_rows

router = APIRouter(tags=["mappings"])

JSON = "application/json"
STREAMS = tuple(MEDIA_TYPES[name] for name in ("ndjson", "csv", "parquet"))
MAX_PAGE = 10_000
PARQUET_ROWS = 10_000  # of a row group
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
    dependencies=[needs(KeyScope.MAPPINGS)],
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
async def read_mappings(
    request: Request,
    parts: JobPartsOf,
    chosen: Annotated[Selection, Depends(selection)],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Lines on a page of JSON.")] = 100,
    cursor: Annotated[str | None, Query(description="'next' of the page before.")] = None,
    order: Annotated[
        Literal["key", "count"],
        Query(
            description="'key': by source domain, source item and target item, page after page; 'count': one page of "
            "JSON, the most frequent replacements first."
        ),
    ] = "key",
    accept: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """
    Which items of other domains became which item of this one, how often, and with which mean score.

    JSON comes in pages. With NDJSON, CSV or Parquet in the Accept header the whole dictionary is streamed, as it was at
    one moment, whatever is added meanwhile; in CSV, a text that a spreadsheet would take for a formula begins with '.
    """
    media_type = preferred(accept, (JSON, *STREAMS))
    after = None if cursor is None or media_type != JSON else MappingKey(*decode_cursor(cursor, 3))
    tag, body = await run_in_threadpool(
        _tag_and_page, parts, chosen, after, limit, if_none_match, order if media_type == JSON else None
    )
    headers = {"ETag": tag, "Vary": "Accept"}
    if is_unchanged(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    if body is not None:
        return Response(body.model_dump_json(), media_type=JSON, headers=headers)

    def write(spool: Spool) -> None:
        with reading_one_state(parts.engine) as connection:
            dictionary = find_dictionary(connection, chosen.key)
            spool.begin(_etag(dictionary))
            blocks = iter(()) if dictionary is None else stream(connection, dictionary, chosen.where)
            for part in encoded_lines(blocks, media_type):
                spool.write(part)

    spools: Spools = request.app.state.spools
    return await spools.answer(
        (tag, chosen, media_type), write, media_type=media_type, headers=lambda label: headers | {"ETag": label}
    )


def _tag_and_page(
    parts: JobPartsOf,
    chosen: Selection,
    after: MappingKey | None,
    limit: int,
    if_none_match: str | None,
    order: Literal["key", "count"] | None,
) -> tuple[str, MappingPage | None]:
    """The state of the dictionary, and a page of it where one is asked for by an *order* and not known already."""
    with reading(parts.engine) as connection:
        dictionary = find_dictionary(connection, chosen.key)
        tag = _etag(dictionary)
        if order is None or is_unchanged(if_none_match, tag):
            return tag, None
        if order == "count":
            found = [] if dictionary is None else most_frequent(connection, dictionary, chosen.where, limit=limit)
            return tag, MappingPage.of(chosen.key, found, None)
        lines = [] if dictionary is None else page(connection, dictionary, chosen.where, after=after, limit=limit + 1)
    following = _cursor(lines[limit - 1]) if len(lines) > limit else None
    return tag, MappingPage.of(chosen.key, lines[:limit], following)


@contextmanager
def reading_one_state(engine: Engine) -> Iterator[Connection]:
    """As ``reading``, but every statement sees the same state; SQLite's transactions are so anyway."""
    with reading(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield connection


def encoded_lines(blocks: Iterable[list[MappingRow]], media_type: str) -> FileParts:
    """Every line of *blocks* as one file of the media type."""
    tables = (pa.table(list(zip(*map(_values, block), strict=True)), schema=LINES) for block in blocks)
    if media_type == MEDIA_TYPES["csv"]:
        return to_csv(LINES.names, (plain_rows(without_formulas(table)) for table in tables))
    if media_type == MEDIA_TYPES["parquet"]:
        return to_parquet(LINES, cut_anew(LINES, tables, PARQUET_ROWS))
    return to_ndjson(LINES, tables)


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

"""How an upload would be read: its columns and first rows, shown before a job is made of it."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from typing import BinaryIO, Literal

from pydantic import BaseModel, Field

from app.errors import ServiceError
from app.jobs.formats import SEQUENCE_KEY, SourceLimits, format_of
from app.jobs.job_bodies import JobOptions
from app.jobs.reading_process import check_in_process
from models.data.reading.compression import GZIP
from models.data.reading.delimited import DelimitedTable
from models.data.reading.identifiers import id_problem
from models.data.reading.input_formats import INPUT_FORMATS, format_by_content
from models.data.reading.layouts import ROLES, Columns, Layout, Role, choose_columns, find_column
from models.data.reading.places import InputFile
from models.data.reading.raw_tables import Budget, RawTable
from models.data.reading.rows import FileFacts
from models.errors import InputFormatError, InputTooLargeError

HEAD_BYTES = 256 * 1024
EXPANDED_BYTES = 4 * 1024 * 1024
SHOWN_ROWS = 8
SHOWN_CHARACTERS = 200


class PreviewColumn(BaseModel):
    """A column of the input."""

    name: str = Field(description="As the field `columns` calls it: its place, from 1, where no header names it.")
    role: Role | None = Field(description="What it is taken for; null: it is not read.")


class InputPreview(BaseModel):
    """How an input would be read."""

    format: str = Field(description="As of a job.")
    holds: Literal["interactions", "sequences"] = Field(description="What a row is.")
    columns: list[PreviewColumn] = Field(description="In the order of the file; none of Parquet, which is not shown.")
    rows: list[list[str]] = Field(description=f"The first {SHOWN_ROWS} rows, a text for each column.")
    problem: str | None = Field(description="Why a job of this input would be refused; null: nothing is known.")


def preview_input(options: JobOptions, file: BinaryIO, name: str, limits: SourceLimits) -> InputPreview:
    """
    Look at the beginning of *file*, which was uploaded under *name*.

    Raises:
        InvalidSourceError: columns or conditions that are none.
        UnsupportedFormatError: a format that is none of those offered.
    """
    layout = options.layout()
    content, name = _readable(file, name)
    try:
        known = format_of(name, options.format) or format_by_content(content)
    except InputFormatError as error:  # packed, and damaged
        return InputPreview(format="csv", holds="interactions", columns=[], rows=[], problem=str(error))
    if known == "parquet":
        problem = _refusal(content, FileFacts(name, options.domain), layout, limits)
        return InputPreview(format=known, holds="interactions", columns=[], rows=[], problem=problem)
    try:
        table, problem = _table(known, content, layout)
    except (InputFormatError, InputTooLargeError) as error:
        return InputPreview(format=known, holds="interactions", columns=[], rows=[], problem=str(error))
    names = list(table.names)
    rows, has_header = _rows(table, names)
    if known == "ndjson" and SEQUENCE_KEY in names:
        columns = [PreviewColumn(name=column, role=None) for column in names]
        return InputPreview(format=known, holds="sequences", columns=columns, rows=rows, problem=None)
    roles = {role: layout.columns.of(role) or find_column(role, names, usual=table.usual) for role in ROLES}
    of_column = {column: role for role, column in roles.items() if column is not None}
    columns = [
        PreviewColumn(name=column if has_header else str(place), role=of_column.get(column))
        for place, column in enumerate(names, start=1)
    ]
    return InputPreview(
        format=known,
        holds="interactions",
        columns=columns,
        rows=rows,
        problem=problem or _missing(layout, table, options.domain),
    )


def _readable(file: BinaryIO, name: str) -> tuple[BinaryIO, str]:
    """The file, or what gzip holds of its beginning, without the line that a cut goes through; and its name."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head.startswith(GZIP):
        if len(head) < HEAD_BYTES or head.startswith(b"PAR1"):
            return file, name
        return io.BytesIO(_whole_lines(head)), name
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(head, EXPANDED_BYTES)
    except zlib.error:
        return file, name
    plain = name.removesuffix(".gz").removesuffix(".gzip")
    return io.BytesIO(content if stream.eof else _whole_lines(content)), plain


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1] or content


def _table(known: str, content: BinaryIO, layout: Layout) -> tuple[RawTable, str | None]:
    """The open table, and what is wrong; a text without a header has its columns numbered until they are named."""
    try:
        return INPUT_FORMATS[known].open(content, layout, Budget(EXPANDED_BYTES)), None
    except InputFormatError as error:
        if known != "csv":
            raise
        content.seek(0)
        numbered = replace(layout, header=False, columns=Columns(user="1", item="1"))
        return INPUT_FORMATS[known].open(content, numbered, Budget(EXPANDED_BYTES)), str(error)


def _missing(layout: Layout, table: RawTable, domain: str | None) -> str | None:
    try:
        chosen = choose_columns(layout, table.names, usual=table.usual)
        table.check(chosen.to_read())
    except (InputFormatError, InputTooLargeError) as error:
        return str(error)
    if domain is not None:
        problem = id_problem(domain)
        return None if problem is None else f"the domain {problem}"
    return None if chosen.domain is not None else "no column says the domain: name it, or give one for all rows"


def _rows(table: RawTable, names: list[str]) -> tuple[list[list[str]], bool]:
    """The first rows, and whether a line before them names the columns: JSON does so in every row."""
    try:
        batch = next(iter(table.batches(names)), None)
    except (InputFormatError, InputTooLargeError):
        batch = None
    if batch is None or not len(batch.lines_N):
        return [], True
    columns = [list(batch.columns[name][:SHOWN_ROWS]) for name in names]
    has_header = not isinstance(table, DelimitedTable) or int(batch.lines_N[0]) > 1
    return [[_text(value) for value in row] for row in zip(*columns, strict=True)], has_header


def _text(value: object) -> str:
    """A value as people read it: Arrow's scalars, bytes of a text file, or what JSON holds."""
    plain = value.as_py() if hasattr(value, "as_py") else value
    if plain is None:
        return ""
    text = plain.decode("utf-8", "replace") if isinstance(plain, bytes) else str(plain)
    return text[:SHOWN_CHARACTERS]


def _refusal(content: BinaryIO, facts: FileFacts, layout: Layout, limits: SourceLimits) -> str | None:
    """Why a Parquet file would be refused: found in a process that may die of it."""
    size = content.seek(0, 2)
    try:
        check_in_process(InputFile(facts, lambda: io.BytesIO(_read_all(content)), size), layout, limits)
    except (InputFormatError, ServiceError) as error:
        return str(error)
    return None


def _read_all(content: BinaryIO) -> bytes:
    content.seek(0)
    return content.read()

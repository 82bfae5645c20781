"""
Bytes of results: chunk files, and the streams of a finished job in every output format (``models.exports``).

Everything here is a pure function of its rows: the same rows give the same bytes, whichever process writes them. A
stream is made from one chunk after the other and holds no more than one of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.errors import UnsupportedFormatError
from app.jobs.formats import PARQUET_SOURCE, SequenceRow
from models.exports.encoding import FileParts, ResultView, interactions_schema
from models.exports.export_formats import FILE_FORMATS, FileFormatName, load_format
from models.item_counts import ITEM_COUNTS, ItemCounts

MEDIA_TYPES: Mapping[FileFormatName, str] = {name: entry.media_type for name, entry in FILE_FORMATS.items()}

SEQUENCES = pa.schema(
    [
        ("user_id", pa.string()),
        ("items", pa.list_(pa.string())),
        *((name, pa.int32()) for name in ITEM_COUNTS),
    ]
)
_CARRIED = "carried"
_FORMULA = r"^[=+\-@\t\r]"
_STAYED = pa.struct(
    [*(field for field in interactions_schema() if field.name != "user"), pa.field(_CARRIED, pa.list_(pa.string()))]
)
CHUNK = pa.schema([*SEQUENCES, ("interactions", pa.list_(_STAYED))])


@dataclass(frozen=True, kw_only=True)
class ResultRow(ItemCounts):
    """
    One rewritten sequence of a job; the counts add up to the items of its input row.

    ``interactions`` are its items once more, repeats included: (item, timestamp, origin, source_item, source_domain,
    score, carried values) of each.
    """

    user_id: str
    items: Sequence[str]
    interactions: Sequence[tuple[object, ...]]


def input_file(rows: Sequence[SequenceRow]) -> bytes:
    """The rows of a chunk as a Parquet file."""
    columns = [
        [row.line for row in rows],
        [row.user_id for row in rows],
        [row.item_ids for row in rows],
        [row.domains for row in rows],
        [row.num_rows for row in rows],
        [row.times for row in rows],
        [row.carried for row in rows],
    ]
    return _parquet_file(pa.table(columns, schema=PARQUET_SOURCE))


def read_input_file(content: bytes) -> list[SequenceRow]:
    """What ``input_file`` wrote; earlier versions wrote fewer columns, whose defaults hold."""
    table = pq.read_table(pa.BufferReader(content))
    rows = []
    for row in table.to_pylist():
        times, carried = row.pop("times", None), row.pop("carried", None)
        rows.append(SequenceRow(**row, times=times or (), carried=carried or ()))
    return rows


def output_file(rows: Sequence[ResultRow]) -> bytes:
    """The results of a chunk as a Parquet file."""
    columns = [[getattr(row, name) for row in rows] for name in SEQUENCES.names]
    names = [field.name for field in _STAYED]
    stayed = [[dict(zip(names, values, strict=True)) for values in row.interactions] for row in rows]
    return _parquet_file(pa.table([*columns, stayed], schema=CHUNK))


def read_output_file(content: bytes) -> pa.Table:
    """
    What ``output_file`` wrote, as a table of ``CHUNK``.

    Before it wrote unknown_kept, nothing unknown stayed; before it wrote interactions, they are null.
    """
    table = pq.read_table(pa.BufferReader(content))
    if "unknown_kept" not in table.column_names:
        table = table.append_column(SEQUENCES.field("unknown_kept"), pa.array([0] * table.num_rows, pa.int32()))
    if "interactions" not in table.column_names:
        table = table.append_column(CHUNK.field("interactions"), pa.nulls(table.num_rows, CHUNK.field(-1).type))
    return table


def encode_results(
    chunks: Iterable[pa.Table],
    result_format: FileFormatName,
    view: ResultView | None = None,
    *,
    carried: Sequence[str] = (),
    whole_times: bool = False,
    is_download: bool = True,
) -> FileParts:
    """
    All *chunks*, in order, as one file.

    Args:
        chunks: tables of ``CHUNK``.
        result_format: of the file.
        view: one row per sequence, or one per interaction; None takes sequences where the format has them.
        carried: names of the columns that the job carried along; interactions have them.
        whole_times: every time is a whole number, and is written as one.
        is_download: people open it; CSV that pipelines read is written as it is.

    Raises:
        UnsupportedFormatError: the format has no such view, or the result is of a version without interactions.
    """
    chosen = load_format(result_format)
    if view is None:
        view = "sequences" if chosen.sequences is not None else "interactions"
    encode = chosen.sequences if view == "sequences" else chosen.interactions
    if encode is None:
        raise UnsupportedFormatError(f"format {result_format!r} has no view {view!r}")
    schema = SEQUENCES if view == "sequences" else interactions_schema(carried=carried, whole_times=whole_times)
    tables = (
        (chunk.select(SEQUENCES.names) for chunk in chunks)
        if view == "sequences"
        else _interaction_tables(chunks, schema, len(carried))
    )
    return encode(schema, map(without_formulas, tables) if is_download and result_format == "csv" else tables)


def without_formulas(table: pa.Table) -> pa.Table:
    """
    *table* with ' before each text that a spreadsheet would take for a formula: it begins with = + - @, tab or return.

    For CSV files that are downloaded and opened by double-click, while their names come from strangers. Who needs such
    names unchanged takes another format; those files that commands write keep them (``models.exports.as_csv``).
    """
    for index, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            table = table.set_column(index, table.field(index), _quoted(column))
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            lists = column.combine_chunks()
            quoted = pa.ListArray.from_arrays(lists.offsets, _quoted(lists.values))
            table = table.set_column(index, table.field(index), quoted)
    return table


def _quoted(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.if_else(pc.match_substring_regex(texts, _FORMULA), pc.binary_join_element_wise("'", texts, ""), texts)


def _interaction_tables(chunks: Iterable[pa.Table], schema: pa.Schema, num_carried: int) -> Iterator[pa.Table]:
    for chunk in chunks:
        lists = chunk["interactions"].combine_chunks()
        if lists.null_count:
            raise UnsupportedFormatError("the job was done by an earlier version, whose results have no interactions")
        rows = lists.flatten()
        users = chunk["user_id"].combine_chunks().take(pc.list_parent_indices(lists))
        names = schema.names[1 : len(schema) - num_carried]
        columns = [users, *(rows.field(name).cast(schema.field(name).type) for name in names)]
        extra = rows.field(_CARRIED)
        columns += [pc.list_element(extra, place) for place in range(num_carried)] if len(rows) else []
        yield pa.table(columns, schema=schema) if len(rows) else schema.empty_table()


def _parquet_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()

"""
Parquet in bounded memory: checked by the footer alone, decoded a batch at a time.

A file of a kilobyte may hold gigabytes: a dictionary or a compressor repeats a long value for next to nothing. So texts
are read as dictionaries, which hold each value once, and no value becomes Python's before its length is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.data.reading.identifiers import MAX_CHARACTERS, id_text
from models.data.reading.layouts import Columns, Layout
from models.data.reading.raw_tables import Budget, RawBatch, RawTable
from models.errors import InputFormatError

MAX_NAME_BYTES = 4 * MAX_CHARACTERS  # in UTF-8
LIST_COLUMNS = ("item_ids", "domains")
# Of single values a batch may be a whole row group: each brings the group's dictionary. Of lists few rows are much.
TABLE_BATCH_ROWS, LIST_BATCH_ROWS = 1 << 20, 4096
BATCH_VALUES = 1 << 20
# No decoder holds less than the distinct texts of a row group, nor less than one row: both are bounded by the footer.
MAX_GROUP_BYTES = 512 << 20
MAX_GROUP_VALUES = 1 << 26
# Texts that average twice what a name may have are no names; below this many bytes their rows are told one by one.
MAX_LONG_TEXT_BYTES = 64 << 20

# They make values longer than what they are written in, and Arrow does not read them as dictionaries.
_DELTA_ENCODINGS = {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}
_TOO_LONG = "x" * (MAX_CHARACTERS + 1)


class ParquetTables:
    """Parquet with a row for each interaction."""

    suffixes = (".parquet", ".pq")

    def open(self, file: BinaryIO, layout: Layout, budget: Budget) -> RawTable:  # noqa: ARG002
        """See ``InputFormat``."""
        with parquet_errors():
            return ParquetTable(file, list(pq.ParquetFile(file).schema_arrow.names), budget)


class ParquetTable:
    """
    An open Parquet file of single values.

    Args:
        names: of its columns.
    """

    usual: Columns | None = None

    def __init__(self, file: BinaryIO, names: Sequence[str], budget: Budget) -> None:
        self.names = names
        self._file, self._budget = file, budget

    def check(self, columns: Sequence[str]) -> None:
        """See ``RawTable``."""
        with parquet_errors():
            self._input(columns)

    def _input(self, columns: Sequence[str]) -> ParquetInput:
        return ParquetInput.open(self._file, lambda _names: tuple(columns), self._budget)

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        """See ``RawTable``."""
        with parquet_errors():
            parquet = self._input(columns)
            row = 0
            for batch in parquet.batches(TABLE_BATCH_ROWS):
                lines = np.arange(row + 1, row + batch.num_rows + 1, dtype=np.int64)
                row += batch.num_rows
                yield RawBatch({name: batch.column(name) for name in columns}, lines)


@dataclass(frozen=True)
class ParquetInput:
    """
    A Parquet file whose footer promises nothing too large.

    Args:
        file: its texts are read as dictionaries.
        columns: to be read.
    """

    file: pq.ParquetFile
    columns: tuple[str, ...]
    budget: Budget

    @classmethod
    def open(
        cls,
        file: BinaryIO,
        choose: Callable[[Sequence[str]], tuple[str, ...]],
        budget: Budget,
        *,
        lists: Sequence[str] = (),
    ) -> Self:
        """
        Read the footer of *file*; *choose* says which of its columns to read, given their names; *lists* are lists.

        Raises:
            InputFormatError: a column is of no use, or a row group too large; see ``parquet_errors``, too.
            InputTooLargeError: it expands to more bytes than *budget* has.
        """
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        columns = choose(schema.names)
        kinds = {name: _value_type(schema, name, is_list=name in lists) for name in columns}
        texts = {name for name, kind in kinds.items() if _is_text(kind)}
        if budget.expanded_bytes is not None:
            _check_size(parquet.metadata, columns, texts, budget)
            as_dictionaries = texts
        else:  # the file is trusted: what Arrow cannot read as a dictionary is read as it is
            as_dictionaries = texts - _delta_columns(parquet.metadata)
        paths = [column.path for column in parquet.schema if column.path.split(".")[0] in as_dictionaries]
        # As dictionaries: a long value that is repeated, which costs the file next to nothing, is held once.
        reader = pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=paths)
        return cls(reader, columns, budget)

    def batches(self, max_rows: int) -> Iterator[pa.RecordBatch]:
        """
        All rows, at most *max_rows* and few values at a time.

        Raises:
            InputTooLargeError: there are more bytes than the budget has.
        """
        for group in range(self.file.num_row_groups):  # each by itself: Arrow cannot join two dictionaries in a list
            num_rows = _rows_at_a_time(self.file.metadata.row_group(group), self.columns, max_rows)
            batches = self.file.iter_batches(
                num_rows, row_groups=[group], columns=list(self.columns), use_threads=False
            )
            for batch in batches:
                self.budget.spend(sum(_dense_bytes(column) for column in batch.columns))
                yield batch


class Values:
    """
    Values of one batch, of which a part at a time becomes Python's: ids as texts, by the one policy of ids.

    Args:
        column: of single values; texts are a dictionary, whose values may be of any length.
    """

    def __init__(self, column: pa.Array) -> None:
        self._is_text = pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)
        self._column = column.indices if self._is_text else column
        self._texts = column.dictionary if self._is_text else pa.array([], pa.string())
        self._lengths = pc.binary_length(self._texts).to_numpy()
        self._known: dict[int | None, Any] = {None: None}

    def read(self, start: int, stop: int) -> list[Any]:
        """The values from *start* to *stop*; for a text longer than any name, which is never expanded, _TOO_LONG."""
        values: list[Any] = self._column.slice(start, stop - start).to_pylist()
        return [self._text(index) for index in values] if self._is_text else [id_text(value) for value in values]

    def _text(self, index: int | None) -> Any:
        if index not in self._known:
            is_long = self._lengths[index] > MAX_NAME_BYTES
            # Not by Arrow's take, which reserves the mean length of all texts for every one that it takes.
            value = _TOO_LONG if is_long else self._texts[index].as_py()
            # Old Spark and Impala write texts without saying that they are UTF-8.
            self._known[index] = value.decode("utf-8") if isinstance(value, bytes) else value
        return self._known[index]


class Lists:
    """
    Lists of one batch, of which one at a time becomes Python's.

    Args:
        column: of lists of single values.
    """

    def __init__(self, column: pa.Array) -> None:
        self._values = Values(column.values)
        self._offsets: list[int] = column.offsets.to_pylist()
        self.lengths: list[int | None] = pc.list_value_length(column).to_pylist()

    def read(self, row: int) -> list[Any]:
        """The values of a list that is no null."""
        return self._values.read(self._offsets[row], self._offsets[row + 1])


@contextlib.contextmanager
def parquet_errors() -> Iterator[None]:
    """What Arrow raises of a damaged or odd file, as an InputFormatError."""
    try:
        yield
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:  # ValueError: a value that Python lacks
        raise InputFormatError(f"not a readable Parquet file: {error}") from error


def _value_type(schema: pa.Schema, name: str, *, is_list: bool) -> pa.DataType:
    """Type of the single values of column *name*: texts, numbers or times, in lists if it is one of lists."""
    if schema.get_field_index(name) < 0:
        raise InputFormatError(f"column {name} is there more than once")
    kind = schema.field(name).type
    if is_list:
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise InputFormatError(f"column {name} is {kind}, not a list")
        kind = kind.value_type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    simple = pa.types.is_primitive(value) or pa.types.is_decimal(value) or pa.types.is_null(value)
    if not simple and not _is_text(value) and not isinstance(value, pa.UuidType):
        raise InputFormatError(f"column {name} holds {str(kind)[:200]}, neither text nor numbers")
    return value


def _is_text(kind: pa.DataType) -> bool:
    of_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*of_text, *of_bytes))


def _check_size(metadata: pq.FileMetaData, columns: Sequence[str], texts: Iterable[str], budget: Budget) -> None:
    """Believe the footer when it says too much; what it hides is counted while decoding."""
    declared, values = 0, 0
    for group in range(metadata.num_row_groups):
        for name, column in _columns_of_group(metadata.row_group(group), columns):
            declared += column.total_uncompressed_size
            values += column.num_values
            _check_column_size(f"row group {group}, column {name}", column, is_text=name in texts)
    # A repeated value takes almost no space in the file and an offset of 4 bytes or more once decoded.
    budget.allow(max(declared, 4 * values))


def _delta_columns(metadata: pq.FileMetaData) -> set[str]:
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    columns = (group.column(index) for group in groups for index in range(group.num_columns))
    return {column.path_in_schema for column in columns if _DELTA_ENCODINGS.intersection(column.encodings)}


def _check_column_size(place: str, column: pq.ColumnChunkMetaData, *, is_text: bool) -> None:
    num_bytes, num_values = column.total_uncompressed_size, column.num_values
    if num_bytes > MAX_GROUP_BYTES or num_values > MAX_GROUP_VALUES:
        raise InputFormatError(
            f"{place}: {num_values:,} values of {num_bytes:,} bytes; at most {MAX_GROUP_VALUES:,} values and "
            f"{MAX_GROUP_BYTES:,} bytes may be: write smaller row groups"
        )
    if not is_text:
        return
    if num_bytes > max(MAX_LONG_TEXT_BYTES, 2 * MAX_NAME_BYTES * num_values):
        raise InputFormatError(f"{place}: {num_values:,} values of {num_bytes:,} bytes are too long to be names")
    delta = sorted(_DELTA_ENCODINGS.intersection(column.encodings))
    if delta:
        raise InputFormatError(f"{place}: the encoding {delta[0]} is not read; write a dictionary or plain values")


def _columns_of_group(
    group: pq.RowGroupMetaData, columns: Sequence[str]
) -> Iterator[tuple[str, pq.ColumnChunkMetaData]]:
    for index in range(group.num_columns):
        column = group.column(index)
        name = column.path_in_schema.split(".")[0]
        if name in columns:
            yield name, column


def _rows_at_a_time(group: pq.RowGroupMetaData, columns: Sequence[str], max_rows: int) -> int:
    values = max((column.num_values for _, column in _columns_of_group(group, columns)), default=0)
    num_rows: int = BATCH_VALUES * group.num_rows // max(1, values)
    return max(1, min(max_rows, num_rows))


def _dense_bytes(column: pa.Array) -> int:
    """Bytes of *column* with every value written out: a dictionary may repeat one long value many times."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _dense_bytes(column.flatten())
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
    return int(column.nbytes)

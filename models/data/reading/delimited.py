"""
Delimited text: CSV with any separator, and RecBole's ``.inter``.

Quotes follow RFC 4180 where the separator is one character: a field that begins with a quote ends at the next single
one, which a separator or the end of the line follows, and may hold line breaks. A quote that is opened and not closed
so is a bad row by itself, and the following line is read as if nothing had been: no row is swallowed. A line that is no
row so is one if a backslash takes a quote's meaning, as Spark and MySQL write it. ``.inter``, and text with ``::``,
knows no quotes: there they are characters like others. Identifiers of ``.inter`` are those of ``inter_ids``.

Lines without quotes are parsed by Arrow, as many as a block holds; those of a block with quotes one by one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from models.data.reading.compression import expanded
from models.data.reading.inter_ids import read_inter_id
from models.data.reading.item_blocks import BLOCK_HEADER, ItemBlocks
from models.data.reading.layouts import Columns, Layout, looks_like_header, names_of_positions
from models.data.reading.raw_tables import BadLine, Budget, Lines, RawBatch, RawTable
from models.data.reading.text_blocks import MAX_LINE_BYTES, Resumed, TextBlock, TextBlocks, first_line
from models.errors import InputFormatError

SEPARATORS = ("\t", ";", "|", ",")
# Where none of those is in the first line: Hive's, and what is seen now and then.
RARE_SEPARATORS = ("\x01", " ", "^", "~")
# A first line by which Excel is told the separator.
_SEPARATOR_LINE = re.compile(r"sep=(.)")
# What a separator of several characters becomes for Arrow; as a control character it is in no id.
_UNIT_SEPARATOR = b"\x1f"
csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE_BYTES))


@dataclass(frozen=True)
class Dialect:
    """A separator, whether a quote is one, and whether identifiers may be encoded as in ``.inter``."""

    separator: str
    quotes: bool
    encoded: bool = False


class DelimitedText:
    """CSV and its kin."""

    suffixes = (".csv", ".tsv", ".txt", ".dat", ".data")

    def open(self, file: BinaryIO, layout: Layout, budget: Budget) -> RawTable:
        """See ``InputFormat``."""
        stream = expanded(file, budget, layout.encoding)
        line, number = _text(first_line(stream)), 1
        told = _SEPARATOR_LINE.fullmatch(line)
        if told is not None:
            line, number = _text(first_line(stream)), 2
        elif BLOCK_HEADER.fullmatch(line):
            return ItemBlocks(Resumed(line.encode() + b"\n", stream))
        separator = layout.separator or (told[1] if told else _separator(line))
        dialect = Dialect(separator, quotes=len(separator) == 1)
        cells = [cell.strip() for cell in _cells(line, dialect)]
        has_header = looks_like_header(cells, layout) if layout.header is None else layout.header
        if has_header:
            return DelimitedTable(stream, cells, dialect, first_line=number + 1)
        names = names_of_positions(len(cells), layout)
        return DelimitedTable(Resumed(line.encode() + b"\n", stream), names, dialect, first_line=number)


class RecBoleInter:
    """RecBole's atomic files of interactions: tabs, a header with types, no quotes."""

    suffixes = (".inter",)

    def open(self, file: BinaryIO, layout: Layout, budget: Budget) -> RawTable:
        """See ``InputFormat``."""
        stream = expanded(file, budget, layout.encoding)
        dialect = Dialect(layout.separator or "\t", quotes=False, encoded=True)
        cells = _text(first_line(stream)).split(dialect.separator)
        names = [cell.partition(":")[0].strip() for cell in cells]
        return DelimitedTable(stream, names, dialect, first_line=2, usual=Columns("user_id", "item_id"))


class DelimitedTable:
    """
    An open table of delimited text.

    Args:
        stream: stands at the first row.
        names: of its columns.
        first_line: the number of the line there.
    """

    def __init__(
        self,
        stream: BinaryIO | Resumed,
        names: Sequence[str],
        dialect: Dialect,
        *,
        first_line: int,
        usual: Columns | None = None,
    ) -> None:
        self.names = names
        self.usual = usual
        self._stream, self._dialect, self._first_line = stream, dialect, first_line

    def check(self, columns: Sequence[str]) -> None:
        """See ``RawTable``: the first lines have told everything."""

    def batches(self, columns: Sequence[str]) -> Iterator[RawBatch]:
        """See ``RawTable``."""
        kept = [self.names.index(name) for name in columns]
        open_record = _NOTHING
        for block in TextBlocks(self._stream, first_line=self._first_line):  # type: ignore[arg-type]
            joined = _joined(open_record, block)
            open_record = _NOTHING
            if self._is_plain(joined.content):
                batch = self._plain_rows(joined, kept)
            elif self._dialect.quotes:
                batch, open_record = self._quoted_rows(joined, kept)
            else:
                batch = self._split_rows(joined, kept)
            if self._dialect.encoded and b"%" in joined.content:
                batch = replace(batch, columns={name: _decoded(column) for name, column in batch.columns.items()})
            yield batch

    def _is_plain(self, content: bytes) -> bool:
        """Arrow's parser reads these lines as we would: no quote counts, no lone carriage return ends a line."""
        if self._dialect.quotes and b'"' in content:
            return False
        if len(self._dialect.separator) > 1 and _UNIT_SEPARATOR in content:
            return False
        return content.count(b"\r") == content.count(b"\r\n") and _is_utf_8(content)

    def _plain_rows(self, block: TextBlock, kept: list[int]) -> RawBatch:
        broken: list[tuple[int, str]] = []

        def skip(row: pa_csv.InvalidRow) -> str:
            broken.append((row.number - 1, _wrong_width(row.actual_columns, row.expected_columns)))
            return "skip"

        positions = [str(index) for index in range(len(self.names))]
        content, delimiter = block.content, self._dialect.separator
        if len(delimiter) > 1:
            content, delimiter = content.replace(delimiter.encode(), _UNIT_SEPARATOR), _UNIT_SEPARATOR.decode()
        if not content:
            return RawBatch({self.names[index]: _NO_TEXT for index in kept}, _NO_LINES, block.broken, block.blank_lines)
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(content),
                # One thread: only then does the parser number its rows. One block: one dictionary a column.
                pa_csv.ReadOptions(use_threads=False, block_size=len(content) + 1, column_names=positions),
                pa_csv.ParseOptions(
                    delimiter=delimiter, quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
                ),
                pa_csv.ConvertOptions(
                    check_utf8=False,
                    include_columns=[positions[index] for index in kept],
                    # Dictionary while parsing: whole columns of strings never exist at once.
                    column_types={positions[index]: pa.dictionary(pa.int32(), pa.binary()) for index in kept},
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowException as error:
            raise InputFormatError(f"not readable as delimited text: {error}") from error
        rows = np.array([row for row, _ in broken], dtype=np.int64)
        bad = [BadLine(int(block.lines_N[row]), reason) for row, reason in broken]
        return RawBatch(
            {self.names[index]: table.column(positions[index]).combine_chunks() for index in kept}
            if table.num_rows
            else {self.names[index]: _NO_TEXT for index in kept},
            np.delete(block.lines_N, rows) if len(rows) else block.lines_N,
            _in_order(block.broken, bad),
            block.blank_lines,
        )

    def _split_rows(self, block: TextBlock, kept: list[int]) -> RawBatch:
        """Lines without quotes that hold something which Arrow would take for a line's or a field's end."""
        rows: list[list[str]] = []
        lines: list[int] = []
        bad: list[BadLine] = []
        for line, text in zip(block.lines_N.tolist(), _lines(block.content), strict=True):
            cells = text.removesuffix("\r").split(self._dialect.separator)
            if len(cells) != len(self.names):
                bad.append(BadLine(line, _wrong_width(len(cells), len(self.names))))
                continue
            rows.append([cells[index] for index in kept])
            lines.append(line)
        return self._batch(rows, lines, kept, block, bad)

    def _quoted_rows(self, block: TextBlock, kept: list[int]) -> tuple[RawBatch, TextBlock]:
        """The rows of a block with quotes, and the lines of a last one that goes on in the next block."""
        texts = _lines(block.content)
        rows: list[list[str]] = []
        lines: list[int] = []
        bad: list[BadLine] = []
        inner: list[tuple[int, int]] = []  # lines between which a row's own text may hold empty ones
        place = begin = 0

        def following() -> Iterator[str]:
            nonlocal place
            while place < len(texts):
                place += 1
                yield f"{texts[place - 1]}\n"

        reader = csv.reader(following(), delimiter=self._dialect.separator, strict=True)
        while (begin := place) < len(texts):
            cells: list[str] = []
            try:
                cells = next(reader)
                problem = self._problem(cells, kept)
                if place > begin + 1 and _size(texts[begin:place]) > MAX_LINE_BYTES:
                    problem = f"longer than {MAX_LINE_BYTES} bytes"
            except csv.Error as error:
                if place == len(texts) and not block.is_last and _size(texts[begin:]) <= MAX_LINE_BYTES:
                    break
                problem = f"not a valid row: {_csv_reason(error)}"
            if problem is not None and '\\"' in texts[begin] and (escaped := self._with_backslashes(texts[begin])):
                cells, problem, place = escaped, None, begin + 1
                reader = csv.reader(following(), delimiter=self._dialect.separator, strict=True)
            if problem is None:
                rows.append([cells[index] for index in kept])
                lines.append(int(block.lines_N[begin]))
                if place > begin + 1:
                    inner.append((int(block.lines_N[begin]), int(block.lines_N[place - 1])))
                continue
            bad.append(BadLine(int(block.lines_N[begin]), problem))
            place = begin + 1  # the lines that it has swallowed are read for themselves
            reader = csv.reader(following(), delimiter=self._dialect.separator, strict=True)
        blanks = block.blank_lines
        for first, last in inner if len(blanks) else ():
            blanks = blanks[(blanks < first) | (blanks > last)]
        if begin == len(texts):
            return self._batch(rows, lines, kept, replace(block, blank_lines=blanks), bad), _NOTHING
        rest = "".join(f"{text}\n" for text in texts[begin:]).encode("utf-8", "surrogateescape")
        behind = blanks > block.lines_N[begin]
        open_record = TextBlock(rest, block.lines_N[begin:], blanks[behind], (), is_last=False)
        return self._batch(rows, lines, kept, replace(block, blank_lines=blanks[~behind]), bad), open_record

    def _with_backslashes(self, text: str) -> list[str]:
        """The cells of a line in which a backslash takes a quote's meaning; none where it is no row so either."""
        try:
            reader = csv.reader([text], delimiter=self._dialect.separator, escapechar="\\", strict=True)
            [cells] = reader
        except csv.Error:
            return []
        return cells if len(cells) == len(self.names) else []

    def _problem(self, cells: list[str], kept: list[int]) -> str | None:
        if len(cells) != len(self.names):
            return _wrong_width(len(cells), len(self.names))
        broken = [self.names[index] for index in kept if "\n" in cells[index]]
        return f"{broken[0]} runs over a line break: is a quote left open?" if broken else None

    def _batch(
        self, rows: list[list[str]], lines: list[int], kept: list[int], block: TextBlock, bad: list[BadLine]
    ) -> RawBatch:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(kept)
        arrays = {self.names[index]: _encoded(column) for index, column in zip(kept, columns, strict=True)}
        return RawBatch(arrays, np.array(lines, dtype=np.int64), _in_order(block.broken, bad), block.blank_lines)


_NO_LINES: Lines = np.zeros(0, dtype=np.int64)
_NO_TEXT = pa.nulls(0, pa.binary())
_NOTHING = TextBlock(b"", _NO_LINES, _NO_LINES, (), is_last=False)


def _joined(first: TextBlock, second: TextBlock) -> TextBlock:
    if not first.content:
        return second
    return TextBlock(
        first.content + second.content,
        np.concatenate([first.lines_N, second.lines_N]),
        np.concatenate([first.blank_lines, second.blank_lines]),
        second.broken,
        second.is_last,
    )


def _in_order(first: Sequence[BadLine], second: Sequence[BadLine]) -> tuple[BadLine, ...]:
    return tuple(sorted((*first, *second), key=lambda bad: bad.line))


def _lines(content: bytes) -> list[str]:
    """Lines without their ends; bytes that are not UTF-8 come back when the text is encoded again."""
    texts = content.decode("utf-8", "surrogateescape").split("\n")
    return texts[:-1] if texts[-1] == "" else texts


def _size(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


def _is_utf_8(content: bytes) -> bool:
    """Arrow names no row that is not: it gives the whole up when such a row has too many or too few fields."""
    if content.isascii():
        return True
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoded(column: Sequence[str]) -> pa.Array:
    try:
        return pa.array(column, pa.string()).cast(pa.binary())
    except UnicodeEncodeError:
        return pa.array([text.encode("utf-8", "surrogateescape") for text in column], pa.binary())


def _decoded(column: Any) -> pa.Array:
    """A column of ``.inter``; texts that are not UTF-8 stay what they are, and are named as bad later."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts = [_decoded_text(value) for value in encoded.dictionary.to_pylist()]
    decoded = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(texts, pa.binary()))
    return decoded.dictionary_decode().dictionary_encode()  # two spellings of one id are one value


def _decoded_text(value: bytes) -> bytes:
    try:
        return read_inter_id(value.decode()).encode() if b"%" in value else value
    except UnicodeError:
        return value


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputFormatError(
            f"the first line is not UTF-8: {error.reason} at byte {error.start}; its encoding may be stated, as latin-1"
        ) from error


def _separator(line: str) -> str:
    """The separator that divides a first line into most fields."""
    if line.count("::") >= 2:
        return "::"
    if not any(separator in line for separator in SEPARATORS):
        found = max(RARE_SEPARATORS, key=line.count)
        return found if line.count(found) >= 2 else ","
    return max(SEPARATORS, key=lambda separator: (line.count(separator), separator == ","))


def _cells(line: str, dialect: Dialect) -> list[str]:
    if not dialect.quotes:
        return line.split(dialect.separator)
    try:
        return next(csv.reader([line], delimiter=dialect.separator, strict=True))
    except csv.Error as error:
        raise InputFormatError(f"line 1: not a valid row: {_csv_reason(error)}") from error


def _wrong_width(found: int, expected: int) -> str:
    return f"{found} fields instead of {expected}"


def _csv_reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote is opened and not closed"
    return "a carriage return without a line feed" if "new-line" in text else text

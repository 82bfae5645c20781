"""
Text that may be compressed or of another encoding, within a budget: gzip, zstd and UTF-16 are seen by their start.

What a compressed file costs is bounded by what it yields, by what it takes to yield it, and by how it is made: a gzip
file of nothing but empty members, or with a header that never ends, is refused, since no program writes either.
"""

from __future__ import annotations

import codecs
import io
import zlib
from abc import abstractmethod
from typing import BinaryIO

import pyarrow as pa

from models.data.reading.raw_tables import Budget
from models.errors import InputFormatError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz file",
    b"BZh": "a bzip2 file",
    b"PAR1": "a Parquet file",
}
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 1 << 18
MAX_HEADER_BYTES = 1 << 16
# Real files of many members, bgzip's for instance, hold some 64 KiB in each.
FREE_MEMBERS, BYTES_A_MEMBER = 1000, 256


def expanded(file: BinaryIO, budget: Budget, encoding: str | None = None) -> BinaryIO:
    """
    *file* as text in UTF-8, decompressed where it is compressed; every byte read counts.

    Args:
        encoding: of the text; without one, UTF-16 is seen by its mark, and all else is taken for UTF-8.

    Raises:
        InputFormatError: it is an archive, or a table of another kind; later, that it is damaged.
    """
    head = file.read(8)
    file.seek(0)
    kind = next((kind for magic, kind in FOREIGN.items() if head.startswith(magic)), None)
    if kind is not None:
        raise InputFormatError(f"the file is {kind}, not text")
    if head.startswith(GZIP):
        source: io.RawIOBase = _Gzip(file)
    elif head.startswith(ZSTD):
        source = _Zstd(file)
    else:
        source = _Plain(file)
    text = io.BufferedReader(_Counted(source, budget), buffer_size=BLOCK_BYTES)
    found = encoding or ("utf-16" if text.peek(2)[:2] in UTF_16_MARKS else "utf-8")
    return text if found == "utf-8" else io.BufferedReader(_Recoded(text, found), buffer_size=BLOCK_BYTES)


class _Stream(io.RawIOBase):
    """Reads by ``block``, which returns at least one byte unless there are no more."""

    def __init__(self) -> None:
        super().__init__()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._left:
            self._left = self.block()
        part = self._left[: len(view)]
        self._left = self._left[len(part) :]
        view[: len(part)] = part
        return len(part)

    @abstractmethod
    def block(self) -> bytes: ...


class _Plain(_Stream):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def block(self) -> bytes:
        return self._file.read(BLOCK_BYTES)


class _Counted(_Stream):
    def __init__(self, source: io.RawIOBase, budget: Budget) -> None:
        super().__init__()
        self._source, self._budget = source, budget

    def block(self) -> bytes:
        content = self._source.read(BLOCK_BYTES) or b""
        self._budget.spend(len(content))
        return content


class _Recoded(_Stream):
    """Text of another encoding, as UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        super().__init__()
        self._source, self._encoding = source, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def block(self) -> bytes:
        while True:
            content = self._source.read(BLOCK_BYTES)
            try:
                text = self._decoder.decode(content, final=not content)
            except UnicodeError as error:  # UTF-16 without its mark is not even one that decodes
                reason = getattr(error, "reason", error)
                raise InputFormatError(f"the text is not {self._encoding}: {reason}") from error
            if text or not content:
                return text.encode("utf-8")


class _Zstd(_Stream):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        # Arrow closes the file that it was given, even when it is only forgotten; it is the caller's, to be read again
        self._stream = pa.CompressedInputStream(pa.PythonFile(_Plain(file), mode="r"), "zstd")

    def block(self) -> bytes:
        try:
            return bytes(self._stream.read(BLOCK_BYTES))
        except (pa.ArrowException, OSError) as error:
            raise InputFormatError(f"damaged zstd data: {error}") from error


class _Gzip(_Stream):
    """Member after member; zlib checks sums and lengths."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._input = b""
        self._members = self._yielded = 0
        self._begin()

    def _begin(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._members += 1
        self._silent = 0
        if self._members > FREE_MEMBERS + self._yielded // BYTES_A_MEMBER:
            raise InputFormatError(f"damaged gzip data: {self._members:,} members hold {self._yielded:,} bytes only")

    def block(self) -> bytes:
        while True:
            if not self._input:
                self._input = self._file.read(BLOCK_BYTES)
            if self._member.eof:
                self._input = self._input.lstrip(b"\0")  # padding between members, as gzip(1) passes over it
                if not self._input:
                    if self._file_ended():
                        return b""
                    continue
                self._begin()
            if not self._input:
                raise InputFormatError("damaged gzip data: the file ends in the middle")
            before = len(self._input)
            try:
                content = self._member.decompress(self._input, BLOCK_BYTES)
            except zlib.error as error:
                raise InputFormatError(f"damaged gzip data: {error}") from error
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._yielded += len(content)
            if content:
                self._silent = 0
                return content
            self._silent += before - len(self._input)
            if self._silent > MAX_HEADER_BYTES + BLOCK_BYTES:
                raise InputFormatError("damaged gzip data: a header without end")

    def _file_ended(self) -> bool:
        self._input = self._file.read(BLOCK_BYTES)
        return not self._input

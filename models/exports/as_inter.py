r"""
RecBole's text: tab-separated with typed column names, one dialect wherever Taesar writes it.

Tabs and spaces separate fields and items there, and RecBole's reader takes quotes for quotes and words such as NA for
missing values, so in identifiers white space, quotes, % and the first letter of such a word are percent-encoded;
``urllib.parse.unquote`` gives them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import pyarrow as pa

from models.exports.as_csv import positions_of
from models.exports.encoding import ExportFormat, FileParts, plain_rows

# What pandas, with which RecBole reads, takes for a missing value.
MISSING_WORDS = frozenset(
    "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null".split()  # noqa: SIM905
)
SEQUENCES_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
_NAMES = {"user": "user_id", "item": "item_id"}


def inter_text(users: Iterable[str], item_ids: Iterable[Sequence[str]]) -> str:
    r"""
    Sequences as a ``.inter`` file: each row's last item is the one to predict.

    >>> inter_text(["u 1"], [["a", 'b"', "NA"]]).splitlines()[1].split("\t")
    ['u%201', 'a b%22', '%4EA']
    """
    lines = [
        f"{inter_id(user)}\t{' '.join(map(inter_id, items[:-1]))}\t{inter_id(items[-1])}\n"
        for user, items in zip(users, item_ids, strict=True)
    ]
    return SEQUENCES_HEADER + "".join(lines)


def inter_id(identifier: str) -> str:
    """
    An identifier as a field of a ``.inter`` file.

    >>> [inter_id(text) for text in ("B01", "a b", "NA", '"z', "50%")]
    ['B01', 'a%20b', '%4EA', '%22z', '50%25']
    """
    if identifier in MISSING_WORDS:
        return f"%{ord(identifier[0]):02X}{identifier[1:]}"
    return re.sub(r'[\s%"]', lambda match: quote(match.group()), identifier)


def _interactions(schema: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    yield _line(_typed(field) for field in schema)
    for table in tables:
        yield b"".join(_line(map(_field, row)) for row in plain_rows(table))


def _sequences(_: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    yield b"user_id:token\titem_id:token\ttimestamp:float\n"
    for rows in positions_of(tables):
        yield b"".join(_line(map(_field, row)) for row in rows)


def _typed(field: pa.Field) -> str:
    kind = "token" if pa.types.is_string(field.type) else "float"
    return f"{_NAMES.get(field.name, field.name)}:{kind}"


def _field(value: object) -> str:
    if value is None:
        return ""
    return inter_id(value) if isinstance(value, str) else str(value)


def _line(fields: Iterable[str]) -> bytes:
    return ("\t".join(fields) + "\n").encode()


FORMAT = ExportFormat(interactions=_interactions, sequences=_sequences)

"""RecBole's text: tab-separated with typed column names; ``inter_ids`` says how identifiers are written there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from models.data.reading.inter_ids import inter_id
from models.exports.as_csv import positions_of
from models.exports.encoding import ExportFormat, FileParts, plain_rows

SEQUENCES_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
_NAMES = {"user": "user_id", "item": "item_id"}


def inter_lines(users: Iterable[str], item_ids: Iterable[Sequence[str]]) -> Iterator[str]:
    r"""
    Sequences as lines of a ``.inter`` file, below ``SEQUENCES_HEADER``: each row's last item is the one to predict.

    >>> next(inter_lines(["u 1"], [["a", 'b"', "NA"]])).split("\t")
    ['u%201', 'a b%22', '%4EA\n']
    """
    for user, items in zip(users, item_ids, strict=True):
        yield f"{inter_id(user)}\t{' '.join(map(inter_id, items[:-1]))}\t{inter_id(items[-1])}\n"


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

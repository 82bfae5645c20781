"""Newline-delimited JSON: an object a row, keys in the order of the columns."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

from models.exports.encoding import ExportFormat, FileParts, plain_rows


def to_ndjson(schema: pa.Schema, tables: Iterable[pa.Table]) -> FileParts:
    """One JSON object per row."""
    for table in tables:
        rows = (dict(zip(schema.names, row, strict=True)) for row in plain_rows(table))
        yield "".join(f"{_json(row)}\n" for row in rows).encode()


# json.dumps would make an encoder for every row
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


FORMAT = ExportFormat(interactions=to_ndjson, sequences=to_ndjson)

"""A pasted text as the items of a sequence."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

MOST_ITEMS = 4096


class UnreadableSequenceError(Exception):
    """The text is no sequence; says which line, and what is expected."""


@dataclass(frozen=True)
class PastedItem:
    """One item as it was written."""

    domain: str
    item_id: str


def parse_sequence(text: str) -> list[PastedItem]:
    r"""
    The items of *text*, oldest first: a line each, ``domain,item`` or with a tab between, or JSON as the API takes it.

    >>> parse_sequence("food,B000\nkitchen,K042")
    [PastedItem(domain='food', item_id='B000'), PastedItem(domain='kitchen', item_id='K042')]
    >>> parse_sequence('{"items": [{"item_id": "B000", "domain": "food"}]}')
    [PastedItem(domain='food', item_id='B000')]

    Raises:
        UnreadableSequenceError: it is neither, or too long.
    """
    stripped = text.strip()
    items = _of_json(stripped) if stripped[:1] in ("{", "[") else _of_lines(text)
    if len(items) > MOST_ITEMS:
        raise UnreadableSequenceError(f"{len(items):,} items; this page takes {MOST_ITEMS:,}, a job any number")
    return items


def _of_lines(text: str) -> list[PastedItem]:
    items = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        separator = "\t" if "\t" in line else ","
        try:
            cells = [cell.strip() for cell in next(csv.reader(io.StringIO(line), delimiter=separator))]
        except (csv.Error, StopIteration):
            cells = []
        if number == 1 and [cell.lower() for cell in cells[:2]] in (["domain", "item"], ["domain", "item_id"]):
            continue
        if len(cells) != 2 or not all(cells):
            raise UnreadableSequenceError(f"line {number}: expected a domain, a comma and an item, as in food,B000")
        items.append(PastedItem(*cells))
    return items


def _of_json(text: str) -> list[PastedItem]:
    try:
        return [_of_object(value) for value in _list_of(json.loads(text))]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError) as error:
        raise UnreadableSequenceError(
            'JSON, but no sequence as the API takes it: {"items": [{"item_id": "B000", "domain": "food"}]}'
        ) from error


def _list_of(value: Any) -> list[Any]:
    """The list of items in a request, in one of its sequences, or by itself."""
    if isinstance(value, dict) and "sequences" in value:
        value = value["sequences"][0]
    items = value["items"] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise TypeError
    return items


def _of_object(value: Any) -> PastedItem:
    domain, item_id = value["domain"], value["item_id"]
    if not isinstance(domain, str) or not isinstance(item_id, str):
        raise TypeError
    return PastedItem(domain, item_id)

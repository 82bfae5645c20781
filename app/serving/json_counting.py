"""
What a JSON text holds, counted as its bytes come and before any object is built of it.

A parser builds an object for every element before anybody can say that there are too many. Eight megabytes of empty
lists are 600,000 objects and ten seconds, in which the interpreter does nothing else.
"""

from __future__ import annotations

import numpy as np

QUOTE, OPENS, CLOSES, COMMA = 1, 2, 3, 4
_KINDS = np.zeros(256, dtype=np.uint8)
_KINDS[ord('"')] = QUOTE
_KINDS[[ord("{"), ord("[")]] = OPENS
_KINDS[[ord("}"), ord("]")]] = CLOSES
_KINDS[ord(",")] = COMMA
# So little is counted at a time that others' turn comes soon
COUNTED_BYTES = 64 * 1024
# A sequence has two fields, and so has an item; this many more are described one by one
MORE_FIELDS = 16
_BACKSLASH = ord("\\")


class JsonCounter:
    """
    Counts the commas outside strings by the depth that they stand at, part by part.

    An object or a list of n elements holds n - 1 commas, so that these bound whatever a parser builds. Text that is no
    JSON is counted somehow; a parser ends at its first mistake.

    Args:
        max_depth: braces and brackets inside one another that are counted; deeper ones only show in ``depth``.
    """

    def __init__(self, max_depth: int) -> None:
        self.commas = np.zeros(max_depth + 1, dtype=np.int64)
        """Commas at each depth; inside the outermost brackets the depth is 1."""
        self.deepest = 0
        """The greatest depth so far."""
        self._max_depth = max_depth
        self._depth = 0
        self._in_string = 0
        self._held_back = b""

    def add(self, part: bytes) -> None:
        """Count the next bytes of the text. A megabyte takes 5 ms."""
        part = self._held_back + part
        kept = part.rstrip(b"\\")
        # Whether what follows is escaped depends on whether the backslashes before it are odd in number
        self._held_back = b"\\" * ((len(part) - len(kept)) % 2)
        codes = np.frombuffer(kept, dtype=np.uint8)
        kinds = _KINDS[codes]
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        if b"\\" in kept:
            real = ~_escaped(codes, places) | (kinds != QUOTE)
            kinds = kinds[real]
        quotes = kinds == QUOTE
        inside = (np.cumsum(quotes) + self._in_string) & 1
        if len(inside):
            self._in_string = int(inside[-1])
        kinds = kinds[(inside == 0) & ~quotes]
        if not len(kinds):
            return
        depths = self._depth + np.cumsum((kinds == OPENS).astype(np.int64) - (kinds == CLOSES))
        self._depth = int(depths[-1])
        self.deepest = max(self.deepest, int(depths.max()))
        of_commas = depths[kinds == COMMA]
        counted = of_commas[(of_commas >= 0) & (of_commas <= self._max_depth)]
        self.commas += np.bincount(counted, minlength=self._max_depth + 1)


def overfull_sequence(text: bytes, *, max_items: int) -> str | None:
    """
    Why *text*, one sequence as JSON, holds too much to be validated, or None.

    Args:
        text: {"user_id": ..., "items": [{"item_id": ..., "domain": ...}, ...]}; items stand at depth 2.
        max_items: that it may have.
    """
    counter = JsonCounter(3)
    for start in range(0, len(text), COUNTED_BYTES):
        counter.add(text[start : start + COUNTED_BYTES])
    _, fields, items, item_fields = counter.commas.tolist()
    if items >= max_items:
        return f"{items + 1} items; the limit is {max_items}"
    if fields >= MORE_FIELDS or item_fields >= MORE_FIELDS + 2 * (items + 1):
        return "many fields that are not known"
    return None


def _escaped(codes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which of the *places* in *codes* follow an odd number of backslashes."""
    indices = np.arange(len(codes))
    last_other = np.maximum.accumulate(np.where(codes != _BACKSLASH, indices, -1))
    before = np.where(places > 0, last_other[places - 1], -1)
    odd: np.ndarray = (places - 1 - before) % 2 == 1
    return odd & (places > 0)

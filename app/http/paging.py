"""What lists share: cursors of keyset pages, the choice of a format by the Accept header, and what is unchanged."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence

from app.errors import InvalidCursorError, NotAcceptableError


def encode_cursor(key: Sequence[str]) -> str:
    """The key of a page's last row as text that is safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps(list(key)).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, num_parts: int) -> tuple[str, ...]:
    """
    The key that ``encode_cursor`` was given.

    Raises:
        InvalidCursorError: *cursor* is none of *num_parts* parts.
    """
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise InvalidCursorError from None
    if not isinstance(key, list) or len(key) != num_parts or not all(_is_text(part) for part in key):
        raise InvalidCursorError
    return tuple(key)


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """
    The media type of *offered* that the Accept header prefers; the first of equals, and without a header the first.

    Raises:
        NotAcceptableError: it admits none.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [_parse_range(part) for part in accept.split(",")]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    best = max(qualities)
    if best <= 0:
        raise NotAcceptableError(offered)
    return offered[qualities.index(best)]


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """
    Whether the If-None-Match header names *etag*, or anything at all by ``*``.

    Compared weakly (RFC 9110, 13.1.2): W/"x" and "x" are the same here, as a proxy may make the one of the other.
    """
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return etag.removeprefix("W/") in _TAG.findall(if_none_match)


_TAG = re.compile(r'"[^"]*"')


def _is_text(part: object) -> bool:
    return isinstance(part, str) and "\x00" not in part and not any("\ud800" <= c <= "\udfff" for c in part)


def _parse_range(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return media_range.lower(), float(value)
            except ValueError:
                return media_range.lower(), 0.0
    return media_range.lower(), 1.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers *media_type*, 0 when none does."""
    for pattern in (media_type, f"{media_type.split('/')[0]}/*", "*/*"):
        for media_range, quality in ranges:
            if media_range == pattern:
                return quality
    return 0.0

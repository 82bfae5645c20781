"""
Bodies of requests: read part by part, counted while they come, and validated without holding up anybody else.

Validation builds an object for every element and lets no other request go on meanwhile. So nothing is validated that
has too many of them, and what is large is validated in a thread, few at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.errors import ContentTypeError, InvalidBodyError, RequestTooLargeError
from app.serving.json_counting import JsonCounter
from app.serving.regeneration_bodies import RegenerateRequest
from app.settings import Settings

JSON = "application/json"
BodyT = TypeVar("BodyT", bound=BaseModel)

# So little takes no longer than a millisecond or two, whatever is in it
SMALL_BYTES = 16 * 1024
# A body of options, with every character of every field escaped, is smaller
MAX_OPTIONS_BYTES = 64 * 1024
# More wrong places than anybody reads are not described one by one
MAX_DESCRIBED = 1000
# A sequence has two fields, and so has an item; this many more are described one by one
MAX_FIELDS = 16
# The parser holds the interpreter from the first byte to the last, 50 ms at most: two together would be a hundred
LARGE_AT_ONCE = 1


@dataclass(frozen=True)
class RegenerateBounds:
    """
    What a body of POST /regenerate may hold, by the depth at which it stands: sequences at 2, items at 4.

    Args:
        max_sequences: in the request.
        max_items: in all sequences together.
    """

    max_sequences: int
    max_items: int

    DEPTH = 5

    @classmethod
    def of(cls, settings: Settings) -> RegenerateBounds:
        """The operator's limits."""
        return cls(settings.max_sequences_per_request, settings.max_items_per_request)

    def check(self, counter: JsonCounter) -> None:
        """
        Refuse what is over a bound.

        Raises:
            RequestTooLargeError: more sequences or items than the limits.
            InvalidBodyError: more fields, or deeper, than any valid body.
        """
        _, fields, sequences, sequence_fields, items, item_fields = counter.commas.tolist()
        if sequences >= self.max_sequences:
            limit = self.max_sequences
            raise RequestTooLargeError(f"more than {limit} sequences", limit, "TAESAR_MAX_SEQUENCES_PER_REQUEST")
        if items >= self.max_items:
            limit = self.max_items
            raise RequestTooLargeError(f"more than {limit} items", limit, "TAESAR_MAX_ITEMS_PER_REQUEST")
        too_many = (
            fields >= MAX_FIELDS
            or sequence_fields >= MAX_FIELDS + 2 * (sequences + 1)
            or item_fields >= MAX_FIELDS + 2 * (items + sequences + 1)
        )
        if too_many:
            raise InvalidBodyError("the body has many fields that are not known; the API's description names them")
        if counter.deepest > self.DEPTH:
            raise InvalidBodyError("the body is nested deeper than that of any valid request")


class BodyReader:
    """
    Reads and validates bodies, few large ones at a time.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._bounds = RegenerateBounds.of(settings)
        self._options_limit = min(
            (settings.max_body_bytes, "TAESAR_MAX_BODY_BYTES"), (MAX_OPTIONS_BYTES, "of a body that describes a job")
        )
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def regenerate_request(self, request: Request) -> RegenerateRequest:
        """
        The body of POST /regenerate.

        Raises:
            ContentTypeError: it does not say that it is JSON.
            RequestTooLargeError, InvalidBodyError: see ``RegenerateBounds.check``; the rest of it is not read.
            RequestValidationError: it is no valid request.
        """
        require_json(request)
        body = bytearray()
        counter: JsonCounter | None = None
        async for part in request.stream():
            body += part
            if counter is None and len(body) > SMALL_BYTES:
                counter = JsonCounter(RegenerateBounds.DEPTH)
                part = bytes(body)
            if counter is not None:
                counter.add(part)
                self._bounds.check(counter)
        if counter is None:
            return validated(RegenerateRequest, bytes(body))
        async with self._large:
            return await asyncio.to_thread(validated, RegenerateRequest, bytes(body))

    async def options(self, kind: type[BodyT], request: Request) -> BodyT:
        """
        A body of a few short fields.

        Raises:
            ContentTypeError, RequestTooLargeError: as above.
            RequestValidationError: it is not valid.
        """
        require_json(request)
        body = bytearray()
        async for part in request.stream():
            body += part
            limit, setting = self._options_limit
            if len(body) > limit:
                raise RequestTooLargeError(f"the body has more than {limit} bytes", limit, setting)
        return validated(kind, bytes(body))


def bodies_of(request: Request) -> BodyReader:
    """The application's reader of bodies."""
    reader: BodyReader = request.app.state.bodies
    return reader


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """What a route that reads its body itself says of it: ``openapi_extra``. The schema is ``Application``'s."""
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def require_json(request: Request) -> None:
    """
    Refuse a body that does not say it is JSON: a web page may send any other kind without being asked.

    Raises:
        ContentTypeError: it is said to be something else, or nothing.
    """
    if media_type(request) != JSON:
        raise ContentTypeError(JSON)


def media_type(request: Request) -> str:
    """The body's media type in lower case, without its parameters; empty when it is not said."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def validated(kind: type[BodyT], content: bytes | str) -> BodyT:
    """
    *content* as a body of *kind*.

    Raises:
        RequestValidationError: it is none; says where, under "body".
        InvalidBodyError: it is none, in more places than anybody reads.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        total = error.error_count()
        if total > MAX_DESCRIBED:
            raise InvalidBodyError(f"the body is wrong in {total:,} places") from error
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**part, "loc": ("body", *part["loc"])} for part in found]) from error

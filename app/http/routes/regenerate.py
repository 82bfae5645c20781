"""Synchronous regeneration."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError

from app.access.key_file import KeyScope
from app.errors import (
    ClientLeftError,
    ContentTypeError,
    InvalidBodyError,
    KeyLimitError,
    ModelProcessDiedError,
    ModelThreadDiedError,
    ModelUnavailableError,
    QueueFullError,
    RequestTooLargeError,
    ShuttingDownError,
    UnknownModelError,
    UnknownSequenceItemsError,
)
from app.http.bodies import bodies_of, json_body
from app.http.key_checks import key_limits_of, key_name_of, needs
from app.http.problems import problem_responses
from app.http.routes.models import inference_of
from app.runtime.logs import current_request_id
from app.serving.regeneration_bodies import RegenerateRequest, RegenerateResponse
from models.errors import UnknownDomainError

router = APIRouter(tags=["regeneration"])

ResultT = TypeVar("ResultT")


@router.post(
    "/regenerate",
    summary="Rewrite mixed sequences for one target domain",
    response_model=RegenerateResponse,
    dependencies=[needs(KeyScope.REGENERATE)],
    openapi_extra=json_body(RegenerateRequest),
    responses=problem_responses(
        UnknownDomainError,
        UnknownModelError,
        ContentTypeError,
        InvalidBodyError,
        RequestTooLargeError,
        RequestValidationError,
        UnknownSequenceItemsError,
        QueueFullError,
        KeyLimitError,
        ModelUnavailableError,
        ModelProcessDiedError,
        ModelThreadDiedError,
        ShuttingDownError,
    ),
)
async def regenerate(request: Request) -> Response:
    """
    Every item of another domain becomes an item of the target domain, or is deleted; the target's own items stay.

    The same sequence gets the same answer, to the bit, alone, in any batch, from a job and from the command line: on
    the CPU, and on a GPU as far as one was tried. CPU and GPU may differ at near ties.
    """
    # Not a dependency: FastAPI runs one that is no coroutine in a thread, for every request
    inference = inference_of(request)
    body = await bodies_of(request).regenerate_request(request)
    with key_limits_of(request).holding_sequences(key_name_of(request), len(body.sequences)):
        answer = await while_connected(request, inference.regenerate(body, request_id=current_request_id()))
    # Written here: FastAPI would validate the answer, copy it into dictionaries and write those, three times the work
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """
    The result of *work*, which is cancelled when the client leaves.

    Call it when the request's body has been read.

    Raises:
        ClientLeftError: the connection closed first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError("the client closed the connection")
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""The items that a model knows: found by a part of their name, and drawn as a map."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool

from app.errors import UnknownModelError
from app.http.key_checks import ANY_KEY
from app.http.paging import is_unchanged
from app.http.problems import problem_responses
from app.http.routes.models import inference_of
from app.serving.item_map import ItemMaps
from app.serving.model_bodies import ItemMatches, KnownItem
from app.serving.regeneration import Inference
from models.bundle import BundleDescription
from models.errors import BundleError, UnknownDomainError, UnknownItemError
from models.vocabulary import Vocabulary

router = APIRouter(tags=["models"])

BYTES = "application/octet-stream"
MAX_ITEMS = 1000

Texts = Annotated[list[Annotated[str, Query(max_length=512)]] | None, Query(max_length=MAX_ITEMS)]
Numbers = Annotated[list[Annotated[int, Query(ge=0)]] | None, Query(max_length=MAX_ITEMS)]


async def bundle_of(
    version: Annotated[str, Path(examples=["4f0c2a9be1d7"], description="As GET /models lists it.")],
    inference: Annotated[Inference, Depends(inference_of)],
) -> BundleDescription:
    """The bundle of the path, in memory or in a folder; raises UnknownModelError, BundleError."""
    return await inference.registry.description(version)


def maps_of(request: Request) -> ItemMaps:
    """The application's maps."""
    maps: ItemMaps = request.app.state.item_maps
    return maps


@router.get(
    "/models/{version}/items",
    summary="Find items of a model",
    dependencies=[ANY_KEY],
    responses=problem_responses(UnknownModelError, BundleError, UnknownDomainError, RequestValidationError),
)
def find_items(
    bundle: Annotated[BundleDescription, Depends(bundle_of)],
    domain: Annotated[str | None, Query(max_length=512, description="Only its items; all domains' else.")] = None,
    search: Annotated[
        str, Query(max_length=512, description="Only items whose id holds this, in upper or lower case.")
    ] = "",
    item_id: Texts = None,
    number: Numbers = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ITEMS, description="Items of the answer.")] = 20,
) -> ItemMatches:
    """
    Items in the order of their numbers, which are their places in GET /models/{version}/map.

    `item_id` and `number`, which may be given several times, ask for certain items: those that the model does not know
    are left out.
    """
    vocabulary = bundle.vocabulary
    if domain is not None:
        vocabulary.domain_index(domain)
    domains = vocabulary.domains if domain is None else (domain,)
    if number is not None:
        chosen = [at for at in number if at < vocabulary.num_items]
    elif item_id is not None:
        chosen = [at for name in domains for text in item_id for at in _number_of(vocabulary, name, text)]
    else:
        chosen = _matching(vocabulary, domains, search.casefold())
    return ItemMatches(
        model_version=bundle.version, items=[_item(vocabulary, at) for at in chosen[:limit]], total=len(chosen)
    )


@router.get(
    "/models/{version}/map",
    summary="The items of a model as points",
    dependencies=[ANY_KEY],
    response_class=Response,
    responses={
        **problem_responses(UnknownModelError, BundleError, RequestValidationError),
        200: {"description": "Pairs of numbers.", "content": {BYTES: {"schema": {"type": "string"}}}},
        304: {"description": "Not changed since the version that If-None-Match names."},
    },
)
async def read_map(
    request: Request,
    bundle: Annotated[BundleDescription, Depends(bundle_of)],
    maps: Annotated[ItemMaps, Depends(maps_of)],
) -> Response:
    """
    X and y of every item, both in [-1, 1], as little-endian 32-bit floats in the order of the items' numbers.

    Items lie near one another where the base decoder takes them for alike: principal components of its item table.
    """
    tag = f'"{bundle.version}-1"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=86400"}
    if is_unchanged(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    points = await run_in_threadpool(maps.points, bundle)
    return Response(points.astype("<f4").tobytes(), media_type=BYTES, headers=headers)


def _matching(vocabulary: Vocabulary, domains: tuple[str, ...], search: str) -> list[int]:
    found: list[int] = []
    for domain in domains:
        first = vocabulary.token_range(domain).first - 1
        names = vocabulary.item_ids[vocabulary.domain_index(domain)]
        found += [first + at for at, name in enumerate(names) if search in name.casefold()]
    return found


def _number_of(vocabulary: Vocabulary, domain: str, item_id: str) -> list[int]:
    try:
        return [vocabulary.token_id(domain, item_id) - 1]
    except UnknownItemError:
        return []


def _item(vocabulary: Vocabulary, number: int) -> KnownItem:
    domain, item_id = vocabulary.external_id(number + 1)
    return KnownItem(number=number, domain=domain, item_id=item_id)

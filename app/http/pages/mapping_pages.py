"""Mappings: which items became which, searched, listed and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.pages.models_known import ServingModel, serving_model
from app.http.pages.own_api import OwnApi, segment
from app.http.pages.rendering import page
from app.http.sessions import PAGES

router = APIRouter(prefix=PAGES, include_in_schema=False)

PAIRS_SHOWN = 40
PAIRS_LINKED = 200
TARGETS_SHOWN = 25
MATCHES_SHOWN = 30


@router.get("/mappings")
async def show_mappings(request: Request, target: str = "") -> Response:
    """The most frequent pairs, the search, and the map."""
    api = OwnApi(request)
    model = await serving_model(api)
    if model is None:
        return page(request, "mappings.html", view="mappings", title="Mappings", model=None)
    target = model.chosen(target)
    lines = await _lines(api, target, order="count", limit=PAIRS_LINKED)
    return page(
        request,
        "mappings.html",
        view="mappings",
        title="Mappings",
        model=model,
        target=target,
        lines=lines[:PAIRS_SHOWN],
        links=json.dumps(await _links(api, model, target, lines)),
        ranges=json.dumps(_ranges(model)),
    )


@router.get("/mappings/search")
async def search_items(request: Request, target: str = "", search: str = "") -> Response:
    """Items whose id holds what was typed; without any text the most frequent pairs again."""
    api = OwnApi(request)
    model = await serving_model(api)
    if model is None or not search.strip():
        lines = [] if model is None else await _lines(api, model.chosen(target), order="count", limit=PAIRS_SHOWN)
        return page(request, "pairs.html", model=model, target=target, lines=lines)
    path = f"/models/{segment(model.version)}/items"
    found = await api.get(path, search=search.strip()[:512], limit=MATCHES_SHOWN)
    return page(
        request,
        "matches.html",
        model=model,
        target=model.chosen(target),
        items=found["items"],
        total=found["total"],
        search=search,
    )


@router.get("/mappings/item")
async def show_item(
    request: Request, target: str = "", domain: str = "", item: str = "", number: int | None = None
) -> Response:
    """One item: what became of it, or, of the target's, what became it."""
    api = OwnApi(request)
    model = await serving_model(api)
    if model is None:
        return page(request, "item_mapping.html", model=None, known=None, links="[]")
    target = model.chosen(target)
    query: dict[str, Any] = {"number": [number]} if number is not None else {"domain": domain, "item_id": [item]}
    found = (await api.get(f"/models/{segment(model.version)}/items", **query))["items"]
    if not found:
        return page(request, "item_mapping.html", model=model, target=target, known=None, links="[]")
    known = found[0]
    back = known["domain"] == target
    asked = (
        {"target_item": known["item_id"], "order": "count"}
        if back
        else {"source_domain": known["domain"], "source_item": known["item_id"]}
    )
    lines = await _lines(api, target, limit=1000, **asked)
    lines.sort(key=lambda line: (line["target_item"] is None, -line["count"]))
    shown = lines[:TARGETS_SHOWN]
    return page(
        request,
        "item_mapping.html",
        model=model,
        target=target,
        known=known,
        back=back,
        lines=shown,
        total=len(lines),
        links=json.dumps(await _links(api, model, target, shown)),
    )


async def _lines(api: OwnApi, target: str, **query: object) -> list[dict[str, Any]]:
    path = f"/mappings/{segment(target)}"
    lines: list[dict[str, Any]] = (await api.get(path, **query))["mappings"]
    return lines


async def _links(
    api: OwnApi, model: ServingModel, target: str, lines: Sequence[dict[str, Any]]
) -> list[tuple[int, int, float]]:
    """Source item's and target item's number, and the share, of every replacement among *lines* that the map holds."""
    pairs = [line for line in lines if line["target_item"] is not None]
    wanted: dict[str, set[str]] = {target: {line["target_item"] for line in pairs}}
    for line in pairs:
        wanted.setdefault(line["source_domain"], set()).add(line["source_item"])
    numbers: dict[tuple[str, str], int] = {}
    for domain, names in wanted.items():
        if domain in model.domains and names:
            path = f"/models/{segment(model.version)}/items"
            found = await api.get(path, domain=domain, item_id=sorted(names), limit=1000)
            numbers |= {(item["domain"], item["item_id"]): item["number"] for item in found["items"]}
    ends = [
        (numbers.get((line["source_domain"], line["source_item"])), numbers.get((target, line["target_item"])), line)
        for line in pairs
    ]
    return [(a, b, round(line["share"], 4)) for a, b, line in ends if a is not None and b is not None]


def _ranges(model: ServingModel) -> list[dict[str, Any]]:
    """Where each domain's items begin on the map, and its colour."""
    first, ranges = 0, []
    for domain in model.domains:
        ranges.append({"domain": domain, "first": first, "colour": model.colours[domain]})
        first += model.domain(domain)["num_items"]
    return ranges

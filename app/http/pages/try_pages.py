"""Try it: one sequence, and what became of every item of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from app.http.pages.models_known import ServingModel, serving_model
from app.http.pages.own_api import OwnApi, segment
from app.http.pages.rendering import page, settings_of
from app.http.pages.sequence_text import PastedItem, UnreadableSequenceError, parse_sequence
from app.http.pages.timeline import RUNNERS_UP, Candidate, Question, tell
from app.http.sessions import PAGES

router = APIRouter(prefix=PAGES, include_in_schema=False)

EXAMPLE_ITEMS = 4  # of each domain
SUGGESTED = 12
LIKELY = RUNNERS_UP + 8  # those that were taken, or that the sequence holds, are not runners-up
ITEMS_ASKED = 500


@router.get("/try")
async def show_try(request: Request, target: str = "", sequence: str = "") -> Response:
    """The form, perhaps with a sequence in it."""
    model = await serving_model(OwnApi(request))
    return page(
        request,
        "try.html",
        view="try",
        title="Try it",
        model=model,
        target=None if model is None else model.chosen(target),
        sequence=sequence,
    )


@router.get("/try/items")
async def suggest_items(request: Request, domain: str = "", item: str = "") -> Response:
    """Items whose id holds what was typed, as options."""
    api = OwnApi(request)
    model = await serving_model(api)
    found: list[Any] = []
    if model is not None and domain in model.domains:
        path = f"/models/{segment(model.version)}/items"
        found = (await api.get(path, domain=domain, search=item[:512], limit=SUGGESTED))["items"]
    return page(request, "item_options.html", items=found)


@router.get("/try/example")
async def show_example(request: Request, target: str = "") -> Response:
    """A sequence of items that the model knows, domain after domain, to begin with."""
    api = OwnApi(request)
    model = await serving_model(api)
    lines: list[str] = []
    if model is not None:
        target = model.chosen(target)
        order = [domain for domain in model.domains if domain != target] + [target]
        found = {domain: await _some_items(api, model, domain) for domain in order}
        rows = [
            (domain, names[at]) for at in range(EXAMPLE_ITEMS) for domain, names in found.items() if at < len(names)
        ]
        rows += [(domain, names[-1]) for domain, names in found.items() if names and domain != target]
        lines = [f"{domain}\t{name}" for domain, name in rows]
    return page(request, "sequence_field.html", sequence="\n".join(lines), problem=None)


@router.post("/try")
async def regenerate(
    request: Request, target: Annotated[str, Form()] = "", sequence: Annotated[str, Form()] = ""
) -> Response:
    """The timeline of a sequence."""
    api = OwnApi(request)
    model = await serving_model(api)
    try:
        items = parse_sequence(sequence)
    except UnreadableSequenceError as error:
        problem = {"title": "This is not a sequence", "detail": str(error)}
        return page(request, "problem_part.html", status=422, problem=problem)
    if model is None or not items:
        problem = {"title": "Nothing to rewrite", "detail": "Paste, pick or upload a sequence of one item or more."}
        return page(request, "problem_part.html", status=422, problem=problem)
    target = model.chosen(target)
    known = await _known(api, model, items)
    answer = await _ask(api, target, [items])
    question = Question(items, target, known, model.rule, model.domain(target)["serving_hints"])
    regenerated = answer[0]
    expected = await _expected(api, question, regenerated, settings_of(request).max_sequences_per_request)
    return page(
        request,
        "timeline.html",
        model=model,
        target=target,
        moments=tell(question, regenerated, expected),
        answer=regenerated,
        total=len(items),
    )


async def _ask(
    api: OwnApi, target: str, sequences: Sequence[Sequence[PastedItem]], **options: object
) -> list[Mapping[str, Any]]:
    body = {
        "target_domain": target,
        "explain": True,
        "sequences": [
            {"items": [{"item_id": item.item_id, "domain": item.domain} for item in sequence]} for sequence in sequences
        ],
        **options,
    }
    sequences_of: list[Mapping[str, Any]] = (await api.send("POST", "/regenerate", body))["sequences"]
    return sequences_of


async def _expected(
    api: OwnApi, question: Question, answer: Mapping[str, Any], most: int
) -> dict[int, tuple[Candidate, ...]]:
    """
    What the target's expert expects after every run that left something: asked as a client would, run by run.

    A run is read with all before it that the model reads, so the first unread items are left out of every question.
    """
    first = question.num_unread(answer["truncated"])
    ends = question.run_ends(first)
    replaced = {step["position"] for step in answer["steps"] if step["action"] == "replaced"}
    asked = sorted({end for at, end in ends.items() if at in replaced})[-most:]
    if not asked:
        return {}
    histories = [question.items[first : end + 1] for end in asked]
    answers = await _ask(api, question.target, histories, likely_items=LIKELY)
    return {
        end: tuple(Candidate(item["item_id"], math.exp(item["log_probability"])) for item in told["likely_items"])
        for end, told in zip(asked, answers, strict=True)
    }


async def _known(api: OwnApi, model: ServingModel, items: Sequence[PastedItem]) -> frozenset[PastedItem]:
    """Which of the items the model knows."""
    path = f"/models/{segment(model.version)}/items"
    known: set[PastedItem] = set()
    ordered = sorted({item for item in items if item.domain in model.domains}, key=lambda item: item.domain)
    for domain, group in groupby(ordered, key=lambda item: item.domain):
        names = [item.item_id[:512] for item in group]
        for start in range(0, len(names), ITEMS_ASKED):
            asked = names[start : start + ITEMS_ASKED]
            found = await api.get(path, domain=domain, item_id=asked, limit=len(asked))
            known |= {PastedItem(item["domain"], item["item_id"]) for item in found["items"]}
    return frozenset(known)


async def _some_items(api: OwnApi, model: ServingModel, domain: str) -> list[str]:
    """Names of a few items of *domain*, spread over all of them."""
    path, size = f"/models/{segment(model.version)}/items", model.domain(domain)["num_items"]
    first = sum(model.domain(name)["num_items"] for name in model.domains[: model.domains.index(domain)])
    numbers = sorted({first + size * at // (EXAMPLE_ITEMS + 1) for at in range(EXAMPLE_ITEMS + 1)} if size else set())
    return [item["item_id"] for item in (await api.get(path, number=numbers))["items"]]

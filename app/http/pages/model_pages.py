"""Models: what could serve, how each was trained, and which does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from fastapi import APIRouter, Request
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.http.pages.own_api import OwnApi, segment
from app.http.pages.rendering import page
from app.http.sessions import PAGES
from models.report import charts

router = APIRouter(prefix=PAGES, include_in_schema=False)

VALIDATION = "validation_ndcg_at_10"
ON_DISK_SHOWN = 20
CURVES_KEPT = 64


@router.get("/models")
async def show_models(request: Request) -> Response:
    """Every model, the active one first."""
    return await _models(request)


@router.post("/models/activate")
async def activate_model(request: Request, version: str = "") -> Response:
    """Serve another model from now on; the list again."""
    await OwnApi(request).send("POST", f"/models/{segment(version)}/activate")
    return await _models(request, said=f"{version} serves now.")


@router.post("/models/roll-back")
async def roll_back(request: Request) -> Response:
    """Take back the last switch; the list again."""
    models = await OwnApi(request).send("POST", "/models/roll-back")
    return await _models(request, said=f"{models['active']} serves now.")


async def _models(request: Request, said: str = "") -> Response:
    api = OwnApi(request)
    models = await api.get("/models")
    on_disk = [await api.get(f"/models/{segment(version)}") for version in models["available"][:ON_DISK_SHOWN]]
    curves = {
        model["version"]: await run_in_threadpool(training_curves, json.dumps(model["provenance"]))
        for model in [*models["loaded"], *on_disk]
    }
    name = "model_list.html" if "HX-Request" in request.headers else "models.html"
    content = {"models": models, "on_disk": on_disk, "curves": curves, "said": said}
    return page(request, name, view="models", title="Models", **content)


@lru_cache(maxsize=CURVES_KEPT)
def training_curves(provenance: str) -> Markup | None:
    """The validation of base and experts, epoch after epoch, as a chart; None where a *provenance*, JSON, has none."""
    known = json.loads(provenance)
    experts = known.get("experts")
    stages = {
        "base": known.get("base"),
        **(experts if isinstance(experts, Mapping) else {}),
        "joint expert": known.get("joint"),
    }
    series = [charts.Series(str(name), values) for name, stage in stages.items() if (values := _values(stage))]
    if not series:
        return None
    svg = charts.line_chart("NDCG@10 on validation", series, x_label="epoch", y_label="NDCG@10")
    return Markup(svg)


def _values(stage: object) -> list[float]:
    """One value an epoch, as far as a provenance, which anybody may have written, holds numbers."""
    epochs = stage.get("epochs") if isinstance(stage, Mapping) else None
    if not isinstance(epochs, list):
        return []
    values = [epoch.get(VALIDATION) for epoch in epochs if isinstance(epoch, Mapping)]
    return [float(value) for value in values if isinstance(value, int | float)]

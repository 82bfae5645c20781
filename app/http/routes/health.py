"""Liveness, readiness and metrics; open without a key."""

from __future__ import annotations

import importlib.metadata
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from app.errors import NotAliveError, NotReadyError
from app.http.problems import problem_responses
from app.runtime.metrics import Metrics
from app.runtime.readiness import Probe, failing, run_probes
from app.settings import Settings

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """The process lives."""

    status: Literal["alive"] = "alive"
    version: str = Field(description="Version of the software.")


class Readiness(BaseModel):
    """Every check passed."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(description="Check -> 'ok'.", examples=[{"model": "ok"}])
    remarks: dict[str, str] = Field(
        description="What else people should know, although requests can be served: why jobs wait, for instance.",
        examples=[{"workers": "no worker has been seen for 30 s: jobs wait"}],
    )


@router.get("/healthz", summary="Does the process live?", responses=problem_responses(NotAliveError))
async def healthz(request: Request) -> Health:
    """200 unless only a restart can help. Whether requests can be served just now is what /readyz says."""
    checks = await _run(request, tuple(probe for probe in _probes(request) if probe.restart_mends))
    if failing(checks):
        raise NotAliveError(checks)
    return Health(version=importlib.metadata.version("taesar"))


@router.get("/readyz", summary="Can requests be served?", responses=problem_responses(NotReadyError))
async def readyz(request: Request) -> Readiness:
    """
    Run every check (model, its thread, and what other parts add); 503 names those that fail.

    Jobs that wait for a worker, or for a worker's full disk, are a remark: requests are served without any.
    """
    checks = await _run(request, _probes(request))
    advice = {probe.name for probe in _probes(request) if probe.is_advice}
    remarks = {name: checks[name] for name in failing(checks) if name in advice}
    if set(failing(checks)) - advice:
        raise NotReadyError(checks)
    return Readiness(checks={name: said for name, said in checks.items() if name not in advice}, remarks=remarks)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text exposition."}},
)
async def metrics(request: Request) -> Response:
    """Every metric of this process, in Prometheus's text format."""
    collected: Metrics = request.app.state.metrics
    return Response(generate_latest(collected.registry), media_type=CONTENT_TYPE_LATEST)


def _probes(request: Request) -> tuple[Probe, ...]:
    probes: tuple[Probe, ...] = request.app.state.probes
    return probes


async def _run(request: Request, probes: tuple[Probe, ...]) -> dict[str, str]:
    settings: Settings = request.app.state.settings
    return await run_probes(probes, timeout_seconds=settings.probe_timeout_seconds)

"""Jobs: submit by upload, watch, cancel, download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.http.pages.models_known import serving_model
from app.http.pages.own_api import OwnApi, segment
from app.http.pages.rendering import page
from app.http.sessions import PAGES
from models.data.reading.layouts import ROLES
from models.exports.export_formats import FILE_FORMATS

router = APIRouter(prefix=PAGES, include_in_schema=False)

JOBS_SHOWN = 30
ERRORS_SHOWN = 50
ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Pace:
    """How fast a job goes: sequences a second, and the seconds that are left; None where nothing can be said yet."""

    seconds: float
    rate: float | None
    seconds_left: float | None


@router.get("/jobs")
async def show_jobs(request: Request, target: str = "", cursor: str | None = None) -> Response:
    """The form, and the jobs, newest first."""
    api = OwnApi(request)
    model = await serving_model(api)
    jobs = await api.get("/jobs", limit=JOBS_SHOWN, cursor=cursor)
    return page(
        request,
        "jobs.html",
        view="jobs",
        title="Jobs",
        model=model,
        target=None if model is None else model.chosen(target),
        jobs=jobs["jobs"],
        following=jobs["next"],
    )


@router.post("/jobs/preview")
async def preview(request: Request) -> Response:
    """The first rows of a file, and what each column is taken for."""
    async with request.form(max_files=1, max_fields=32) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            problem = {"title": "No file", "detail": "Choose a file to see how it would be read."}
            return page(request, "problem_part.html", status=422, problem=problem)
        fields = {name: value for name, value in form.items() if isinstance(value, str) and value}
        content = await file.read()
        found = await OwnApi(request).upload("/previews", fields, {"file": (file.filename or "upload", content)})
    return page(request, "job_preview.html", preview=found, roles=ROLES)


@router.get("/jobs/{job_id}")
async def show_job(request: Request, job_id: str) -> Response:
    """One job, which its page follows."""
    api = OwnApi(request)
    return page(request, "job.html", view="jobs", title="Job", **await _job(api, job_id))


@router.get("/jobs/{job_id}/progress")
async def show_progress(request: Request, job_id: str) -> Response:
    """The part of a job's page that changes."""
    return page(request, "job_progress.html", **await _job(OwnApi(request), job_id))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(request: Request, job_id: str) -> Response:
    """Cancel it; the part of its page that changes."""
    api = OwnApi(request)
    await api.send("DELETE", f"/jobs/{segment(job_id)}")
    return page(request, "job_progress.html", **await _job(api, job_id))


async def _job(api: OwnApi, job_id: str) -> dict[str, Any]:
    job = await api.get(f"/jobs/{segment(job_id)}")
    errors: list[Any] = []
    if job["counts"]["rows_bad"]:
        errors = [json.loads(line) for line in await api.lines(f"/jobs/{segment(job_id)}/errors", limit=ERRORS_SHOWN)]
    counts = job["counts"]
    parts = [("kept", counts["kept"] + counts["unknown_kept"])]
    parts += [(name, counts[name]) for name in ("replaced", "deleted", "unknown")]
    return {
        "job": job,
        "ended": job["state"] in ENDED,
        "pace": pace_of(job, datetime.now(UTC)),
        "parts": parts,
        "errors": errors,
        "formats": sorted(FILE_FORMATS),
    }


def pace_of(job: Mapping[str, Any], now: datetime) -> Pace | None:
    """The pace of a job as the API tells of it; None before it has begun."""
    if job["started_at"] is None:
        return None
    started = datetime.fromisoformat(job["started_at"])
    ended = job["finished_at"]
    seconds = ((datetime.fromisoformat(ended) if ended else now) - started).total_seconds()
    share, done = job["progress"]["share"], job["counts"]["sequences"]
    rate = done / seconds if done and seconds > 0 else None
    left = None if not share or ended else seconds * (1 - share) / share
    return Pace(max(0.0, seconds), rate, left)

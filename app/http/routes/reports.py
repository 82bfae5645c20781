"""The reports of evaluations that lie in TAESAR_REPORTS."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError

from app.errors import UnknownReportError
from app.http.key_checks import ANY_KEY
from app.http.problems import problem_responses
from app.serving.report_folders import ReportFolders, Reports

router = APIRouter(tags=["reports"])


def reports_of(request: Request) -> ReportFolders:
    """The application's reports."""
    folders: ReportFolders = request.app.state.reports
    return folders


@router.get("/reports", summary="Reports of evaluations", dependencies=[ANY_KEY])
async def list_reports(folders: Annotated[ReportFolders, Depends(reports_of)]) -> Reports:
    """What `taesar evaluate` wrote into subfolders of TAESAR_REPORTS, the newest first."""
    return Reports(reports=await asyncio.to_thread(folders.listed))


@router.get(
    "/reports/{name}",
    summary="One report",
    dependencies=[ANY_KEY],
    responses=problem_responses(UnknownReportError, RequestValidationError),
)
async def read_report(
    name: Annotated[str, Path(examples=["kitchen"], description="As GET /reports lists it.")],
    folders: Annotated[ReportFolders, Depends(reports_of)],
) -> dict[str, Any]:
    """The content of report.json; docs/evaluation.md says how to read it."""
    return await asyncio.to_thread(folders.content, name)

"""The folders of TAESAR_REPORTS, each a report of ``taesar evaluate``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.errors import UnknownReportError

REPORT = "report.json"
MAX_BYTES = 64 * 1024**2


class ReportSummary(BaseModel):
    """One report."""

    name: str = Field(description="Its folder's name.")
    target: str = Field(description="The domain whose recommendations it judges.")
    dataset: str = Field(description="Name of the data set.")
    bundle: str | None = Field(description="Version of the bundle that regenerated; null: none did.")
    written: datetime


class Reports(BaseModel):
    """Reports, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "reports": [
                        {
                            "name": "kitchen",
                            "target": "kitchen",
                            "dataset": "spring",
                            "bundle": "4f0c2a9be1d7",
                            "written": "2026-03-01T04:00:00Z",
                        }
                    ]
                }
            ]
        }
    )

    reports: list[ReportSummary]


class ReportFolders:
    """
    Finds reports.

    Args:
        root: the folder of their folders; None: there are none.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def listed(self) -> list[ReportSummary]:
        """Every readable report, the newest first; what is none is passed over."""
        found = [summary for path in self._paths() if (summary := _summary(path)) is not None]
        return sorted(found, key=lambda summary: (summary.written, summary.name), reverse=True)

    def content(self, name: str) -> dict[str, Any]:
        """The report *name* as it was written; raises UnknownReportError."""
        for path in self._paths():
            if path.parent.name == name and (content := _read(path)) is not None:
                return content
        raise UnknownReportError(name)

    def _paths(self) -> list[Path]:
        if self._root is None or not self._root.is_dir():
            return []
        return sorted(path for folder in self._root.iterdir() if (path := folder / REPORT).is_file())


def _summary(path: Path) -> ReportSummary | None:
    content = _read(path)
    if content is None:
        return None
    provenance = content["provenance"]
    composite = provenance.get("composite")
    try:
        return ReportSummary(
            name=path.parent.name,
            target=provenance["target"],
            dataset=provenance["dataset"],
            bundle=composite.get("bundle_version") if isinstance(composite, dict) else None,
            written=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        )
    except (KeyError, ValueError, OSError):  # pydantic's ValidationError is a ValueError
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_report = isinstance(content, dict) and isinstance(content.get("provenance"), dict)
    return content if is_report else None

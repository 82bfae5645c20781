"""What is here: the first page for programs."""

from __future__ import annotations

import importlib.metadata

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

LINKS = {
    "description": "/docs",
    "openapi": "/openapi.json",
    "liveness": "/healthz",
    "readiness": "/readyz",
    "metrics": "/metrics",
    "pages": "/ui",
    "models": "/models",
    "reports": "/reports",
    "regenerate": "/regenerate",
    "jobs": "/jobs",
    "mappings": "/mappings/{domain}",
}

router = APIRouter(tags=["operation"])


class Index(BaseModel):
    """What the service is, and where its parts are."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "taesar", "version": "0.1.0", "links": {"jobs": "/jobs"}}]}
    )

    name: str = Field(description="Of the software.")
    version: str = Field(description="Of the software.")
    links: dict[str, str] = Field(description="What there is -> its path.")


@router.get("/", summary="What is here?")
async def index() -> Index:
    """Where everything is; open without a key."""
    return Index(name="taesar", version=importlib.metadata.version("taesar"), links=LINKS)

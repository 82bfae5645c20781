"""The models that serve or could serve."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError

from app.errors import UnknownModelError
from app.http.problems import problem_responses
from app.serving.model_bodies import Model, Models
from app.serving.regeneration import Inference
from models.errors import BundleError

router = APIRouter(tags=["models"])


def inference_of(request: Request) -> Inference:
    """The application's inference."""
    inference: Inference = request.app.state.inference
    return inference


@router.get("/models", summary="Loaded and loadable models")
async def list_models(inference: Annotated[Inference, Depends(inference_of)]) -> Models:
    """Models in memory with their domains, rule and provenance, and the versions that activation would load."""
    return await inference.registry.describe()


@router.post(
    "/models/{version}/activate",
    summary="Switch to a model",
    responses=problem_responses(UnknownModelError, BundleError, RequestValidationError),
)
async def activate_model(
    version: Annotated[str, Path(examples=["4f0c2a9be1d7"], description="As GET /models lists it.")],
    inference: Annotated[Inference, Depends(inference_of)],
) -> Model:
    """
    Serve this version from the next request on, loading it when it is not in memory.

    Requests already accepted are answered by the model they met. A bundle that cannot be loaded is a 409 that names
    the file and the reason, and the model that serves goes on serving.
    """
    return await inference.registry.activate(version)

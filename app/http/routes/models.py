"""The models that serve or could serve."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.exceptions import RequestValidationError

from app.access.key_file import KeyScope
from app.errors import (
    ActivationConflictError,
    ContentTypeError,
    ModelProcessDiedError,
    ModelUnavailableError,
    RequestTooLargeError,
    StoreUnavailableError,
    UnknownModelError,
)
from app.http.bodies import bodies_of, json_body
from app.http.key_checks import ANY_KEY, needs
from app.http.problems import problem_responses
from app.serving.model_bodies import Model, Models, Share
from app.serving.regeneration import Inference
from models.errors import BundleError

router = APIRouter(tags=["models"])


def inference_of(request: Request) -> Inference:
    """The application's inference."""
    inference: Inference = request.app.state.inference
    return inference


InferenceOf = Annotated[Inference, Depends(inference_of)]
ADMIN = needs(KeyScope.ADMIN)
Version = Annotated[str, Path(examples=["4f0c2a9be1d7"], description="As GET /models lists it.")]


@router.get("/models", summary="What serves, and loaded and loadable models", dependencies=[ANY_KEY])
async def list_models(inference: InferenceOf) -> Models:
    """What serves; models in memory with domains, rule and provenance; the versions that activation would load."""
    return await inference.registry.describe()


@router.get(
    "/models/{version}",
    dependencies=[ANY_KEY],
    summary="One model",
    responses=problem_responses(UnknownModelError, BundleError, ModelUnavailableError, RequestValidationError),
)
async def read_model(version: Version, inference: InferenceOf) -> Model:
    """What is known of a model, in memory or not: its domains, data and training."""
    return await inference.registry.facts(version)


@router.post(
    "/models/{version}/activate",
    summary="Switch to a model",
    dependencies=[ADMIN],
    responses=problem_responses(
        UnknownModelError, BundleError, RequestValidationError, ModelProcessDiedError, StoreUnavailableError
    ),
)
async def activate_model(version: Version, inference: InferenceOf) -> Model:
    """
    Serve this version from the next request on, loading it when it is not in memory; a canary ends.

    The database keeps the choice: it survives restarts, and every replica and worker follows within seconds. Requests
    already accepted are answered by the model they met. A bundle that cannot be loaded is a 409 that names the file and
    the reason, and the model that serves goes on serving.
    """
    return await inference.registry.activate(version)


@router.post(
    "/models/{version}/canary",
    summary="Let a model answer a share of the requests",
    dependencies=[ADMIN],
    openapi_extra=json_body(Share),
    responses=problem_responses(
        UnknownModelError,
        BundleError,
        ActivationConflictError,
        ContentTypeError,
        RequestTooLargeError,
        RequestValidationError,
        ModelUnavailableError,
        ModelProcessDiedError,
        StoreUnavailableError,
    ),
)
async def start_canary(request: Request, version: Version, inference: InferenceOf) -> Models:
    """
    Beside the active version, on every replica; again with another share changes it. Jobs are never a canary's.

    Activating the canary makes it the one that serves, POST /models/roll-back ends it.
    """
    wanted = await bodies_of(request).options(Share, request)
    await inference.registry.start_canary(version, wanted.share)
    return await inference.registry.describe()


@router.post(
    "/models/roll-back",
    summary="Take back the last switch",
    dependencies=[ADMIN],
    responses=problem_responses(
        UnknownModelError, BundleError, ActivationConflictError, ModelProcessDiedError, StoreUnavailableError
    ),
)
async def roll_back(inference: InferenceOf) -> Models:
    """On every replica: end the canary, or without one serve what was active before. Again: the other way round."""
    await inference.registry.roll_back()
    return await inference.registry.describe()

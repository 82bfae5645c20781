"""
The application: settings -> parts -> one FastAPI application.

The service is a list of parts. A part brings its routers, its readiness probes and a lifespan; ``PARTS`` names their
builders. Adding a resource means one builder in that list: keys, limits, problem+json, request ids, metrics and the
OpenAPI document come with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.responses import HTMLResponse
from starlette.types import Message, Receive, Scope, Send

from app.access.audit import record_keys
from app.access.key_limits import KeyLimits
from app.access.key_ring import KeyRing
from app.errors import (
    ForeignHostError,
    ForeignPageError,
    KeyLimitError,
    MissingScopeError,
    ReceivingFullError,
    RequestTooLargeError,
    ServiceError,
    StoreUnavailableError,
    UnauthorizedError,
)
from app.http.bodies import BodyReader
from app.http.cross_origin import OptionsMiddleware, allow_pages
from app.http.docs_page import CONTENT_SECURITY_POLICY, docs_page
from app.http.job_part import JobService
from app.http.middleware import (
    ApiKeyMiddleware,
    BodyLimitMiddleware,
    ForeignPageMiddleware,
    HeadMiddleware,
    RequestMiddleware,
    SlashMiddleware,
)
from app.http.pages.site import install_pages
from app.http.problems import Problem, allowed_methods, install_error_handlers, problem_responses
from app.http.queries import refuse_unknown_query
from app.http.receptions import Receptions
from app.http.routes import health, index, items, jobs, mappings, models, regenerate, reports
from app.http.sessions import Sessions
from app.http.spools import Spools
from app.jobs.job_bodies import JobRequest
from app.jobs.parts import JobParts
from app.runtime.job_metrics import JobMetrics
from app.runtime.metrics import Metrics
from app.runtime.readiness import Probe
from app.runtime.shutdown import Shutdown
from app.serving.activations import ActivationStore
from app.serving.batching import Batcher, BatchingConfig
from app.serving.item_map import ItemMaps
from app.serving.model_bodies import Share
from app.serving.model_process import CLOSE_SECONDS
from app.serving.model_registry import ModelRegistry
from app.serving.regeneration import BatchKey, BatchRow, Inference, RegenerationBatcher, run_batch
from app.serving.regeneration_bodies import RegenerateRequest
from app.serving.registry_follower import RegistryFollower
from app.serving.report_folders import ReportFolders
from app.settings import Settings
from app.storage import schema
from app.storage.database import open_engine
from app.storage.private import make_private_folder
from models.decoding.regenerator import Regenerated
from models.errors import ModelError
from models.network.packing import padded_length
from models.training.devices import resolve_device


@dataclass(frozen=True)
class ServicePart:
    """
    One piece of the service.

    Args:
        routers: its routes; all of them ask for a key when keys are set.
        probes: its readiness checks.
        path_limits: paths whose bodies have a limit of their own -> (bytes, the setting that says so).
        lifespan: entered before the first request with the application, left after the last; parts are left in the
            reverse order. Puts what its routes need on ``app.state``.
    """

    routers: tuple[APIRouter, ...]
    probes: tuple[Probe, ...]
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
    path_limits: Mapping[str, tuple[int, str]] = field(default_factory=dict)


PartBuilder = Callable[[Settings, Metrics], ServicePart]


def inference_part(settings: Settings, metrics: Metrics) -> ServicePart:
    """Online regeneration and the models behind it."""

    def run_observed(key: BatchKey, rows: Sequence[BatchRow]) -> list[Regenerated]:
        positions = sum(padded_length(len(row.token_ids)) for row in rows)
        metrics.observe_fill(positions / settings.max_batch_positions)
        return run_batch(key, rows)

    batcher: RegenerationBatcher = Batcher(
        run_observed,
        BatchingConfig(
            max_batch_positions=settings.max_batch_positions,
            window_seconds=settings.batch_window_milliseconds / 1000,
            max_queued_rows=settings.max_queued_sequences,
            retry_after_seconds=settings.retry_after_seconds,
        ),
        on_batch=metrics.observe_batch,
    )
    engine = open_engine(settings.database(), pool_size=1)
    registry = ModelRegistry(
        bundle=settings.bundle,
        root=settings.bundle_root,
        rule=settings.rule,
        device=resolve_device(settings.device),
        capacity=settings.max_loaded_bundles,
        metrics=metrics,
        activations=ActivationStore(engine),
        otlp_endpoint=settings.otlp_endpoint,
    )
    inference = Inference(registry, batcher, settings=settings, metrics=metrics)
    metrics.watch_queue(lambda: batcher.num_queued)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if engine.dialect.name == "sqlite":  # nobody else could have made and migrated it
            make_private_folder(settings.data)
            await asyncio.to_thread(schema.upgrade, engine)
        await registry.start()
        batcher.start()
        app.state.inference = inference
        app.state.item_maps = ItemMaps(settings.data / "maps")
        follower = RegistryFollower(registry, asyncio.get_running_loop())
        follower.start()
        try:
            yield
        finally:
            follower.stop()
            # Requests have been answered or given up by now: what is under way is a call that nobody waits for
            await batcher.close(timeout_seconds=CLOSE_SECONDS)
            await asyncio.to_thread(registry.close)
            engine.dispose()

    return ServicePart(
        routers=(regenerate.router, models.router, items.router),
        probes=(
            Probe("model", registry.unreadiness),
            Probe("activation", registry.lag),
            Probe("model_thread", inference.unreadiness, restart_mends=True),
        ),
        lifespan=lifespan,
    )


def jobs_part(settings: Settings, metrics: Metrics) -> ServicePart:
    """Bulk jobs and the mappings that they record."""
    service = JobService(settings, JobMetrics(metrics.registry))
    return ServicePart(
        routers=(jobs.router, mappings.router),
        probes=service.probes,
        lifespan=service.lifespan,
        path_limits={"/jobs": (settings.max_input_bytes, "TAESAR_MAX_INPUT_BYTES")},
    )


def reports_part(settings: Settings, _metrics: Metrics) -> ServicePart:
    """The reports of evaluations."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.reports = ReportFolders(settings.reports)
        yield

    return ServicePart(routers=(reports.router,), probes=(), lifespan=lifespan)


PARTS: tuple[PartBuilder, ...] = (inference_part, jobs_part, reports_part)


class Application(FastAPI):
    """FastAPI whose OpenAPI document also holds what routes refer to without FastAPI: the one Problem, and bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the whole lifespan: a failure on purpose to start is told without a traceback."""

        async def send_in_words(message: Message) -> None:
            error = self.state.startup_error
            if message["type"] == "lifespan.startup.failed" and isinstance(error, ServiceError | ModelError | OSError):
                message = {**message, "message": str(error)}
            await send(message)

        await super().__call__(scope, receive, send_in_words if scope["type"] == "lifespan" else send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, built once; without keys no route asks for one."""
        if self.openapi_schema is None:
            document = super().openapi()
            if not self.state.settings.asks_for_keys():
                for operations in document["paths"].values():
                    for operation in operations.values():
                        operation.pop("security", None)
                document["components"].pop("securitySchemes", None)
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components["JobUpload"] = jobs.UPLOAD_FORM
            for kind in (Problem, RegenerateRequest, JobRequest, Share):
                schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                components.update(schema.pop("$defs", {}))
                components[kind.__name__] = schema
        assert self.openapi_schema is not None
        return self.openapi_schema


def _operation_id(route: APIRoute) -> str:
    """The name of the route's function: generated clients call their functions so, and a test pins the names."""
    return route.name


@contextlib.asynccontextmanager
async def _watching(keys: KeyRing, app: FastAPI) -> AsyncIterator[None]:
    """Inside, keys that come and go in their file count, and are recorded."""

    def record() -> bool:
        parts: JobParts | None = getattr(app.state, "job_parts", None)
        if parts is None:  # a service without SQL keeps no record
            return True
        try:
            record_keys(parts.engine, keys.keys_of_file)
        except StoreUnavailableError:  # readiness says so; the next look tries again
            return False
        return True

    watching = asyncio.create_task(keys.watch(record))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def create_app(
    settings: Settings, *, parts: Sequence[PartBuilder] = PARTS, registry: CollectorRegistry | None = None
) -> Application:
    """
    Compose the service; nothing is loaded or started before the application's lifespan begins.

    Args:
        settings: what the operator chose.
        parts: builders of the pieces to serve, in the order in which they start.
        registry: where metrics are registered; a new one by default, so that applications do not share counts.

    Raises:
        TrainingError: the device asked for does not exist.
    """
    metrics = Metrics(registry or CollectorRegistry())
    built = [build(settings, metrics) for build in parts]
    keys, key_limits = KeyRing.of(settings), KeyLimits(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(key_limits.close)
            stack.callback(app.state.spools.close)
            try:
                for part in built:
                    await stack.enter_async_context(part.lifespan(app))
                await stack.enter_async_context(_watching(keys, app))
            except Exception as error:
                app.state.startup_error = error
                raise
            yield

    app = Application(
        title="Taesar",
        summary="Rewrites a user's items of many domains into items of one target domain, by trained sequence models.",
        version=importlib.metadata.version("taesar"),
        lifespan=lifespan,
        redoc_url=None,
        docs_url=None,
        redirect_slashes=False,
        dependencies=[Depends(refuse_unknown_query)],
        responses=problem_responses(RequestValidationError),
        generate_unique_id_function=_operation_id,
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.bodies = BodyReader(settings)
    app.state.key_limits = key_limits
    app.state.spools = Spools()
    app.state.shutdown = Shutdown(settings.shutdown_seconds)
    app.state.probes = tuple(probe for part in built for probe in part.probes)
    app.state.startup_error = None
    install_error_handlers(app)
    app.include_router(index.router)
    app.include_router(health.router)

    @app.get("/docs", include_in_schema=False)
    def read_docs() -> HTMLResponse:
        """The description of the API as a page."""
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return HTMLResponse(docs_page(app.openapi()), headers=headers)

    secret = settings.session_secret
    app.state.sessions = Sessions(keys, None if secret is None else secret.get_secret_value())
    common = problem_responses(
        UnauthorizedError,
        MissingScopeError,
        KeyLimitError,
        ForeignHostError,
        ForeignPageError,
        RequestTooLargeError,
        ReceivingFullError,
        RequestValidationError,
        Exception,
    )
    for part in built:
        for router in part.routers:
            app.include_router(router, responses=common)
    install_pages(app)
    # The last added is the outermost
    app.add_middleware(
        BodyLimitMiddleware,
        limit=(settings.max_body_bytes, "TAESAR_MAX_BODY_BYTES"),
        path_limits={path: limit for part in built for path, limit in part.path_limits.items()},
        receptions=Receptions(settings.max_receiving_bytes, retry_after_seconds=settings.retry_after_seconds),
    )
    app.add_middleware(HeadMiddleware)
    if settings.cors_origins:
        app.add_middleware(OptionsMiddleware, routes=app)
    app.add_middleware(ApiKeyMiddleware, keys=keys, limits=key_limits, sessions=app.state.sessions)
    app.add_middleware(
        ForeignPageMiddleware,
        hosts=settings.allowed_hosts,
        pages=settings.cors_origins,
        any_page=not keys.is_empty,
    )
    app.add_middleware(SlashMiddleware, is_path=lambda scope: "GET" in allowed_methods(app, scope))
    if settings.cors_origins:
        allow_pages(app, settings.cors_origins)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    return app

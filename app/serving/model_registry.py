"""The bundles in memory, one of them active."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from app.errors import (
    ModelUnavailableError,
)
from app.runtime.logs import logger
from app.runtime.metrics import Metrics
from app.serving.bundle_folders import BundleFolders
from app.serving.model_bodies import DataPeriod, Domain, Model, Models
from app.serving.model_process import JOBS, REQUESTS, ModelProcess, RemoteRegenerator
from models.bundle import BundleDescription
from models.decoding.rules import Rule
from models.tuning import TargetTuning

log = logger(__name__)

_TEXT: TypeAdapter[Any] = TypeAdapter(str)
_PERIOD: TypeAdapter[Any] = TypeAdapter(DataPeriod)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """
    A bundle whose networks are in a process of their own; equal only to itself.

    Args:
        process: runs it; ends when nothing refers to this model any more.
        regenerator: for requests.
        job_regenerator: for jobs: neither waits for the other's call.
    """

    process: ModelProcess
    regenerator: RemoteRegenerator
    job_regenerator: RemoteRegenerator

    @property
    def bundle(self) -> BundleDescription:
        """What is loaded."""
        return self.process.bundle

    @property
    def rule(self) -> Rule:
        """How it decides."""
        return self.process.rule


class ModelRegistry:
    """
    The bundles in memory, one of them active.

    Args:
        bundle: folder that may hold the first bundle, or None.
        root: folder whose subfolders may hold others, or None.
        rule: decoding rule of every model.
        device: where networks are loaded to.
        capacity: models kept, the active one included; the longest inactive is forgotten first.
        metrics: told which version is active.
    """

    def __init__(
        self,
        *,
        bundle: Path | None,
        root: Path | None,
        rule: Rule,
        device: torch.device,
        capacity: int,
        metrics: Metrics,
    ) -> None:
        self._bundle = bundle
        self._folders = BundleFolders(bundle, root)
        self._rule: Rule = rule
        self._device = device
        self._capacity = capacity
        self._metrics = metrics
        self._loaded: tuple[LoadedModel, ...] = ()  # most recently active first; replaced whole, never changed
        self._activating = asyncio.Lock()

    def active(self) -> LoadedModel:
        """The model that serves; raises ModelUnavailableError when none is loaded."""
        if not self._loaded:
            raise ModelUnavailableError("no model is loaded; activate one or start with a bundle")
        return self._loaded[0]

    async def load_first(self) -> None:
        """Load and activate the bundle given at the start, if one was; raises BundleError."""
        if self._bundle is not None:
            async with self._activating:
                self._put_first(await asyncio.to_thread(self._load, self._bundle))

    async def activate(self, version: str) -> Model:
        """
        Serve *version* from the next request on; requests already accepted keep their model.

        Raises:
            UnknownModelError: neither loaded nor among the folders.
            BundleError, ModelProcessDiedError: it cannot be loaded; the active model stays.
        """
        async with self._activating:
            model = next((model for model in self._loaded if model.bundle.version == version), None)
            if model is None:
                # In another thread than the batcher's: reading files must not hold up requests
                model = await asyncio.to_thread(self._load_version, version)
            self._put_first(model)
            return self._describe(model)

    async def describe(self) -> Models:
        """What is loaded and what could be."""
        on_disk = await asyncio.to_thread(self._folders.by_version)
        loaded = [self._describe(model) for model in self._loaded]
        in_memory = {model.version for model in loaded}
        return Models(
            active=loaded[0].version if loaded else None,
            loaded=loaded,
            available=sorted(set(on_disk) - in_memory),
        )

    async def unreadiness(self) -> str | None:
        """Why no model serves, or None."""
        return self._loaded[0].process.outage if self._loaded else "no model is loaded"

    def close(self) -> None:
        """End the models' processes; nothing may be asked of them any more."""
        for model in self._loaded:
            model.process.close()
        self._loaded = ()

    def _load(self, directory: Path) -> LoadedModel:
        process = ModelProcess.start(directory, self._rule, self._device)
        process.bundle.vocabulary.build_lookups()  # here, so that no request waits for it
        return LoadedModel(process, RemoteRegenerator(process, REQUESTS), RemoteRegenerator(process, JOBS))

    def _load_version(self, version: str) -> LoadedModel:
        return self._folders.load(version, self._load, version_of=lambda model: model.bundle.version)

    def _put_first(self, model: LoadedModel) -> None:
        others = tuple(other for other in self._loaded if other is not model)
        self._loaded = (model, *others)[: self._capacity]
        self._metrics.set_active_model(model.bundle.version)
        log.info("model_activated", version=model.bundle.version, directory=str(model.bundle.directory))

    def _describe(self, model: LoadedModel) -> Model:
        vocabulary = model.bundle.vocabulary
        ranges = zip(vocabulary.domains, vocabulary.token_ranges, strict=True)
        return Model(
            version=model.bundle.version,
            **_facts_of(model.bundle.provenance),
            active=bool(self._loaded) and model is self._loaded[0],
            rule=model.rule,
            max_items=model.regenerator.max_items,
            domains=[_domain(name, len(tokens), model.bundle.tuning(name)) for name, tokens in ranges],
            provenance=dict(model.bundle.provenance),
        )


def _facts_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the provenance tells of name, time and data; what it tells in another form counts as not told."""
    kinds: dict[str, TypeAdapter[Any]] = {"name": _TEXT, "created": _TEXT, "period": _PERIOD}
    facts: dict[str, Any] = dict.fromkeys(kinds)
    for name, kind in kinds.items():
        with contextlib.suppress(ValidationError):
            facts[name] = kind.validate_python(provenance.get(name))
    return facts


def _domain(name: str, num_items: int, tuning: TargetTuning) -> Domain:
    guard = tuning.guard
    return Domain(
        name=name,
        num_items=num_items,
        own_share_after_target=tuning.own_shares.after_target,
        own_share_after_source=tuning.own_shares.after_source,
        training_hints=None if guard is None else guard.training_hints,
        serving_hints=None if guard is None else guard.serving_hints,
        finding=None if guard is None else guard.finding,
    )

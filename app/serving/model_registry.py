"""The bundles in memory, and which of them serve."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from app.errors import ModelUnavailableError, ServiceError, StoreUnavailableError, UnknownModelError
from app.runtime.logs import logger
from app.runtime.metrics import Metrics
from app.serving.activations import ActivationStore, OvertakenError, Serving
from app.serving.bundle_folders import BundleFolders
from app.serving.model_bodies import Canary, DataPeriod, Domain, Model, Models
from app.serving.model_process import JOBS, REQUESTS, ModelProcess, RemoteRegenerator
from models.bundle import BundleDescription, describe_bundle
from models.decoding.rules import GUARDED_RULE, Rule, load_rule
from models.errors import ModelError
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


@dataclass(frozen=True)
class _InMemory:
    """
    What serves and what is in memory; replaced whole, so that nobody sees half a switch.

    Args:
        serving: the decision that holds here.
        models: by version; what serves first, then the most recently active first.
        behind: why this is not the decision that was made last, or None.
    """

    serving: Serving = field(default_factory=Serving)
    models: Mapping[str, LoadedModel] = field(default_factory=dict)
    behind: str | None = None


class ModelRegistry:
    """
    The bundles in memory; which of them serve is decided in SQL, for all replicas alike.

    A decision is carried out where it is made before it is recorded, so what cannot be loaded is refused; other
    replicas ``follow``. Whoever was given a model keeps it: what no longer serves goes when its last answer is out.

    Args:
        bundle: folder that may hold the first bundle, or None: it serves until something is activated.
        root: folder whose subfolders may hold others, or None.
        rule: decoding rule of every model.
        device: where networks are loaded to.
        capacity: models kept, the active one included; the longest inactive is forgotten first. What serves is kept
            however many that are.
        metrics: told which versions serve.
        activations: the decisions.
        otlp_endpoint: where the models' processes send traces, or None.
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
        activations: ActivationStore,
        otlp_endpoint: str | None = None,
    ) -> None:
        self._bundle = bundle
        self._folders = BundleFolders(bundle, root)
        self.rule: Rule = rule
        self._device = device
        self._capacity = capacity
        self._metrics = metrics
        self._activations = activations
        self._otlp_endpoint = otlp_endpoint
        self._state = _InMemory()
        self._deciding = asyncio.Lock()
        self._loading = threading.Lock()
        # Whoever uses a model keeps it alive; while somebody does, nobody loads it a second time.
        self._alive: weakref.WeakValueDictionary[str, LoadedModel] = weakref.WeakValueDictionary()

    def active(self) -> LoadedModel:
        """The model that serves; raises ModelUnavailableError when none does."""
        state = self._state
        if state.serving.active is None:
            raise ModelUnavailableError("no model is loaded; activate one or start with a bundle")
        return state.models[state.serving.active]

    def choose(self, version: str | None, *, key: str) -> LoadedModel:
        """
        The model that answers a request: the one it names; else the canary for its share of the keys; else the active.

        Raises:
            UnknownModelError: the one it names is not in memory.
            ModelUnavailableError: it names none, and none serves.
        """
        state = self._state
        chosen = version or state.serving.version_for(key)
        if chosen is None:
            return self.active()
        if chosen not in state.models:
            raise UnknownModelError(chosen)
        return state.models[chosen]

    def model(self, version: str) -> LoadedModel:
        """
        The model of that version, loaded when it is not in memory; blocks, from any thread. Serves nobody by that.

        Raises:
            UnknownModelError, BundleError, ModelProcessDiedError: it cannot be loaded.
        """
        return self._loaded(version, lambda: self._load_version(version))

    async def description(self, version: str | None) -> BundleDescription:
        """
        What a job is to be done with: the bundle of that version, in memory or in a folder; without one the active's.

        Raises:
            UnknownModelError, BundleError: there is none, or it cannot be read.
            ModelUnavailableError: no version is named, and none serves.
        """
        if version is None:
            return self.active().bundle
        if version in self._state.models:
            return self._state.models[version].bundle
        return await asyncio.to_thread(
            self._folders.load, version, describe_bundle, version_of=lambda described: described.version
        )

    async def start(self) -> None:
        """
        Serve what was activated last; where nothing was, or it cannot be loaded, the bundle given at the start, if any.

        Raises:
            BundleError, ModelProcessDiedError: that one cannot be loaded.
        """
        async with self._deciding:
            behind = None
            try:
                recorded = await asyncio.to_thread(self._activations.latest)
                if recorded is not None:
                    await self._serve(recorded)
                    await self._keep_previous()
                    return
            except StoreUnavailableError as error:
                log.warning("activations_unknown", reason=str(error))
            except (ServiceError, ModelError) as error:
                behind = str(error)
                log.error("activation_not_followed", reason=behind)
            if self._bundle is not None:
                directory = self._bundle
                first = await asyncio.to_thread(lambda: self._load(directory))
                self._alive[first.bundle.version] = first
                self._put(Serving(active=first.bundle.version), {first.bundle.version: first}, behind)

    @property
    def serving(self) -> Serving:
        """The decision that holds here."""
        return self._state.serving

    def latest(self) -> Serving | None:
        """The decision that was made last, here or elsewhere; blocks. Raises StoreUnavailableError."""
        return self._activations.latest()

    async def follow(self, latest: Serving, *, instead_of: Serving) -> None:
        """
        Serve what was decided elsewhere, unless *instead_of* no longer holds: then *latest* may be old.

        What cannot be loaded leaves the old models serving, and ``lag`` says so until it can.
        """
        async with self._deciding:
            if self._state.serving is not instead_of or latest == instead_of:
                return
            try:
                await self._serve(latest)
            except (ServiceError, ModelError) as error:
                if self._state.behind != str(error):
                    log.error("activation_not_followed", reason=str(error))
                self._state = replace(self._state, behind=str(error))

    async def activate(self, version: str) -> Model:
        """
        Serve *version* alone from the next request on; requests already accepted keep their model.

        Raises:
            UnknownModelError: neither loaded nor among the folders.
            BundleError, ModelProcessDiedError: it cannot be loaded; what serves stays.
            StoreUnavailableError: the decision cannot be recorded; what serves stays.
        """
        await self._decide(lambda serving: serving.activated(version))
        return self._describe(self.active().bundle)

    async def start_canary(self, version: str, share: float) -> None:
        """
        Let *version* answer a share of the requests, sticky by key; a share of 0.1 is a tenth.

        Raises:
            ActivationConflictError, ModelUnavailableError: see ``Serving.with_canary``.
            UnknownModelError, BundleError, ModelProcessDiedError, StoreUnavailableError: as ``activate``.
        """
        await self._decide(lambda serving: serving.with_canary(version, share))

    async def roll_back(self) -> None:
        """
        End the canary, or where there is none activate what was active before.

        Raises:
            ActivationConflictError: there is neither.
            UnknownModelError, BundleError, ModelProcessDiedError, StoreUnavailableError: as ``activate``.
        """
        await self._decide(Serving.rolled_back)

    async def describe(self) -> Models:
        """What serves, what is loaded and what could be."""
        on_disk = await asyncio.to_thread(self._folders.by_version)
        state = self._state
        canary = state.serving.canary
        return Models(
            active=state.serving.active,
            previous=state.serving.previous,
            canary=None if canary is None else Canary(version=canary, share=state.serving.canary_share),
            loaded=[self._describe(model.bundle) for model in state.models.values()],
            available=sorted(set(on_disk) - set(state.models)),
        )

    async def unreadiness(self) -> str | None:
        """Why no model serves, or None."""
        state = self._state
        outages = [state.models[version].process.outage for version in state.serving.versions]
        return next(filter(None, outages), None) if outages else "no model is loaded"

    async def lag(self) -> str | None:
        """Why what was activated last does not serve here, or None."""
        return self._state.behind

    def close(self) -> None:
        """End the models' processes; nothing may be asked of them any more."""
        for model in list(self._alive.values()):
            model.process.close()
        self._state = _InMemory()

    async def _decide(self, step: Callable[[Serving], Serving]) -> None:
        async with self._deciding:
            while True:
                recorded = await asyncio.to_thread(self._activations.latest)
                # Where nothing is recorded the first decision is made over what this process was started with.
                decided = step(recorded or replace(self._state.serving, number=0))
                models = await self._models_of(decided)
                try:
                    if decided != recorded:
                        await asyncio.to_thread(self._activations.record, decided)
                except OvertakenError:
                    continue  # another replica was faster: decide over what it decided
                self._put(decided, models, None)
                return

    async def _serve(self, decided: Serving) -> None:
        self._put(decided, await self._models_of(decided), None)

    async def _models_of(self, decided: Serving) -> dict[str, LoadedModel]:
        # In another thread than the batcher's: reading files must not hold up requests
        return {version: await asyncio.to_thread(self.model, version) for version in decided.versions}

    async def _keep_previous(self) -> None:
        """After a restart, load what a roll back would serve, so that it stays instant; where that fails it is slow."""
        state = self._state
        previous = state.serving.previous
        if previous is None or len(state.models) >= self._capacity:
            return
        with contextlib.suppress(ServiceError, ModelError):
            loaded = await asyncio.to_thread(self.model, previous)
            self._put(state.serving, {**state.models, previous: loaded}, state.behind)

    def _loaded(self, version: str, load: Callable[[], LoadedModel]) -> LoadedModel:
        with self._loading:
            model = self._alive.get(version)
            if model is None:
                model = self._alive[version] = load()
            return model

    def _load(self, directory: Path) -> LoadedModel:
        process = ModelProcess.start(
            directory,
            self.rule,
            self._device,
            on_restart=self._metrics.count_model_restart,
            otlp_endpoint=self._otlp_endpoint,
        )
        process.bundle.vocabulary.build_lookups()  # here, so that no request waits for it
        return LoadedModel(process, RemoteRegenerator(process, REQUESTS), RemoteRegenerator(process, JOBS))

    def _load_version(self, version: str) -> LoadedModel:
        return self._folders.load(version, self._load, version_of=lambda model: model.bundle.version)

    def _put(self, serving: Serving, models: Mapping[str, LoadedModel], behind: str | None) -> None:
        before = self._state
        kept = dict(models)
        for version, model in before.models.items():
            if len(kept) < self._capacity:
                kept.setdefault(version, model)
        self._state = _InMemory(serving, kept, behind)
        self._metrics.set_serving(active=serving.active, canary=serving.canary, canary_share=serving.canary_share)
        if serving != before.serving:
            log.info(
                "model_activated",
                version=serving.active,
                canary=serving.canary,
                canary_share=serving.canary_share,
                number=serving.number,
            )

    async def facts(self, version: str) -> Model:
        """
        What is known of one version, in memory or in a folder.

        Raises:
            UnknownModelError, BundleError: as ``description``.
        """
        return self._describe(await self.description(version))

    def _describe(self, bundle: BundleDescription) -> Model:
        vocabulary = bundle.vocabulary
        ranges = zip(vocabulary.domains, vocabulary.token_ranges, strict=True)
        return Model(
            version=bundle.version,
            **_facts_of(bundle.provenance),
            active=bundle.version == self._state.serving.active,
            rule=self.rule,
            max_items=load_rule(self.rule).max_items(bundle.config),
            domains=[_domain(name, len(tokens), bundle.tuning(name), self.rule) for name, tokens in ranges],
            provenance=dict(bundle.provenance),
        )


def _facts_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the provenance tells of name, time and data; what it tells in another form counts as not told."""
    kinds: dict[str, TypeAdapter[Any]] = {"name": _TEXT, "created": _TEXT, "period": _PERIOD}
    facts: dict[str, Any] = dict.fromkeys(kinds)
    for name, kind in kinds.items():
        with contextlib.suppress(ValidationError):
            facts[name] = kind.validate_python(provenance.get(name))
    return facts


def _domain(name: str, num_items: int, tuning: TargetTuning, rule: Rule) -> Domain:
    guard = tuning.guard if rule == GUARDED_RULE else None
    return Domain(
        name=name,
        num_items=num_items,
        own_share_after_target=tuning.own_shares.after_target,
        own_share_after_source=tuning.own_shares.after_source,
        joint_weight=0.0 if tuning.joint is None else tuning.joint.weight,
        training_hints=None if guard is None else guard.training_hints,
        serving_hints=None if guard is None else guard.serving_hints,
        finding=None if guard is None else guard.finding,
        expert_weight=None if guard is None else guard.expert_weight,
    )

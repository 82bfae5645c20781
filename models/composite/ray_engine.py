"""
The parts of a composite made by actors of a Ray cluster: one for every device, each with the bundle in memory.

A part is asked of an actor as one task that yields how far it is; what it makes goes to the work folder, which every
machine of the cluster sees, and nothing of it through Ray's own store. Why actors and not Ray Data: decision 27.

An actor that dies, or whose machine does, is started again by Ray, and its part is asked of whoever is free: parts that
are made twice are the same. A part that was being made when ``MOST_DEATHS`` actors died is given up with an error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.bundle import load_bundle, read_version
from models.composite.part_results import Part, PartMaker, PartRecipe
from models.data.dataset import describe_dataset
from models.errors import EngineError
from models.training.devices import resolve_device

if TYPE_CHECKING:
    from types import ModuleType

MOST_DEATHS = 3
# How often an actor may be started again: machines come and go for days.
MOST_RESTARTS = 1000
# Ray's smallest store; parts do not go through it.
_STORE_BYTES = 80 * 1024**2
_SECONDS_TO_WAIT = 5.0
# A limit that Ray 2.60 has no setting for: its issue 65983
_SLOW_START = " Ray gives its own processes 15 seconds, which a machine at full load does not keep."
INSTALL = "--engine ray needs Ray: pip install 'taesar[ray]'"


@dataclass(frozen=True)
class RayEngine:
    """
    An ``Engine`` of actors.

    Args:
        address: of a running cluster, as ``ray.init`` takes it; None starts one on this machine, for the time of the
            work.
        actors: how many; None: one for every GPU of the cluster, where there is none or *device* is ``cpu`` one for
            every core.
        device: as of ``resolve_device``: what an actor computes on.
    """

    address: str | None = None
    actors: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _import_ray()

    def make(self, recipe: PartRecipe, parts: Sequence[Part]) -> Iterator[int]:
        """See ``Engine``; the recipe's bundle and dataset are read from their folders by every actor."""
        ray = _import_ray()
        with self._connected(ray):
            resources = ray.cluster_resources()
            num_gpus = 0 if self.device == "cpu" else int(resources.get("GPU", 0))
            count = min(len(parts), self.actors or num_gpus or int(resources.get("CPU", 1)))
            kind = ray.remote(_RemoteMaker)
            options = {"max_restarts": MOST_RESTARTS, "num_cpus": 1, "num_gpus": 1 if num_gpus else 0}
            spec = _RemoteRecipe.of(recipe, self.device)
            makers = [kind.options(**options).remote(spec) for _ in range(count)]
            try:
                yield from _Dispatch(ray, makers, parts).run()
            finally:
                for maker in makers:
                    ray.kill(maker)

    @contextmanager
    def _connected(self, ray: ModuleType) -> Iterator[None]:
        """Ray without a dashboard, reports of use or others' log lines, for the time of the work."""
        if ray.is_initialized():
            yield
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            cores = max(self.actors or 0, os.cpu_count() or 1)
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            ray.init(address=self.address or "local", **options)
        except Exception as error:  # a start that takes too long is a bare Exception
            where = self.address or "a cluster on this machine"
            said = " ".join(str(error).split())
            advice = _SLOW_START if "timed out during startup" in said else ""
            raise EngineError(f"--engine ray: {where} cannot be used: {said}{advice}") from error
        try:
            yield
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class _RemoteRecipe:
    """A recipe as it travels: folders instead of what is read from them, and what they must hold."""

    recipe: PartRecipe
    bundle: Path
    bundle_version: str
    dataset: Path
    fingerprint: str
    device: str

    @classmethod
    def of(cls, recipe: PartRecipe, device: str) -> _RemoteRecipe:
        bundle, dataset = recipe.bundle, recipe.dataset
        bare = replace(recipe, bundle=None, dataset=None)  # type: ignore[arg-type]
        return cls(bare, bundle.directory, bundle.version, dataset.directory, dataset.fingerprint, device)


class _RemoteMaker:
    """An actor: makes one part at a time."""

    def __init__(self, spec: _RemoteRecipe) -> None:
        self._spec = spec
        self._maker: PartMaker | None = None

    def ready(self) -> None:
        """Load what parts are made with; an error of this is the caller's, and does not end the actor."""
        spec = self._spec
        dataset = describe_dataset(spec.dataset, checked=False)
        if dataset.fingerprint != spec.fingerprint or read_version(spec.bundle) != spec.bundle_version:
            raise EngineError(f"{spec.dataset} or {spec.bundle}: an actor's machine sees another one than the command")
        bundle = load_bundle(spec.bundle, device=resolve_device(spec.device))
        self._maker = PartMaker(replace(spec.recipe, bundle=bundle, dataset=dataset), bundle)

    def make(self, part: Part) -> Iterator[int]:
        """As ``PartMaker.make``; raises where the actor was started again since it was ready."""
        assert self._maker is not None
        yield from self._maker.make(part)


class _Dispatch:
    """Gives every part to an actor that is ready and free, until all are made."""

    def __init__(self, ray: ModuleType, makers: Sequence[Any], parts: Sequence[Part]) -> None:
        self._ray = ray
        self._waiting = deque(parts)
        self._free: deque[Any] = deque()
        # What is awaited of actors that are not ready yet, and of those that make a part
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Part]] = {}
        self._done: dict[int, int] = {}
        self._deaths: dict[int, int] = {}
        for maker in makers:
            self._start(maker)

    def run(self) -> Iterator[int]:
        """Yields how many users are done, whenever an actor says more and every few seconds."""
        while self._waiting or self._running:
            while self._waiting and self._free:
                maker, part = self._free.popleft(), self._waiting.popleft()
                stream = maker.make.options(num_returns="streaming").remote(part)
                self._running[stream] = maker, part
            awaited = [*self._starting, *self._running]
            ready, _ = self._ray.wait(awaited, num_returns=1, timeout=_SECONDS_TO_WAIT, fetch_local=False)
            for found in ready:
                if found in self._starting:
                    self._started(found)
                else:
                    self._advance(found)
            yield sum(self._done.values())

    def _start(self, maker: Any) -> None:
        # Asked again for as long as the actor is being started: its machine may be gone and another one come
        self._starting[maker.ready.options(max_task_retries=-1).remote()] = maker

    def _started(self, answer: Any) -> None:
        maker = self._starting.pop(answer)
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"--engine ray: an actor cannot start: {_said_by(error)}") from error
        self._free.append(maker)

    def _advance(self, stream: Any) -> None:
        """Take what *stream* says next: a number, its end, or the death of its actor."""
        maker, part = self._running[stream]
        errors = self._ray.exceptions
        try:
            self._done[part.number] = self._ray.get(next(stream))
            return
        except StopIteration:
            self._done[part.number] = len(part.users)
            self._free.append(maker)
        except errors.RayTaskError as error:
            raise EngineError(f"part {part.number}: {_said_by(error)}") from error
        except errors.RayError as error:
            self._give_back(part, error)
            self._start(maker)
        del self._running[stream]

    def _give_back(self, part: Part, error: Exception) -> None:
        """The actor died: its part is the next to be given to anyone."""
        self._done.pop(part.number, None)
        self._deaths[part.number] = self._deaths.get(part.number, 0) + 1
        if self._deaths[part.number] == MOST_DEATHS:
            raise EngineError(
                f"part {part.number}: {MOST_DEATHS} actors died while they made it; is there too little memory? "
                f"{_said_by(error)}"
            ) from error
        self._waiting.appendleft(part)


def _said_by(error: Exception) -> str:
    """What went wrong in an actor, in one line, without the way there."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def _import_ray() -> ModuleType:
    # Before it is loaded: it reports its use to its makers by default, and asks the network for its name
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its workers would step back before everything else on the machine
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise EngineError(INSTALL) from error

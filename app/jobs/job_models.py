"""Where jobs get their models: bundles of the settings' folders, loaded when first asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from app.runtime.logs import logger
from app.serving.bundle_folders import BundleFolders
from app.settings import Settings
from models.bundle import Bundle, BundleDescription, load_bundle
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerated, Regenerator
from models.training.devices import resolve_device

log = logger(__name__)


class Regenerates(Protocol):
    """A ``models.decoding.regenerator.Regenerator``, here or in another process."""

    @property
    def bundle(self) -> BundleDescription:
        """What it was trained with."""
        ...

    @property
    def max_items(self) -> int:
        """Most items of a sequence that are read."""
        ...

    def regenerate(
        self, sequences: Sequence[TokenArray], target: str, *, training_rows: bool = False
    ) -> list[Regenerated]:
        """See there."""
        ...


class ModelSource(Protocol):
    """Where a worker gets its models."""

    def regenerator(self, version: str, rule: str) -> Regenerates:
        """The regenerator of one bundle and rule; raises UnknownModelError or BundleError."""
        ...


class BundleModels:
    """
    Bundles of the settings' folders, loaded when first asked for, each once, whatever rules it serves.

    What is in memory is given at once, also while another bundle is being loaded. Of more than are kept the longest
    unused is forgotten; whoever works with it keeps it until the end of the call.

    Args:
        settings: where bundles lie, the device, and how many are kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._folders = BundleFolders(settings.bundle, settings.bundle_root)
        self._device = settings.device
        self._capacity = settings.max_loaded_bundles
        self._loading = threading.Lock()
        self._looking = threading.Lock()
        self._kept: OrderedDict[str, dict[str, Regenerator]] = OrderedDict()  # the longest unused first

    def regenerator(self, version: str, rule: str) -> Regenerator:
        """See ``ModelSource``; one thread loads, others that want what is not in memory wait for it."""
        found = self._in_memory(version).get(rule)
        if found is not None:
            return found
        with self._loading:
            by_rule = self._in_memory(version)
            if rule not in by_rule:
                bundle = next((other.bundle for other in by_rule.values()), None) or self._load(version)
                by_rule[rule] = Regenerator(bundle, rule)
                self._keep(version, by_rule)
            return by_rule[rule]

    def _in_memory(self, version: str) -> dict[str, Regenerator]:
        with self._looking:
            if version not in self._kept:
                return {}
            self._kept.move_to_end(version)
            return self._kept[version]

    def _keep(self, version: str, by_rule: dict[str, Regenerator]) -> None:
        with self._looking:
            self._kept[version] = by_rule
            self._kept.move_to_end(version)
            while len(self._kept) > self._capacity:
                forgotten, _ = self._kept.popitem(last=False)
                log.info("model_forgotten", version=forgotten)

    def _load(self, version: str) -> Bundle:
        def load(directory: Path) -> Bundle:
            bundle = load_bundle(directory, resolve_device(self._device))
            log.info("model_loaded", version=version, directory=str(directory))
            return bundle

        return self._folders.load(version, load, version_of=lambda loaded: loaded.version)

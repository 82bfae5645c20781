"""Where jobs get their models: bundles of the settings' folders, loaded when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
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
    Bundles of the settings' folders, loaded when first asked for.

    Args:
        settings: where bundles lie, the device, and how many are kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._folders = BundleFolders(settings.bundle, settings.bundle_root)
        self._device = settings.device
        self._lock = threading.Lock()
        self._load = lru_cache(maxsize=settings.max_loaded_bundles)(self._load_now)

    def regenerator(self, version: str, rule: str) -> Regenerator:
        """See ``ModelSource``; one thread loads, the others wait for it."""
        with self._lock:
            return self._load(version, rule)

    def _load_now(self, version: str, rule: str) -> Regenerator:
        def load(directory: Path) -> Bundle:
            bundle = load_bundle(directory, resolve_device(self._device))
            log.info("model_loaded", version=version, directory=str(directory))
            return bundle

        bundle = self._folders.load(version, load, version_of=lambda loaded: loaded.version)
        return Regenerator(bundle, rule)

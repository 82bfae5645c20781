"""
Bundles on disk: which folders hold which version, for the service and its workers alike.

A folder that names a version may still be unfit to load: half copied, or damaged. Another one of the same version will
do, since a version is a hash of the content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.errors import UnknownModelError
from app.runtime.logs import logger
from models.bundle import read_version
from models.errors import BundleError, BundleMissingFileError

log = logger(__name__)

LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class BundleFolders:
    """
    Where bundles may lie.

    Args:
        bundle: a bundle's folder, or None.
        root: a folder whose subfolders may be bundles, or None.
    """

    bundle: Path | None
    root: Path | None

    def by_version(self) -> dict[str, list[Path]]:
        """The folders of every version; that of ``bundle`` first, the others in the order of their names."""
        folders = [] if self.bundle is None else [self.bundle]
        if self.root is not None and self.root.is_dir():
            # Hidden folders are bundles still being written
            folders += sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[0] != ".")
        versions: dict[str, list[Path]] = {}
        for folder in folders:
            try:
                versions.setdefault(read_version(folder), []).append(folder)
            except BundleMissingFileError:
                continue  # no manifest: some other folder
            except BundleError as error:
                log.warning("bundle_skipped", folder=str(folder), reason=str(error))
        return versions

    def load(self, version: str, load: Callable[[Path], LoadedT], *, version_of: Callable[[LoadedT], str]) -> LoadedT:
        """
        What *load* makes of the first folder of *version* that it can read.

        Args:
            version: the version wanted.
            load: loads a folder.
            version_of: the version of what was loaded: a folder may be replaced between the two looks at it.

        Raises:
            UnknownModelError: no folder holds the version.
            BundleError: none of those that do can be loaded; why not the last.
        """
        failure: UnknownModelError | BundleError = UnknownModelError(version)
        for folder in self.by_version().get(version, []):
            try:
                loaded = load(folder)
                if version_of(loaded) != version:
                    raise UnknownModelError(version)
                return loaded
            except (UnknownModelError, BundleError) as error:
                log.warning("bundle_skipped", folder=str(folder), reason=str(error))
                failure = error
        raise failure

"""
The items of a bundle as points of a plane: near one another where the base decoder takes them for alike.

The plane is made once for every bundle and kept in the folder ``maps`` of TAESAR_DATA: principal components of the
base's item table, the only space that all domains share, each stretched so that most items fill the picture.

Shapes: N = items, D = width.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.bundle import BASE, BundleDescription
from models.errors import BundleCorruptError, BundleMissingFileError
from models.evaluation.projection import filled_plane
from models.files import replace_file

ITEM_TABLE = "item_embedding.weight"


class ItemMaps:
    """
    Makes maps, one at a time, and keeps them.

    Args:
        folder: where they are kept; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._making = threading.Lock()

    def points(self, bundle: BundleDescription) -> npt.NDArray[np.float32]:
        """X and y of every item of *bundle* in token order, [N, 2], both in [-1, 1]."""
        path = self._folder / f"{bundle.version}.npy"
        with self._making:
            if not path.exists():
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with replace_file(path) as partial, partial.open("wb") as file:
                    np.save(file, filled_plane(_item_table(bundle)).numpy())
        points: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        return points


def _item_table(bundle: BundleDescription) -> Tensor:
    """The base's vectors of the items, [N, D]; row 0 is padding."""
    path = bundle.directory / BASE
    try:
        with safe_open(path, framework="pt") as file:
            table: Tensor = file.get_slice(ITEM_TABLE)[1:].float()
    except FileNotFoundError as error:
        raise BundleMissingFileError(f"{path}: removed since it was loaded") from error
    except (SafetensorError, OSError) as error:
        raise BundleCorruptError(f"{path}: changed since it was loaded: {error}") from error
    return table

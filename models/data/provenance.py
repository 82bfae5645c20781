"""What a dataset was made from, for its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from models.data.dataset import sha256_of
from models.data.reading.places import files_of
from models.data.reading.times import TimeUnit


def provenance_of(places: Sequence[str | Path], time_unit: TimeUnit) -> dict[str, object]:
    """What the dataset was made from, a file on this machine by its hash, and the unit of its times."""
    files = [
        {
            "name": file.path.name if file.path else file.facts.name,
            "sha256": sha256_of(file.path) if file.path else None,
            "bytes": file.num_bytes,
        }
        for file in files_of(places)
    ]
    if len(files) == 1:
        return {"name": files[0]["name"], "sha256": files[0]["sha256"], "time_unit": time_unit}
    digest = hashlib.sha256("".join(str(file["sha256"]) for file in files).encode()).hexdigest()
    name = ", ".join(str(place) for place in places)
    return {"name": name, "sha256": digest, "files": files, "time_unit": time_unit}

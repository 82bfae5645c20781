"""
Where the parts of a composite lie until all are made: a folder ``.NAME.parts`` beside it.

``work.json`` says what its parts are of. A later run of the very same goes on from the parts that are there; one of
anything else begins anew. A run holds a lock on the folder, so that two of them never make one composite.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.composite.part_results import Part, PartRecipe, PartTotals
from models.decoding.rules import RULES_VERSION
from models.errors import OutputExistsError
from models.files import replace_file

WORK = "work.json"
LOCK = "lock"
# Of what a part holds: parts of another version are made again.
_FORMAT = 1


def work_folder_of(out: Path) -> Path:
    """
    Where the parts of the composite *out* lie.

    >>> work_folder_of(Path("results/food")).as_posix()
    'results/.food.parts'
    """
    return out.with_name(f".{out.name}.parts")


def identity_of(recipe: PartRecipe, parts: Sequence[Part]) -> dict[str, object]:
    """All that decides what parts hold; where earlier decisions come from does not, for they would be the same."""
    files = json.dumps(recipe.dataset.manifest["files"], sort_keys=True)
    ends = ",".join(str(part.users.end) for part in parts)
    return {
        "format": _FORMAT,
        "bundle": recipe.bundle.version,
        "rule": recipe.rule,
        "dial": recipe.dial,
        "rules version": RULES_VERSION,
        "target": recipe.target,
        "interactions": "all" if recipe.everything else "training",
        "dataset": recipe.dataset.fingerprint,
        "files of the dataset": _hash(files),
        "size of parts": _hash(ends),
    }


@contextmanager
def claimed(folder: Path, identity: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """
    Hold the work folder; gives in what the parts that lay there differ, nothing where they are the same or none lay.

    Parts of another identity are deleted. The folder stays: who has put the composite together deletes it.

    Raises:
        OutputExistsError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(f"{folder}: another run is making these parts; wait for it, or end it") from error
        except OSError:
            pass  # a file system without locks: whoever starts two runs into one folder is not told
        yield _adopted(folder, identity)


def finished(folder: Path, parts: Sequence[Part]) -> dict[int, PartTotals]:
    """The parts that are whole, by number."""
    found = ((part.number, PartTotals.read(folder / part.name)) for part in parts)
    return {number: totals for number, totals in found if totals is not None}


def _adopted(folder: Path, identity: Mapping[str, object]) -> tuple[str, ...]:
    try:
        there = json.loads((folder / WORK).read_text(encoding="utf-8"))
        differing = tuple(name for name, value in identity.items() if there.get(name) != value)
    except FileNotFoundError:
        there, differing = None, ()
    except (OSError, ValueError, AttributeError):
        there, differing = None, ("a work.json that cannot be read",)
    for path in folder.iterdir():
        # What a kill left behind goes, too
        stale = differing or there is None or path.name.startswith(".")
        if path.is_dir() and stale:
            shutil.rmtree(path)
    if there != identity:
        with replace_file(folder / WORK) as partial:
            partial.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    return differing


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

"""Tiny tables of interactions, prepared, and the datasets read again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, PreparationReport, prepare

Row = tuple[str, str, str, float]  # user, item, domain, timestamp

TINY: list[Row] = [("u1", "x", "a", 1), ("u1", "y", "b", 2), ("u2", "x", "a", 3), ("u2", "z", "b", 1)]

REPOSITORY = Path(__file__).parents[1]
SAMPLE = REPOSITORY / "examples" / "food-kitchen-sample.csv.gz"
KEEP_ALL = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any")


def write_csv(path: Path, rows: list[Row]) -> Path:
    path.write_text("user,item,domain,timestamp\n" + "".join(f"{u},{i},{d},{t}\n" for u, i, d, t in rows))
    return path


def prepared(folder: Path, rows: list[Row], config: PreparationConfig) -> tuple[PreparationReport, Dataset]:
    out = Path(tempfile.mkdtemp(dir=folder)) / "dataset"
    report = prepare(write_csv(folder / "input.csv", rows), out, config)
    return report, load_dataset(out)


def sequences(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    """Each user's whole mixed sequence as (domain, item), put together from the three files."""
    return {
        user: [dataset.vocabulary.external_id(int(token)) for token in (*train, validation, test) if token]
        for user, train, validation, test in zip(
            dataset.user_ids, dataset.train, dataset.validation, dataset.test, strict=True
        )
    }


def items(dataset: Dataset) -> dict[str, list[str]]:
    return {user: [item for _domain, item in sequence] for user, sequence in sequences(dataset).items()}

"""docs/files.md has every column of every file that is written, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from app.http.routes.mappings import LINES
from app.jobs.results import SEQUENCES
from models.bundle import save_bundle
from models.composite.folder import write_composite
from models.exports.encoding import INTERACTION_COLUMNS
from models.exports.export_formats import FORMATS
from tests.conftest import random_decoder

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "files.md").read_text(encoding="utf-8")


def documented(heading: str) -> list[str]:
    """The first column of the table under *heading*."""
    section = re.split(r"^#+ ", TEXT.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory) -> Path:
    """A composite with every export."""
    place = tmp_path_factory.mktemp("files")
    networks = [random_decoder(dataset.vocabulary.num_items, seed) for seed in range(4)]
    bundle = save_bundle(
        place / "bundle",
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint},
    )
    write_composite(dataset, bundle, target="food", rule="paper", out=place / "food", exports=tuple(FORMATS))
    return place / "food"


@pytest.mark.parametrize(
    "name",
    ["composite.parquet", "counts.parquet", "mapping.parquet", "rectools/train.parquet", "replay/train.parquet"],
)
def test_every_column_of_a_parquet_file_is_described_in_its_order(folder, name) -> None:
    assert documented(name) == pl.read_parquet(folder / name).columns


def test_every_column_of_interactions_is_described_in_its_order(folder) -> None:
    assert documented("Interactions") == pl.read_parquet(folder / "interactions" / "*.parquet").columns
    assert documented("Interactions") == list(INTERACTION_COLUMNS)


def test_every_column_of_the_sequences_for_recbole_is_described(folder) -> None:
    header = (folder / "food.inter").read_text().splitlines()[0].split("\t")

    assert documented("TARGET.inter") == [name.partition(":")[0] for name in header]


def test_every_column_of_a_jobs_sequences_is_described_in_its_order() -> None:
    assert documented("Parquet and NDJSON of sequences") == SEQUENCES.names


def test_every_column_of_a_mapping_is_described() -> None:
    assert sorted(documented("Mappings")) == sorted(LINES.names)


def test_every_format_and_every_file_of_a_dataset_is_described(folder, dataset) -> None:
    assert documented("Exports") == list(FORMATS)
    where_asked = {"carried.parquet", "later.parquet", "joined.parquet"}  # --carry, --split time, --extend
    always = {*documented("The folder of `taesar prepare`")} - where_asked
    assert always == {path.name for path in dataset.directory.iterdir()}
    assert where_asked < {*documented("The folder of `taesar prepare`")}
    for path in folder.iterdir():
        named = (f"`{path.name}`", f"`{path.name}/", path.name.replace("food", "TARGET"))
        assert any(name in TEXT for name in named), path

"""A result made from an earlier one: only what changed is decided anew, and nobody can tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest

from models.bundle import Bundle
from models.composite.folder import write_composite
from models.composite.lineage import describe_lineage, read_lineage
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import prepare
from models.errors import DatasetFormatError

FILES = ("composite.parquet", "counts.parquet", "mapping.parquet", "decisions.parquet", "food.inter")


@pytest.fixture(scope="module")
def today(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """``dataset`` and what three people did since, one of them with an item that is new."""
    folder = tmp_path_factory.mktemp("today")
    rows = ["user,item,domain,timestamp"]
    did = [
        ("kitchen-03", "kitchen"),
        ("food-04", "food"),
        ("fresh", "food"),
        ("books-07", "books"),
        ("food-09", "food"),
    ]
    for user in range(3):
        rows += [f"u{user:03d},{item},{domain},{2_000 + place}" for place, (item, domain) in enumerate(did)]
    (folder / "new.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare(folder / "new.csv", folder / "prepared", extend=dataset.directory)
    return load_dataset(folder / "prepared")


def write(dataset: Dataset, bundle: Bundle, out: Path, previous: Path | None = None):
    return write_composite(
        dataset, bundle, target="food", rule="anticipate", out=out, interactions="all", previous=previous
    )


def test_a_result_from_an_earlier_one_is_that_from_nothing(dataset, today, matching_bundle, tmp_path) -> None:
    """Byte for byte, with yesterday's bundle on today's data; the three who did something are decided anew."""
    write(dataset, matching_bundle, tmp_path / "yesterday")
    taken = write(today, matching_bundle, tmp_path / "taken", tmp_path / "yesterday")
    anew = write(today, matching_bundle, tmp_path / "anew")

    assert (taken.users_taken_over, anew.users_taken_over) == (taken.users - 3, 0)
    for name in FILES:
        assert (tmp_path / "taken" / name).read_bytes() == (tmp_path / "anew" / name).read_bytes(), name
    ours, theirs = (pl.read_parquet(tmp_path / name / "interactions/*.parquet") for name in ("taken", "anew"))
    assert ours.equals(theirs)
    assert "fresh" in ours["item"].to_list()


def test_a_result_that_replaces_itself_takes_its_own_decisions_over(dataset, matching_bundle, tmp_path) -> None:
    first = write(dataset, matching_bundle, tmp_path / "out")
    second = write(dataset, matching_bundle, tmp_path / "out")

    assert (first.users_taken_over, second.users_taken_over) == (0, first.users)


def test_another_bundle_decides_anew(dataset, matching_bundle, tmp_path) -> None:
    write(dataset, matching_bundle, tmp_path / "out")
    other = dataclasses.replace(matching_bundle, version="another")

    assert write(dataset, other, tmp_path / "out").users_taken_over == 0


def test_a_damaged_file_of_decisions_decides_anew(dataset, matching_bundle, tmp_path) -> None:
    write(dataset, matching_bundle, tmp_path / "out")
    (tmp_path / "out" / "decisions.parquet").write_bytes(b"no table")

    assert write(dataset, matching_bundle, tmp_path / "out").users_taken_over == 0


def test_a_result_leads_back_to_its_bundle_dataset_inputs_and_period(dataset, today, matching_bundle, tmp_path) -> None:
    write(today, matching_bundle, tmp_path / "out")
    lineage = read_lineage(tmp_path / "out")
    lines = "\n".join(describe_lineage(lineage))

    assert lineage["bundle"]["version"] == matching_bundle.version
    assert lineage["dataset"]["fingerprint"] == today.fingerprint
    assert lineage["dataset"]["source"]["name"] == "new.csv"
    assert lineage["dataset"]["extends"][0]["fingerprint"] == dataset.fingerprint
    assert lineage["dataset"]["period"] == today.manifest["period"]
    assert f"  extends dataset {dataset.fingerprint[:12]}" in lines
    assert "from interactions.csv" in lines


def test_a_dataset_and_a_bundle_have_a_lineage_too(today, matching_bundle) -> None:
    assert read_lineage(today.directory)["dataset"]["fingerprint"] == today.fingerprint
    assert read_lineage(matching_bundle.directory)["bundle"]["version"] == matching_bundle.version


def test_a_folder_that_is_none_of_them_is_refused(dataset, matching_bundle, tmp_path) -> None:
    """An earlier version's result is one: it did not say."""
    with pytest.raises(DatasetFormatError, match="no result, bundle or dataset"):
        read_lineage(tmp_path)
    write(dataset, matching_bundle, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    del summary["lineage"]
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(DatasetFormatError, match="says nothing of where it comes from"):
        read_lineage(tmp_path / "out")

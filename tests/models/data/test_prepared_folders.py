"""The folder that preparation writes: its manifest, its bytes, what it replaces."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from models.data.dataset import load_dataset
from models.data.preparation import prepare
from models.errors import OutputExistsError
from tests.prepared_tables import KEEP_ALL, SAMPLE, TINY, Row, write_csv

# -- The folder


def test_the_manifest_tells_rules_counts_and_source(tmp_path):
    source = write_csv(tmp_path / "t.csv", [*TINY, TINY[0]])
    report = prepare(source, tmp_path / "dataset", KEEP_ALL)
    manifest = json.loads((tmp_path / "dataset" / "dataset.json").read_text())

    assert manifest["config"] == json.loads(json.dumps(asdict(KEEP_ALL)))
    assert manifest["source"]["name"] == "t.csv"
    assert manifest["fingerprint"] == report.fingerprint
    assert manifest["statistics"]["rows_duplicate"] == 1
    assert manifest["statistics"]["result"]["domains"] == [
        {"domain": "a", "users": 2, "items": 1, "interactions": 2, "mean_length": 1.0},
        {"domain": "b", "users": 2, "items": 2, "interactions": 2, "mean_length": 1.0},
    ]
    assert list(manifest["files"]) == [
        "bad_rows.csv", "test.parquet", "times.parquet", "train.parquet", "validation.parquet", "vocabulary.parquet",
        "waiting.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "period"),
    [
        pytest.param((1_400_000_000, 1_500_000_000), ("2014-05-13", "2017-07-14"), id="seconds"),
        pytest.param((1_400_000_000_000, 1_500_000_000_000), ("2014-05-13", "2017-07-14"), id="milliseconds"),
        pytest.param((1_400_000_000_000_000, 1.5e15), ("2014-05-13", "2017-07-14"), id="microseconds"),
        pytest.param((1, 2), ("1970-01-01", "1970-01-01"), id="places instead of times"),
    ],
)
def test_a_dataset_says_what_time_it_covers_and_what_it_is_called(tmp_path, times, period):
    rows: list[Row] = [("u", "x", "a", times[0]), ("u", "y", "b", times[1])]
    prepare(write_csv(tmp_path / "t.csv", rows), tmp_path / "dataset", KEEP_ALL, name="spring")
    manifest = json.loads((tmp_path / "dataset" / "dataset.json").read_text())

    assert manifest["name"] == "spring"
    assert (manifest["period"]["first"], manifest["period"]["last"]) == times
    assert (manifest["period"]["first_date"], manifest["period"]["last_date"]) == period


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        prepare(SAMPLE, tmp_path / name)

    for path in sorted((tmp_path / "one").iterdir()):
        if path.name != "dataset.json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    one, two = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("one", "two"))
    assert (one.pop("name"), two.pop("name")) == ("one", "two")
    assert one | {"created": ""} == two | {"created": ""}


def test_an_existing_dataset_is_replaced_only_when_asked(tmp_path):
    source, out = write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset"
    prepare(source, out, KEEP_ALL)
    first = load_dataset(out).fingerprint
    write_csv(source, TINY[:-1])

    with pytest.raises(OutputExistsError, match="holds a dataset already"):
        prepare(source, out, KEEP_ALL)
    assert load_dataset(out).fingerprint == first
    report = prepare(source, out, KEEP_ALL, overwrite=True)
    assert load_dataset(out).fingerprint == report.fingerprint != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "t.csv"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")

    with pytest.raises(OutputExistsError, match="not a dataset"):
        prepare(write_csv(tmp_path / "t.csv", TINY), tmp_path / "thesis", KEEP_ALL, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_failed_write_leaves_the_former_dataset_and_no_rubbish(tmp_path, monkeypatch):
    source, out = write_csv(tmp_path / "t.csv", TINY), tmp_path / "dataset"
    first = prepare(source, out, KEEP_ALL).fingerprint

    def full_disk(_path):
        raise OSError("no space left on device")

    monkeypatch.setattr("models.data.dataset_tables.sha256_of", full_disk)
    with pytest.raises(OSError, match="no space"):
        prepare(source, out, KEEP_ALL, overwrite=True)
    monkeypatch.undo()
    assert load_dataset(out).fingerprint == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "t.csv"]


def test_progress_names_the_stages_and_stays_between_0_and_1(tmp_path):
    seen: list[tuple[str, float]] = []
    prepare(SAMPLE, tmp_path / "dataset", progress=lambda stage, fraction: seen.append((stage, fraction)))
    stages = list(dict.fromkeys(stage for stage, _ in seen))

    assert stages[0] == "reading"
    assert seen[-1] == ("writing", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in seen)
    assert ("reading", 1.0) in seen
    assert [step for step in seen if step[0] != "reading"] == [
        ("dropping duplicates", 0.0),
        ("applying thresholds", 0.0),
        ("merging by time", 0.0),
        ("numbering items", 0.0),
        ("writing", 0.0),
        ("writing", 1.0),
    ]

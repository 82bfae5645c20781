"""Everything that a log holds comes out: counts, times and origins agree, to the row."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from models.bundle import Bundle, save_bundle
from models.composite.folder import CompositeSummary, write_composite
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.data.reading.layouts import Layout
from models.errors import BundleMismatchError, DatasetFormatError
from models.evaluation.arms import load_composite
from tests.conftest import random_decoder, write_interactions

EVERYTHING = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any")


def bundle_of(dataset: Dataset, folder: Path, **provenance: object) -> Bundle:
    networks = [random_decoder(dataset.vocabulary.num_items, seed, max_length=128) for seed in range(4)]
    return save_bundle(
        folder,
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint, **provenance},
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def whole(log: Path) -> Dataset:
    """The log prepared so that no threshold drops anything."""
    prepare(log, log.parent / "prepared", EVERYTHING)
    return load_dataset(log.parent / "prepared")


def rows_of(path: Path, domain: str | None = None) -> list[tuple[str, str, int]]:
    """(user, item, time) of a log's distinct interactions, sorted."""
    with path.open() as file:
        rows = {
            (r["user"], r["item"], int(r["timestamp"])) for r in csv.DictReader(file) if domain in (None, r["domain"])
        }
    return sorted(rows)


def made(
    dataset: Dataset, bundle: Bundle, out: Path, interactions: str = "all", rule: str = "anticipate"
) -> tuple[CompositeSummary, pl.DataFrame]:
    summary = write_composite(dataset, bundle, target="food", rule=rule, out=out, interactions=interactions)
    return summary, pl.read_parquet(out / "interactions" / "*.parquet")


@pytest.mark.parametrize("rule", ["anticipate", "paper"])
def test_with_all_interactions_the_targets_are_the_logs_to_the_row(whole, log, tmp_path, rule) -> None:
    bundle = bundle_of(whole, tmp_path / "bundle")
    summary, stayed = made(whole, bundle, tmp_path / "food", rule=rule)
    kept = stayed.filter(pl.col("origin") == "kept")
    replaced = stayed.filter(pl.col("origin") == "replaced")
    counts = pl.read_parquet(tmp_path / "food" / "counts.parquet")
    everything = set(rows_of(log))

    assert sorted(kept.select("user", "item", "timestamp").rows()) == rows_of(log, "food")
    assert summary.kept + summary.replaced + summary.deleted == len(everything)
    assert (kept.height, replaced.height) == (summary.kept, summary.replaced)
    assert (counts["kept"].sum(), counts["replaced"].sum()) == (summary.kept, summary.replaced)
    assert replaced.height > 20
    # A replacement has its source item's time: joined back to the log, nothing is missing.
    assert set(replaced.select("user", "source_item", "timestamp").rows()) <= everything
    assert replaced.select(pl.struct("user", "source_item", "timestamp").is_unique().all()).item()
    assert set(replaced["source_domain"]) == {"books", "kitchen"}
    assert set(stayed["user"]) <= set(whole.user_ids)
    assert set(stayed["item"]) <= set(whole.vocabulary.item_ids[whole.vocabulary.domain_index("food")])
    assert kept.select("source_item", "source_domain", "score").null_count().row(0) == (kept.height,) * 3


def test_interactions_are_sorted_by_user_and_time(whole, tmp_path) -> None:
    _, stayed = made(whole, bundle_of(whole, tmp_path / "bundle"), tmp_path / "food")

    assert stayed.select("user", "timestamp").equals(stayed.select("user", "timestamp").sort("user", "timestamp"))
    assert stayed.schema["timestamp"] == pl.Int64


def test_training_interactions_hold_nothing_that_is_held_out(whole, tmp_path) -> None:
    summary, stayed = made(whole, bundle_of(whole, tmp_path / "bundle"), tmp_path / "food", interactions="training")
    last = {user: whole.times[index][-2] for index, user in enumerate(whole.user_ids)}

    assert summary.kept + summary.replaced + summary.deleted == len(whole.train.token_ids)
    assert all(time < last[user] for user, time in stayed.select("user", "timestamp").rows())


def test_a_log_newer_than_the_bundle_keeps_all_of_the_target(log, whole, tmp_path) -> None:
    """What is new: an item of the target in the middle of a sequence, one of another domain, a user, a domain."""
    newer = tmp_path / "newer.csv"
    news = ("u000,food-new,food,1045", "u000,books-new,books,1046", "unew,food-new,food,5", "unew,toy,toys,6")
    newer.write_text(log.read_text() + "\n".join(news) + "\n")
    prepare(newer, tmp_path / "prepared", EVERYTHING)
    dataset = load_dataset(tmp_path / "prepared")
    bundle = bundle_of(whole, tmp_path / "bundle")
    summary, stayed = made(dataset, bundle, tmp_path / "food")
    kept = stayed.filter(pl.col("origin") == "kept")
    rows = pl.read_parquet(tmp_path / "food" / "composite.parquet").filter(pl.col("user_id") == "u000")

    assert (summary.unknown_kept, summary.unknown) == (2, 2)
    assert sorted(kept.select("user", "item", "timestamp").rows()) == rows_of(newer, "food")
    assert kept.height == summary.kept + summary.unknown_kept
    assert all("food-new" in items for items in rows["item_ids"])
    with pytest.raises(BundleMismatchError, match="--interactions all"):
        made(dataset, bundle, tmp_path / "food", interactions="training")


def test_items_of_the_target_stay_however_little_the_bundle_reads(whole, log, tmp_path) -> None:
    """A bundle of 6 positions and sequences of 18: older source items are not read, and counted."""
    networks = [random_decoder(whole.vocabulary.num_items, seed, max_length=6) for seed in range(4)]
    bundle = save_bundle(
        tmp_path / "b", vocabulary=whole.vocabulary, base=networks[0], experts=networks[1:], provenance={}
    )
    summary, stayed = made(whole, bundle, tmp_path / "food")
    kept = stayed.filter(pl.col("origin") == "kept")

    assert sorted(kept.select("user", "item", "timestamp").rows()) == rows_of(log, "food")
    assert summary.kept == kept.height
    assert summary.truncated > 100
    assert summary.kept + summary.replaced + summary.deleted + summary.truncated == len(rows_of(log))


def test_a_bundle_that_learned_what_is_held_out_makes_nothing_to_evaluate(whole, tmp_path) -> None:
    bundle = bundle_of(whole, tmp_path / "bundle", refit=True)
    made(whole, bundle, tmp_path / "food")

    with pytest.raises(BundleMismatchError, match="--refit"):
        made(whole, bundle, tmp_path / "other", interactions="training")
    with pytest.raises(DatasetFormatError, match="held-out ones among them"):
        load_composite(tmp_path / "food", whole, "food")


def test_a_dataset_without_times_gives_interactions_without_times(whole, tmp_path) -> None:
    manifest = dict(whole.manifest) | {
        "files": {n: h for n, h in whole.manifest["files"].items() if n != "times.parquet"}
    }
    untimed = replace(whole, manifest=manifest)
    summary, stayed = made(untimed, bundle_of(whole, tmp_path / "bundle"), tmp_path / "food")

    assert not summary.has_times
    assert stayed["timestamp"].null_count() == stayed.height > 0


def test_fractions_of_seconds_stay(tmp_path) -> None:
    rows = [
        f"u{n % 5},{'food' if n % 2 else 'books'}-{n % 4},{'food' if n % 2 else 'books'},{n + 0.25}" for n in range(40)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,domain,timestamp", *rows]) + "\n")
    prepare(tmp_path / "log.csv", tmp_path / "prepared", EVERYTHING)
    dataset = load_dataset(tmp_path / "prepared")
    networks = [random_decoder(dataset.vocabulary.num_items, seed, max_length=128) for seed in range(3)]
    provenance = {"dataset_fingerprint": dataset.fingerprint}
    bundle = save_bundle(
        tmp_path / "b", vocabulary=dataset.vocabulary, base=networks[0], experts=networks[1:], provenance=provenance
    )
    _, stayed = made(dataset, bundle, tmp_path / "food")
    kept = stayed.filter(pl.col("origin") == "kept")

    assert sorted(kept["timestamp"]) == [n + 0.25 for n in range(1, 40, 2)]


@pytest.mark.parametrize("name", ["csv", "ndjson", "inter", "rectools", "replay", "recbole", "parquet"])
def test_every_export_is_written_and_replaced_with_the_folder(whole, tmp_path, name) -> None:
    bundle = bundle_of(whole, tmp_path / "bundle")
    for exports in ((name,), ()):
        write_composite(whole, bundle, target="food", rule="paper", out=tmp_path / "food", exports=exports)
        found = [
            path for path in (tmp_path / "food").iterdir() if path.name == name or path.name.startswith("interactions.")
        ]
        assert len(found) == len(exports)


def test_held_out_items_of_an_export_are_those_of_the_target(whole, tmp_path) -> None:
    write_composite(
        whole,
        bundle_of(whole, tmp_path / "b"),
        target="food",
        rule="paper",
        out=tmp_path / "food",
        exports=("rectools",),
    )
    test = pl.read_parquet(tmp_path / "food" / "rectools" / "test.parquet")
    food = whole.vocabulary.token_range("food")
    expected = [
        (user, whole.vocabulary.item_ids_of([int(token)])[0])
        for user, token in zip(whole.user_ids, whole.test, strict=True)
        if token in food
    ]

    assert test.select("user_id", "item_id").rows() == expected
    assert len(expected) > 5


def test_a_large_result_is_in_parts_that_a_reader_takes_as_one(whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("models.composite.assembly.USERS_PER_TABLE", 7)
    _, stayed = made(whole, bundle_of(whole, tmp_path / "bundle"), tmp_path / "food")
    table = pq.read_table(tmp_path / "food" / "interactions")

    assert table.num_rows == stayed.height
    assert np.array_equal(table["user"].to_numpy(), stayed["user"].to_numpy())


@pytest.mark.parametrize("interactions", ["training", "all"])
def test_carried_columns_come_along_with_every_row_a_replacement_has_those_of_its_source(log, tmp_path, interactions):
    """Each row of the log has a rating of its own; a row of the result has that of the item that stood there."""
    with log.open() as file:
        rows = list(csv.DictReader(file))
    rating_of = {(row["user"], row["item"], int(row["timestamp"])): f"r{place}" for place, row in enumerate(rows)}
    table = pl.DataFrame(rows).with_columns(
        rating=pl.Series([rating_of[row["user"], row["item"], int(row["timestamp"])] for row in rows])
    )
    table.write_csv(tmp_path / "log.csv")
    layout = Layout(carried=("rating",))
    prepare(tmp_path / "log.csv", tmp_path / "carried", replace(EVERYTHING, layout=layout))
    dataset = load_dataset(tmp_path / "carried")
    _, found = made(dataset, bundle_of(dataset, tmp_path / "bundle"), tmp_path / "out", interactions)

    assert found.columns[-1] == "rating"
    assert set(found["origin"]) == {"kept", "replaced"}
    assert found["rating"].to_list() == [
        rating_of[user, source or item, when]
        for user, item, source, when in found.select("user", "item", "source_item", "timestamp").rows()
    ]


def test_nothing_is_carried_unless_it_is_asked_for(whole):
    assert whole.carried is None
    assert not (whole.directory / "carried.parquet").exists()

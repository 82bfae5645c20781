"""Stage 1 and 2 end to end on a small real run: learning, kill and resume, no look at held-out items."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.checkpoint import Bundle
from models.composite import COMPOSITE, COUNTS, MAPPING, SUMMARY, write_composite
from models.dataset import MANIFEST, Dataset, load_dataset, sha256_of
from models.errors import BundleMismatchError, OutputExistsError, ResumeMismatchError
from models.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.training import TrainingConfig
from models.vocabulary import Vocabulary

CPU = torch.device("cpu")
SHORT = TrainingConfig(learning_rate=5e-3, batch_size=16, max_epochs=12)
CONFIG = PipelineConfig(network=NetworkConfig(width=16, inner_width=16), base=SHORT, expert=SHORT)


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("trained")
    return train_bundle(dataset, folder / "bundle", CONFIG, device=CPU, run_directory=folder / "run")


def test_base_and_experts_learn(trained: Bundle) -> None:
    """In this data the next item's number follows the last one's; guessing ranks 10 of 60 and 10 of 20."""
    summaries = trained.provenance
    base, experts = summaries["base"], summaries["experts"]
    assert base["best_validation_ndcg_at_10"] > 0.3
    assert set(experts) == {"books", "food", "kitchen"}
    for expert in experts.values():
        # Epoch 0 is the base itself, ranked inside the domain: adapting never ends worse.
        assert expert["best_validation_ndcg_at_10"] >= expert["epochs"][0]["validation_ndcg_at_10"]
        assert expert["best_validation_ndcg_at_10"] > 0.5


def test_provenance_says_how_it_was_trained(trained: Bundle, dataset: Dataset) -> None:
    assert trained.provenance["dataset_fingerprint"] == dataset.fingerprint
    assert trained.provenance["config"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))


def test_training_twice_gives_the_same_version(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    again = train_bundle(dataset, tmp_path / "bundle", CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert again.version == trained.version
    assert not (tmp_path / "run").exists()


TRAIN = """
import sys; from pathlib import Path; import torch
from models.dataset import load_dataset
from models.pipeline import train_bundle
from models.training import Silent
from tests.models.test_pipeline import CONFIG

class Say(Silent):
    def on_epoch(self, report):
        print(report.stage, report.epoch, flush=True)

folder = Path(sys.argv[2])
train_bundle(load_dataset(Path(sys.argv[1])), folder / "bundle", CONFIG, device=torch.device("cpu"),
             run_directory=folder / "run", progress=Say())
"""


@pytest.mark.parametrize("kill_after", ["base 3", "expert food 2"])
def test_training_killed_with_sigkill_resumes_to_the_same_bundle(
    trained: Bundle, dataset: Dataset, tmp_path: Path, kill_after: str
) -> None:
    """The process dies at some moment after the named epoch; a second run ends with the same weights."""
    command = [sys.executable, "-c", TRAIN, str(dataset.directory), str(tmp_path)]
    root = Path(__file__).parents[2]
    # The same number of threads as here: sums of floats depend on how they are shared out.
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == kill_after:
                time.sleep(np.random.default_rng(len(kill_after)).uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()

    resumed = train_bundle(dataset, tmp_path / "bundle", CONFIG, device=CPU, run_directory=tmp_path / "run")

    assert resumed.version == trained.version


def test_a_run_folder_of_another_configuration_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class StopAtTwo:
        def on_step(self, report: object) -> None:
            """Nothing."""

        def on_epoch(self, report: object) -> None:
            if report.epoch == 2:  # type: ignore[attr-defined]
                raise Stop

    arguments = {"device": CPU, "run_directory": tmp_path / "run"}
    with pytest.raises(Stop):
        train_bundle(dataset, tmp_path / "bundle", CONFIG, progress=StopAtTwo(), **arguments)
    other = dataclasses.replace(CONFIG, base=dataclasses.replace(SHORT, seed=1))
    with pytest.raises(ResumeMismatchError, match=r"base\.safetensors belongs to another run"):
        train_bundle(dataset, tmp_path / "bundle", other, **arguments)


def test_a_destination_of_other_files_is_refused_before_any_training(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        train_bundle(dataset, tmp_path, CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def poisoned(dataset: Dataset, folder: Path, *, validation: bool) -> Dataset:
    """The dataset with every test item, and on request every validation item, replaced by another of its domain."""
    folder.mkdir()
    for path in dataset.directory.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = ["test.parquet", *(["validation.parquet"] if validation else [])]
    for name in names:
        table = pl.read_parquet(folder / name)
        first = {token: r.first for r in dataset.vocabulary.token_ranges for token in range(r.first, r.last + 1)}
        sizes = {r.first: len(r) for r in dataset.vocabulary.token_ranges}
        moved = [first[t] + (t - first[t] + 7) % sizes[first[t]] for t in table["token_id"].to_list()]
        table.with_columns(token_id=pl.Series(moved, dtype=table.schema["token_id"])).write_parquet(folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: sha256_of(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return load_dataset(folder)


def test_poisoned_test_items_change_nothing(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    """No stage reads s[n-1]: weights, composite and mapping are the same to the bit."""
    other = poisoned(dataset, tmp_path / "poisoned", validation=False)
    assert not np.array_equal(other.test, dataset.test)
    bundle = train_bundle(other, tmp_path / "bundle", CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert bundle.version == trained.version
    for target in dataset.vocabulary.domains:
        clean, dirty = tmp_path / f"clean-{target}", tmp_path / f"dirty-{target}"
        write_composite(dataset, trained, target=target, rule="paper", out=clean)
        write_composite(other, bundle, target=target, rule="paper", out=dirty)
        for name in (COMPOSITE, MAPPING, COUNTS, f"{target}.inter"):
            assert (clean / name).read_bytes() == (dirty / name).read_bytes()


def test_poisoned_validation_items_choose_an_epoch_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    """s[n-2] ranks epochs. With one epoch and no choice between epochs 0 and 1, the weights do not depend on it."""
    one = dataclasses.replace(SHORT, max_epochs=1)
    config = dataclasses.replace(CONFIG, base=one, expert=one)
    other = poisoned(dataset, tmp_path / "poisoned", validation=True)
    assert not np.array_equal(other.validation, dataset.validation)
    losses = []
    for name, data in (("clean", dataset), ("dirty", other)):
        bundle = train_bundle(data, tmp_path / name, config, device=CPU, run_directory=tmp_path / f"{name}-run")
        losses.append(bundle.provenance["base"]["epochs"][1]["loss"])
        write_composite(data, bundle, target="food", rule="paper", out=tmp_path / f"{name}-food")
    assert losses[0] == losses[1]
    if len({load_version(tmp_path / name) for name in ("clean", "dirty")}) == 1:
        clean, dirty = (tmp_path / f"{name}-food" / COMPOSITE for name in ("clean", "dirty"))
        assert clean.read_bytes() == dirty.read_bytes()


def load_version(directory: Path) -> str:
    return sha256_of(directory / "base.safetensors")


def test_regeneration_works_where_held_out_files_are_gone(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    """By construction: the composite needs train.parquet and the vocabulary only."""
    opened = load_dataset(dataset.directory)
    assert "validation" not in vars(opened)
    write_composite(opened, trained, target="food", rule="paper", out=tmp_path / "food")
    assert "validation" not in vars(opened)
    assert "test" not in vars(opened)


@pytest.mark.parametrize("target", ["books", "food", "kitchen"])
def test_the_composite_is_original_and_regenerated_rows_and_counts_add_up(
    trained: Bundle, dataset: Dataset, tmp_path: Path, target: str
) -> None:
    seen = []
    summary = write_composite(
        dataset, trained, target=target, rule="paper", out=tmp_path / "out", on_users=lambda d, t: seen.append((d, t))
    )
    composite = pl.read_parquet(tmp_path / "out" / COMPOSITE)
    counts = pl.read_parquet(tmp_path / "out" / COUNTS)
    mapping = pl.read_parquet(tmp_path / "out" / MAPPING)
    target_range = dataset.vocabulary.token_range(target)
    original = composite.filter(pl.col("origin") == "original")

    for user, tokens in zip(original["user_id"], original["token_ids"], strict=True):
        train = dataset.train[dataset.user_ids.index(user)]
        assert tokens.to_list() == [t for t in train.tolist() if t in target_range]
    assert all(item.startswith(target) for items in composite["item_ids"] for item in items)
    assert composite["token_ids"].list.len().min() >= 2
    assert composite.select("user_id", "token_ids").is_unique().all()
    assert counts.select("kept", "replaced", "deleted").sum().row(0) == (
        summary.kept,
        summary.replaced,
        summary.deleted,
    )
    assert summary.kept + summary.replaced + summary.deleted == dataset.train.lengths.sum()
    assert mapping.filter(pl.col("target_item").is_null())["count"].sum() == summary.deleted
    assert mapping.filter(pl.col("target_item").is_not_null())["count"].sum() == summary.replaced > 0
    shares = mapping.group_by("source_domain", "source_item").agg(pl.col("share").sum())["share"]
    assert np.allclose(shares, 1)
    assert (mapping["source_domain"] != target).all()
    assert (
        json.loads((tmp_path / "out" / SUMMARY).read_text())["regenerated_rows"] == composite.height - original.height
    )
    assert seen[-1] == (len(dataset.user_ids), len(dataset.user_ids))
    inter = (tmp_path / "out" / f"{target}.inter").read_text().splitlines()
    assert inter[0] == "user_id:token\titem_id_list:token_seq\titem_id:token"
    assert len(inter) == 1 + composite.height


def test_a_composite_is_replaced_and_other_folders_are_refused(
    trained: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    options = {"target": "food", "rule": "paper"}
    write_composite(dataset, trained, out=tmp_path / "out", **options)
    write_composite(dataset, trained, out=tmp_path / "out", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="is not a composite dataset"):
        write_composite(dataset, trained, out=tmp_path / "mine", **options)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_a_bundle_of_other_items_is_refused(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    shuffled = Vocabulary(trained.vocabulary.domains, tuple(tuple(reversed(i)) for i in trained.vocabulary.item_ids))
    with pytest.raises(BundleMismatchError, match="its vocabulary is not that of dataset"):
        write_composite(
            dataset,
            dataclasses.replace(trained, vocabulary=shuffled),
            target="food",
            rule="paper",
            out=tmp_path / "out",
        )

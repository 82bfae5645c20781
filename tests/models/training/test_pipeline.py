"""Stage 1 and 2 end to end on a small real run: learning, kill and resume, no look at held-out items."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from models.bundle import Bundle
from models.composite.folder import COMPOSITE, COUNTED, MAPPING, SUMMARY, CompositeProgress, write_composite
from models.data.dataset import MANIFEST, Dataset, load_dataset, sha256_of
from models.data.preparation import PreparationConfig, prepare
from models.decoding.rules import DEFAULT_RULE, Rule
from models.errors import BundleMismatchError, OutputExistsError, ResumeMismatchError, TrainingError
from models.training.loop import EpochReport, Silent, TrainingConfig, settings_of
from models.training.pipeline import NetworkConfig, PipelineConfig, forget_run, train_bundle
from models.vocabulary import Vocabulary
from tests.conftest import write_interactions

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
    assert trained.provenance["config"] == json.loads(json.dumps(settings_of(CONFIG)))


def test_training_twice_gives_the_same_version(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    again = train_bundle(dataset, tmp_path / "bundle", CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert again.version == trained.version
    assert not (tmp_path / "run").exists()


TRAIN = """
import sys; from pathlib import Path; import torch
from models.data.dataset import load_dataset
from models.training.pipeline import train_bundle
from models.training.loop import Silent
from tests.models.training.test_pipeline import CONFIG

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
    root = Path(__file__).parents[3]
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


class StopError(Exception):
    """Ends a run early, as a kill would."""


class StopAtTwo(Silent):
    def on_epoch(self, report: EpochReport) -> None:
        if report.epoch == 2:
            raise StopError


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(CONFIG, base=dataclasses.replace(SHORT, seed=1)),
        dataclasses.replace(CONFIG, base=dataclasses.replace(SHORT, precision="bfloat16")),
        dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, dropout=0.4)),
        dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, num_heads=4)),
        dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, width=32)),
        dataclasses.replace(CONFIG, sampled_softmax=12),
    ],
    ids=["seed", "precision", "dropout", "heads", "width", "sampled softmax"],
)
def test_a_run_of_another_configuration_is_refused(dataset: Dataset, tmp_path: Path, other: PipelineConfig) -> None:
    """Not only what changes shapes: a bundle must not be half-trained under one option and half under another."""
    arguments = {"device": CPU, "run_directory": tmp_path / "run"}
    with pytest.raises(StopError):
        train_bundle(dataset, tmp_path / "bundle", CONFIG, progress=StopAtTwo(), **arguments)
    with pytest.raises(ResumeMismatchError, match=r"base\.safetensors belongs to another run"):
        train_bundle(dataset, tmp_path / "bundle", other, **arguments)


@dataclasses.dataclass
class StopAt(Silent):
    stage: str
    epoch: int

    def on_epoch(self, report: EpochReport) -> None:
        if (report.stage, report.epoch) == (self.stage, self.epoch):
            raise StopError


def test_a_sampled_softmax_learns_and_resumes_to_the_same_bundle(dataset: Dataset, tmp_path: Path) -> None:
    """30 of 60 items per step for the base, 12 of 20 for an expert, stopped in both."""
    short = dataclasses.replace(SHORT, max_epochs=6)
    for draws, stage in ((30, "base"), (12, "expert food")):
        config = dataclasses.replace(CONFIG, base=short, expert=short, sampled_softmax=draws)
        folder = tmp_path / stage
        whole = train_bundle(dataset, folder / "whole", config, device=CPU, run_directory=folder / "run")
        with pytest.raises(StopError):
            train_bundle(
                dataset, folder / "b", config, device=CPU, run_directory=folder / "run", progress=StopAt(stage, 3)
            )
        resumed = train_bundle(dataset, folder / "b", config, device=CPU, run_directory=folder / "run")

        assert resumed.version == whole.version
        assert whole.provenance["base"]["best_validation_ndcg_at_10"] > 0.2


def test_a_run_folder_loses_its_resume_files_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("keep me")
    with pytest.raises(StopError):
        train_bundle(dataset, tmp_path / "b", CONFIG, device=CPU, run_directory=run, progress=StopAtTwo())
    assert sorted(path.name for path in run.iterdir()) == ["base.safetensors", "notes.txt"]
    forget_run(run)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    (run / "notes.txt").unlink()
    forget_run(run)
    assert not run.exists()


def test_a_dataset_without_anything_to_predict_is_an_error(tmp_path: Path) -> None:
    """Three interactions leave one to train on: no bundle of random weights comes of it."""
    rows = [f"u{user},i{item},food,{item}" for user in range(9) for item in range(3)]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,domain,timestamp", *rows]) + "\n")
    prepare(tmp_path / "rows.csv", tmp_path / "dataset", PreparationConfig())
    with pytest.raises(TrainingError, match="base: nothing to train on"):
        train_bundle(
            load_dataset(tmp_path / "dataset"),
            tmp_path / "bundle",
            CONFIG,
            device=CPU,
            run_directory=tmp_path / "run",
        )


def test_a_destination_of_other_files_is_refused_before_any_training(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        train_bundle(dataset, tmp_path, CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def edited(dataset: Dataset, folder: Path, name: str, change: Callable[[int], int]) -> Dataset:
    """The dataset with one file of held-out items changed, its manifest made to match, its fingerprint kept."""
    shutil.copytree(dataset.directory, folder)
    table = pl.read_parquet(folder / name)
    changed = pl.Series([change(token) for token in table["token_id"].to_list()], dtype=table.schema["token_id"])
    assert changed.to_list() != table["token_id"].to_list()
    table.with_columns(token_id=changed).write_parquet(folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {file: sha256_of(folder / file) for file in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return load_dataset(folder)


def composite_bytes(dataset: Dataset, bundle: Bundle, folder: Path) -> dict[str, bytes]:
    """Every file that regeneration writes for every target and two rules, but for the summaries, which hold times."""
    rules: tuple[Rule, ...] = ("paper", DEFAULT_RULE)
    for target, rule in product(dataset.vocabulary.domains, rules):
        write_composite(dataset, bundle, target=target, rule=rule, out=folder / rule / target)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SUMMARY
    }


def test_poisoned_test_items_change_nothing(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    """No stage reads s[n-1]: weights, composite and mapping are the same to the bit."""
    poisoned = edited(dataset, tmp_path / "poisoned", "test.parquet", lambda token: token % 60 + 1)
    bundle = train_bundle(poisoned, tmp_path / "bundle", CONFIG, device=CPU, run_directory=tmp_path / "run")
    assert bundle.version == trained.version
    clean, dirty = (
        composite_bytes(dataset, trained, tmp_path / "clean"),
        composite_bytes(poisoned, bundle, tmp_path / "b"),
    )
    assert len(clean) == 2 * 3 * 6
    assert clean == dirty


def test_validation_items_choose_an_epoch_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    """
    Without validation items there is no choice, and the last epoch is kept. With items poisoned so that ever later
    epochs rank them better or not, every epoch's loss is still the same: no gradient has seen them.
    """
    losses, versions = [], []
    absent = edited(dataset, tmp_path / "absent", "validation.parquet", lambda token: 0)
    poisoned = edited(dataset, tmp_path / "poisoned", "validation.parquet", lambda token: token % 60 + 1)
    patient = dataclasses.replace(SHORT, max_epochs=4, patience=99)
    config = dataclasses.replace(CONFIG, base=patient, expert=dataclasses.replace(patient, max_epochs=0))
    for index, data in enumerate((dataset, absent, poisoned)):
        bundle = train_bundle(data, tmp_path / f"b{index}", config, device=CPU, run_directory=tmp_path / f"run{index}")
        losses.append([epoch["loss"] for epoch in bundle.provenance["base"]["epochs"]])
        versions.append(bundle)
    assert losses[0] == losses[1] == losses[2]
    assert versions[1].provenance["base"]["best_epoch"] == 4

    one = dataclasses.replace(SHORT, max_epochs=1)
    adapting = dataclasses.replace(CONFIG, base=dataclasses.replace(SHORT, max_epochs=0), expert=one)
    expert_losses = []
    for index, data in enumerate((dataset, absent, poisoned)):
        bundle = train_bundle(
            data, tmp_path / f"e{index}", adapting, device=CPU, run_directory=tmp_path / f"erun{index}"
        )
        expert_losses.append(
            {name: expert["epochs"][1]["loss"] for name, expert in bundle.provenance["experts"].items()}
        )
    assert expert_losses[0] == expert_losses[1] == expert_losses[2]


def test_regeneration_works_where_held_out_files_are_gone(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    """By construction: the composite needs train.parquet and the vocabulary only."""
    shutil.copytree(dataset.directory, tmp_path / "dataset")
    opened = load_dataset(tmp_path / "dataset")
    for name in ("validation.parquet", "test.parquet"):
        (tmp_path / "dataset" / name).unlink()
    assert composite_bytes(opened, trained, tmp_path / "gone") == composite_bytes(dataset, trained, tmp_path / "there")


def test_a_bundle_of_another_split_of_the_same_items_is_refused(trained: Bundle, tmp_path: Path) -> None:
    """It may have been trained on what this split holds out."""
    source = write_interactions(tmp_path / "interactions.csv")
    prepare(source, tmp_path / "other", PreparationConfig(max_length=15))
    other = load_dataset(tmp_path / "other")
    assert set(other.vocabulary.domains) == set(trained.vocabulary.domains)
    with pytest.raises(BundleMismatchError, match="another split"):
        write_composite(other, trained, target="food", rule="paper", out=tmp_path / "out")


def test_a_domain_may_be_called_anything(trained: Bundle, dataset: Dataset, tmp_path: Path) -> None:
    names = ("books", "Food/Drink", "..")
    vocabulary = Vocabulary(names, dataset.vocabulary.item_ids)
    renamed = dataclasses.replace(trained, vocabulary=vocabulary)
    for name, file in (("Food/Drink", "Food%2FDrink.inter"), ("..", "%2E%2E.inter")):
        out = tmp_path / file
        write_composite(
            dataclasses.replace(dataset, vocabulary=vocabulary), renamed, target=name, rule="paper", out=out
        )
        assert (out / file).is_file()


@pytest.mark.parametrize("target", ["books", "food", "kitchen"])
def test_the_composite_is_original_and_regenerated_rows_and_counts_add_up(
    trained: Bundle, dataset: Dataset, tmp_path: Path, target: str
) -> None:
    seen = []
    progress = CompositeProgress(on_users=lambda done, total: seen.append((done, total)))
    summary = write_composite(dataset, trained, target=target, rule="paper", out=tmp_path / "out", progress=progress)
    composite = pl.read_parquet(tmp_path / "out" / COMPOSITE)
    counts = pl.read_parquet(tmp_path / "out" / COUNTED)
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
    (tmp_path / "out" / "notes.txt").write_text("keep me")
    with pytest.raises(OutputExistsError, match=r"is not a composite dataset \(it holds 'notes.txt'\)"):
        write_composite(dataset, trained, out=tmp_path / "out", **options)
    assert (tmp_path / "out" / "notes.txt").read_text() == "keep me"

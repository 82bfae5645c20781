"""`taesar evaluate` as a user types it: a report, cells kept, and refusals that name the option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from app.cli.evaluate import ARMS, HISTORIES, evaluate
from app.cli.tune import tune
from models.bundle import save_bundle
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.errors import ConfigurationError, EmptyDatasetError
from models.evaluation.arms import ARM_NAMES
from models.evaluation.study import HISTORY_NAMES
from models.network.decoder import Decoder, DecoderConfig

CONFIG = "[training]\nmax_epochs = 1\nbatch_size = 16\n[recommender]\nwidth = 16\ninner_width = 16\n"

command = typer.Typer()
command.command()(evaluate)
search = typer.Typer()
search.command()(tune)


def run(dataset: Dataset, out: Path, *options: str):
    arguments = [str(dataset.directory), "--target", "food", "--out", str(out), "--device", "cpu", *options]
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def bundle_folder(dataset: Dataset, tmp_path: Path) -> Path:
    """Random decoders over the dataset's items."""
    config = DecoderConfig(num_items=dataset.vocabulary.num_items, width=16, inner_width=16, init_std=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [Decoder(config).eval() for _ in range(1 + len(dataset.vocabulary.domains))]
    save_bundle(
        tmp_path / "bundle",
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint},
    )
    return tmp_path / "bundle"


def test_a_bundle_becomes_a_report_and_a_second_run_reads_its_cells_back(dataset, bundle_folder, tmp_path):
    """Regenerates, trains, ranks, writes three files; the repetition computes nothing."""
    (tmp_path / "config.toml").write_text(CONFIG)
    options = ("--bundle", str(bundle_folder), "--config", str(tmp_path / "config.toml"), "--seeds", "2")
    first = run(dataset, tmp_path / "report", *options, "--recommender", "sasrec,markov")
    second = run(dataset, tmp_path / "report", *options, "--recommender", "sasrec,markov")

    assert first.exit_code == 0, first.output
    assert "cell 1/9: sasrec, original, seed 2025: done" in first.output
    assert second.output.count("read back") == 9
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["provenance"]["cells_reused"] == 9
    assert report["provenance"]["composite"]["rule"] == "anticipate"
    assert report["projections"]
    trained = {score["arm"] for score in report["results"]["scores"] if score["recommender"] == "sasrec"}
    assert trained == {"original", "duplicated", "regenerated", "with expert"}
    decoders = {score["arm"] for score in report["results"]["scores"] if score["recommender"] == "target expert"}
    assert decoders == {"mixed"}


def test_a_row_that_was_best_at_its_last_epoch_is_named_with_what_to_type(dataset, tmp_path):
    """And what is said is true: with as many epochs it is trained on, and is no longer cut short or said to be."""
    (tmp_path / "config.toml").write_text(CONFIG)
    options = ("--config", str(tmp_path / "config.toml"), "--arms", "original", "--recommender", "sasrec")
    first = run(dataset, tmp_path / "report", *options, "--seeds", "1", "--epochs", "1")
    second = run(dataset, tmp_path / "report", *options, "--seeds", "1", "--epochs", "2")
    cells = [json.loads(path.read_text()) for path in (tmp_path / "report" / "cells").glob("*.json")]

    assert "at epoch 1, the last: not converged; the same command with --epochs 2 goes on from there" in first.output
    assert second.exit_code == 0, second.output
    assert sorted(cell["epochs"] for cell in cells) == [1, 2]


def test_what_tune_finds_is_what_evaluate_then_trains_no_second_time(dataset, tmp_path):
    """Five trainings at most, each said with its validation NDCG@10; the file holds the best."""
    (tmp_path / "config.toml").write_text(CONFIG)
    cells = ("--cells", str(tmp_path / "cells"))
    options = ("--config", str(tmp_path / "config.toml"), "--out", str(tmp_path / "tuned.toml"), *cells)
    found = CliRunner().invoke(search, [str(dataset.directory), "--target", "food", *options])
    trained = set((tmp_path / "cells").glob("*.weights.safetensors"))
    options = ("--config", str(tmp_path / "tuned.toml"), "--arms", "original", "--recommender", "sasrec", *cells)
    done = run(dataset, tmp_path / "report", *options, "--seeds", "1")

    assert (found.exit_code, done.exit_code) == (0, 0), found.output + done.output
    assert 3 < found.output.count("validation NDCG@10") == len(trained) <= 5
    assert trained == set((tmp_path / "cells").glob("*.weights.safetensors"))


def test_arms_without_regeneration_need_neither_bundle_nor_composite(dataset, tmp_path):
    """original and mixed alone."""
    (tmp_path / "config.toml").write_text(CONFIG)
    done = run(
        dataset, tmp_path / "report", "--arms", "mixed", "--seeds", "1", "--config", str(tmp_path / "config.toml"),
        "--recommender", "sasrec",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    assert (tmp_path / "report" / "report.html").is_file()


def test_multi_domain_recommenders_run_on_mixed_rows_beside_the_others_on_every_arm(dataset, tmp_path):
    """One cell each, next to two of SASRec, all over the same test users."""
    (tmp_path / "config.toml").write_text(CONFIG + "[recommender.syncrec]\nnum_experts = 2\n")
    done = run(
        dataset, tmp_path / "report", "--arms", "original,mixed", "--seeds", "1",
        "--config", str(tmp_path / "config.toml"), "--recommender", "sasrec,abxi,cgrec,syncrec",
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "report" / "report.json").read_text())["results"]
    assert [(run["recommender"], run["arm"]) for run in results["runs"]] == [
        ("sasrec", "original"), ("sasrec", "mixed"), ("abxi", "mixed"), ("cgrec", "mixed"), ("syncrec", "mixed"),
    ]  # fmt: skip
    assert len({score["users"] for score in results["scores"] if score["group"] == "1 or more"}) == 1
    assert len({run["steps_per_epoch"] for run in results["runs"]}) == 1


def test_a_multi_domain_recommender_without_mixed_rows_is_refused(dataset, tmp_path):
    """The error names it and the arm it needs."""
    done = run(dataset, tmp_path / "report", "--arms", "original", "--recommender", "sasrec,abxi")

    assert isinstance(done.exception, ConfigurationError)
    assert "abxi can only train on mixed rows: add arm mixed" in str(done.exception)
    assert not (tmp_path / "report").exists()


def test_arms_with_regeneration_and_nothing_to_regenerate_from_are_refused(dataset, tmp_path):
    """The error says what is missing, before anything is trained."""
    done = run(dataset, tmp_path / "report")

    assert isinstance(done.exception, ConfigurationError)
    assert "composite" in str(done.exception)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--recommender", "sasrec,bert"), ("--arms", "orginal"), ("--recommender", ","), ("--seeds", "0")],
)
def test_an_unknown_name_is_refused_with_the_names_there_are(option, value, dataset, tmp_path):
    """Exit code 2 and the option in the message."""
    done = run(dataset, tmp_path / "report", option, value)

    assert done.exit_code == 2
    assert option in done.output


@pytest.mark.parametrize("recommender", ["popularity", "sasrec"])
def test_a_target_of_which_nobodys_last_item_is_has_nothing_to_rank_and_is_said_to(tmp_path, recommender):
    """A table of means of nothing looked like a report."""
    items = [
        f"u{user},{item}{(user + turn) % 5},{item},{turn}" for user in range(9) for turn in range(4) for item in "ab"
    ]
    (tmp_path / "log.csv").write_text("user,item,domain,timestamp\n" + "\n".join(items))
    prepare(tmp_path / "log.csv", tmp_path / "dataset", PreparationConfig(ties="input"))
    options = ("--target", "a", "--arms", "original", "--recommender", recommender)
    done = run(load_dataset(tmp_path / "dataset"), tmp_path / "report", *options)

    assert isinstance(done.exception, EmptyDatasetError)
    assert str(done.exception).startswith("nobody's held-out item is of a: there is nothing to rank")
    assert not (tmp_path / "report" / "report.html").exists()


def test_the_command_offers_what_the_models_have():
    """Names are written twice so that --help loads no torch; this keeps them equal."""
    assert ARMS == ARM_NAMES
    assert HISTORIES == HISTORY_NAMES

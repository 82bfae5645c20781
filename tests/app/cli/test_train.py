"""`taesar train` as a user types it: what a bundle says of its training, and a kill that costs nothing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import torch

from models.bundle import load_bundle
from models.data.dataset import Dataset
from models.evaluation.budgets import EvaluationConfig
from models.recommenders.recommender import SharedConfig
from models.training.loop import TrainingConfig
from models.training.pipeline import PipelineConfig
from tests.command_line import COMMAND, NO_EPOCHS, NO_TRAINING, TINY

BRIEF_TRIAL = EvaluationConfig(
    training=TrainingConfig(learning_rate=0.01, batch_size=16, max_epochs=1),
    shared=SharedConfig(width=8, inner_width=8, num_layers=1, num_heads=1),
)
RATE = PipelineConfig().base.learning_rate


@pytest.mark.parametrize(
    ("options", "base", "expert"),
    [
        (NO_EPOCHS, {"learning_rate": RATE, "schedule": "plateau"}, {"learning_rate": RATE / 2, "schedule": "plateau"}),
        ((*NO_EPOCHS, "--learning-rate", "0.01"), {"learning_rate": 0.01}, {"learning_rate": 0.005}),
        ((*NO_EPOCHS, "--expert-learning-rate", "0.01"), {"learning_rate": RATE}, {"learning_rate": 0.01}),
        (("--patience", "1", "--expert-epochs", "0"), {"max_epochs": 375}, {"max_epochs": 0}),
        (
            ("--epochs", "1", "--experts", "from-scratch"),
            {"max_epochs": 1, "learning_rate": RATE},
            {"max_epochs": 1, "learning_rate": RATE},
        ),
        (
            ("--recipe", "released", *NO_EPOCHS),
            {"learning_rate": 3e-4, "schedule": "constant"},
            {"learning_rate": 3e-4, "schedule": "constant"},
        ),
    ],
)
def test_a_bundle_says_how_base_and_experts_were_trained(run, tmp_path, dataset, options, base, expert) -> None:
    """Experts learn at half the base's rate, those from scratch as the base; few sequences make many epochs."""
    code, _, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, *options)
    config = load_bundle(tmp_path / "bundle").provenance["config"]

    assert (code, err) == (0, "")
    assert base.items() <= config["base"].items()
    assert expert.items() <= config["expert"].items()


def test_training_tries_regeneration_for_every_target_and_says_what_it_found(
    run, tmp_path, dataset, monkeypatch
) -> None:
    """The finding stands in the bundle, too; an expert behind the original recommender is named; no state is left."""
    monkeypatch.setattr("models.evaluation.configuration.tuned_config", lambda: BRIEF_TRIAL)
    options = (*TINY, "--epochs", "1", "--expert-epochs", "1")
    code, out, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *options, "--trial")
    bundle = load_bundle(tmp_path / "bundle")
    trials = bundle.provenance["trials"]

    assert (code, err) == (0, "")
    assert list(trials) == list(dataset.vocabulary.domains)
    for domain in dataset.vocabulary.domains:
        guard = bundle.tuning(domain).guard
        assert guard is not None
        assert guard.finding in out
        behind = trials[domain]["expert_ndcg_at_10"] < trials[domain]["ways"][0]["ndcg_at_10"]
        assert (f"The expert of {domain} is behind" in out) == behind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_without_a_trial_nothing_is_guarded(run, tmp_path, dataset) -> None:
    run("train", dataset.directory, "--out", tmp_path / "bundle", *NO_TRAINING)

    assert {tuning.guard for tuning in load_bundle(tmp_path / "bundle").tunings} == {None}


def test_a_stage_that_was_best_at_its_last_epoch_is_named(run, tmp_path, dataset) -> None:
    """The base after its first and only epoch; not where it was best before it."""
    options = ("--epochs", "1", "--expert-epochs", "1")
    _, out, _ = run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, *options)
    provenance = load_bundle(tmp_path / "bundle").provenance
    best = {"the base": provenance["base"]["best_epoch"]}
    best |= {f"expert {domain}": summary["best_epoch"] for domain, summary in provenance["experts"].items()}

    assert set(best.values()) == {0, 1}
    for stage, epoch in best.items():
        assert (f"{stage} was best at the last epoch" in out) == (epoch == 1)


def test_a_width_that_the_heads_do_not_divide_is_refused_before_anything_is_read(run, tmp_path) -> None:
    code, _, err = run("train", tmp_path / "nothing", "--out", tmp_path / "bundle", "--width", "7")

    assert code == 2
    assert "--width 7 is not a multiple of --heads 2" in err


@pytest.mark.parametrize(
    ("experts", "epochs", "all_stayed"), [("adapted", "0", True), ("adapted", "4", False), ("from-scratch", "0", False)]
)
def test_experts_that_stayed_the_base_are_named(run, tmp_path, dataset: Dataset, experts, epochs, all_stayed) -> None:
    """By the weights: rules that contrast an expert with the base find no difference there."""
    code, out, _ = run(
        "train", dataset.directory, "--out", tmp_path / "bundle", *TINY, "--experts", experts,
        "--epochs", "0", "--expert-epochs", epochs, "--expert-learning-rate", "0.05",
    )  # fmt: skip
    bundle = load_bundle(tmp_path / "bundle")
    stayed = {
        domain
        for domain in dataset.vocabulary.domains
        if torch.equal(bundle.expert(domain).item_embeddings_VD, bundle.base.item_embeddings_VD)
    }

    assert code == 0
    assert stayed == (set(dataset.vocabulary.domains) if all_stayed else set())
    assert {domain for domain in dataset.vocabulary.domains if f"expert {domain} is the base itself" in out} == stayed


def test_what_each_expert_reads_is_said(run, tmp_path, monkeypatch, dataset: Dataset) -> None:
    """Where the small dataset's rows are enough to judge by; `--no-joint` has nothing to say."""
    monkeypatch.setattr("models.training.joint.LEAST_ROWS", 1)
    options = (*TINY, "--epochs", "1", "--expert-epochs", "0")
    _, out, _ = run("train", dataset.directory, "--out", tmp_path / "bundle", *options)
    _, without, _ = run("train", dataset.directory, "--out", tmp_path / "without", *options, "--no-joint")
    bundle = load_bundle(tmp_path / "bundle")
    tried = bundle.provenance["joint"]["tried"]

    for domain, found in tried.items():
        reads = "both decoders" if bundle.tuning(domain).joint else "the adapted decoder alone"
        assert f"expert {domain} reads {reads}: validation NDCG@10 {found['both']:.4f} together" in out
    assert len(tried) == 3
    assert "joint" not in without
    assert "joint" not in load_bundle(tmp_path / "without").provenance


@pytest.mark.parametrize(("experts", "epochs", "patience"), [("from-scratch", 375, 2), ("single-domain", 100, 2)])
def test_the_kind_of_experts_brings_its_schedule(
    run, tmp_path, monkeypatch, dataset, experts, epochs, patience
) -> None:
    """An ablation's schedule is its own where no option says otherwise; training itself is tested with the models."""
    asked = []

    class TrainedEnoughError(Exception):
        pass

    def train_bundle(dataset, out, config, **_):
        asked.append(config)
        raise TrainedEnoughError

    monkeypatch.setattr("models.training.pipeline.train_bundle", train_bundle)
    for given in ((), ("--expert-epochs", "7")):
        with pytest.raises(TrainedEnoughError):
            run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, "--experts", experts, *given)

    assert [config.experts for config in asked] == [experts] * 2
    assert [(config.expert.max_epochs, config.expert.patience) for config in asked] == [
        (epochs, patience),
        (7, patience),
    ]
    assert asked[0].base.max_epochs == 375


def kill_after_first_epoch(dataset: Dataset, bundle: Path, options: tuple[str, ...]) -> None:
    """Start training in a process of its own and kill -9 it once the first epoch is on disk."""
    command = [*COMMAND, "train", str(dataset.directory), "--out", str(bundle), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        for line in training.stdout:
            if line.startswith("base, epoch 1/"):
                training.send_signal(signal.SIGKILL)
                break
        training.stdout.read()
    assert training.returncode == -signal.SIGKILL
    assert bundle.with_name(f"{bundle.name}.run").is_dir()
    assert not bundle.exists()


def test_training_goes_on_after_a_kill_and_ends_with_the_same_bundle(run, tmp_path, dataset: Dataset) -> None:
    options = (*TINY, "--epochs", "40", "--patience", "40", "--expert-epochs", "1")
    run("train", dataset.directory, "--out", tmp_path / "undisturbed", *options)
    kill_after_first_epoch(dataset, tmp_path / "bundle", options)
    code, out, _ = run("train", dataset.directory, "--out", tmp_path / "bundle", *options)

    assert code == 0
    assert "going on with the run in " in out
    assert load_bundle(tmp_path / "bundle").version == load_bundle(tmp_path / "undisturbed").version


def test_a_run_of_another_configuration_is_refused_and_fresh_starts_anew(run, tmp_path, dataset: Dataset) -> None:
    options = (*TINY, "--epochs", "40", "--patience", "40", "--expert-epochs", "1")
    kill_after_first_epoch(dataset, tmp_path / "bundle", options)
    other = (*TINY, "--epochs", "1", "--expert-epochs", "1")
    refused, _, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *other)
    code, out, _ = run("train", dataset.directory, "--out", tmp_path / "bundle", *other, "--fresh")

    assert refused == 2
    assert "belongs to another run" in err
    assert code == 0
    assert "going on" not in out
    assert load_bundle(tmp_path / "bundle").version


def test_a_bundle_is_replaced_only_when_asked(run, trained, dataset: Dataset) -> None:
    again = ("train", dataset.directory, "--out", trained, *NO_TRAINING)
    refused, _, err = run(*again)
    code, _, _ = run(*again, "--replace")

    assert refused == 2
    assert err == f"taesar: {trained}: holds a bundle already; --replace replaces it, or name another folder\n"
    assert code == 0


def test_a_bundle_says_what_it_is_called_and_of_what_time_it_is(run, dataset, tmp_path) -> None:
    run("train", dataset.directory, "--out", tmp_path / "named", *NO_TRAINING, "--name", "spring")
    run("train", dataset.directory, "--out", tmp_path / "unnamed", *NO_TRAINING)
    named, unnamed = load_bundle(tmp_path / "named"), load_bundle(tmp_path / "unnamed")

    assert (named.provenance["name"], unnamed.provenance["name"]) == ("spring", dataset.manifest["name"])
    assert named.provenance["period"] == dataset.manifest["period"]
    assert named.provenance["period"]["last"] == 1_170
    assert named.version == unnamed.version


def test_a_refit_learns_from_everything_and_says_so(run, dataset, tmp_path) -> None:
    """To the epoch that validation chose; evaluations refuse it, production takes it."""
    options = (*TINY, "--epochs", "8", "--learning-rate", "0.01", "--expert-epochs", "1")
    run("train", dataset.directory, "--out", tmp_path / "plain", *options)
    code, out, err = run("train", dataset.directory, "--out", tmp_path / "refit", *options, "--refit")
    plain, refit = load_bundle(tmp_path / "plain"), load_bundle(tmp_path / "refit")
    regenerate = ("regenerate", tmp_path / "refit", dataset.directory, "--target", "food", "--out", tmp_path / "food")
    refused, _, why = run(*regenerate)
    taken, _, _ = run(*regenerate, "--interactions", "all")

    assert (code, err) == (0, "")
    best = plain.provenance["base"]["best_epoch"]
    assert best > 0
    assert f"refit of base, epoch {best}/8: loss" in out
    assert f"refit of base, epoch {best + 1}/8" not in out
    assert (plain.provenance["refit"], refit.provenance["refit"]) == (False, True)
    assert refit.provenance["base"] == plain.provenance["base"]
    assert refit.version != plain.version
    assert refused == 2
    assert "trained on the held-out items, too (--refit)" in why
    assert taken == 0
    assert not (tmp_path / "refit.run").exists()

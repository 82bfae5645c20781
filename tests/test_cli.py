"""The command line: its defaults, its errors in one line, and training that survives a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import typer.main

from app.cli.taesar import cli, main
from app.settings import Settings
from models.bundle import load_bundle
from models.data.dataset import Dataset
from models.data.preparation import PreparationConfig
from models.evaluation.budgets import EvaluationConfig
from models.recommenders.recommender import SharedConfig
from models.training.loop import TrainingConfig
from models.training.pipeline import PipelineConfig

COMMAND = [sys.executable, "-c", "from app.cli.taesar import main; main()"]
TINY = ("--width", "16", "--heads", "2", "--layers", "1", "--batch-size", "8", "--device", "cpu", "--no-trial")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``taesar`` in this process: (exit code, standard output, standard error)."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taesar", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), err

    for name in [name for name in os.environ if name.startswith("TAESAR_")]:
        monkeypatch.delenv(name)
    return run_command


def options_of(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(cli)
    return {parameter.name: parameter for parameter in group.commands[command].params}


PREPARATION = PreparationConfig()
PIPELINE = PipelineConfig()
SETTINGS = Settings.model_construct()
DEFAULTS = [
    ("prepare", "min_user_interactions", PREPARATION.min_user_interactions),
    ("prepare", "min_item_interactions", PREPARATION.min_item_interactions),
    ("prepare", "user_threshold", PREPARATION.user_threshold),
    ("prepare", "overlap", PREPARATION.overlap),
    ("prepare", "max_length", PREPARATION.max_length),
    ("prepare", "ties", PREPARATION.ties),
    ("prepare", "numbering", PREPARATION.numbering),
    ("prepare", "seed", PREPARATION.seed),
    ("prepare", "max_bad_row_share", PREPARATION.max_bad_row_share),
    ("train", "seed", PIPELINE.base.seed),
    ("train", "seed", PIPELINE.expert.seed),
    ("train", "learning_rate", PIPELINE.base.learning_rate),
    ("train", "batch_size", PIPELINE.base.batch_size),
    ("train", "batch_size", PIPELINE.expert.batch_size),
    ("train", "schedule", PIPELINE.base.schedule),
    ("train", "schedule", PIPELINE.expert.schedule),
    ("train", "epochs", PIPELINE.base.max_epochs),
    ("train", "patience", PIPELINE.base.patience),
    ("train", "own_rows", PIPELINE.own_rows),
    ("train", "expert_epochs", PIPELINE.expert.max_epochs),
    ("train", "expert_patience", PIPELINE.expert.patience),
    ("train", "width", PIPELINE.network.width),
    ("train", "width", PIPELINE.network.inner_width),
    ("train", "layers", PIPELINE.network.num_layers),
    ("train", "heads", PIPELINE.network.num_heads),
    ("train", "dropout", PIPELINE.network.dropout),
    ("serve", "host", SETTINGS.host),
    ("serve", "port", SETTINGS.port),
    ("serve", "rule", SETTINGS.rule),
    ("serve", "device", SETTINGS.device),
]


@pytest.mark.parametrize(("command", "option", "default"), DEFAULTS)
def test_the_default_that_help_shows_is_the_one_in_the_config(command, option, default) -> None:
    """An option left out takes its config's default, so what --help prints is only a copy; this keeps it true."""
    shown = options_of(command)[option]

    assert shown.default is None
    assert shown.show_default == str(default)


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli).commands))
def test_every_option_says_what_it_does(command) -> None:
    silent = [name for name, option in options_of(command).items() if not option.help]

    assert silent == []


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli).commands))
def test_every_command_has_help(run, command) -> None:
    code, out, _ = run(command, "--help")

    assert code == 0
    assert f"taesar {command}" in out


def test_version_is_the_packages(run) -> None:
    import importlib.metadata

    assert run("version") == (0, importlib.metadata.version("taesar"), "")


def test_settings_lists_every_setting_with_its_default(run) -> None:
    code, out, _ = run("settings")

    assert code == 0
    assert f"TAESAR_PORT={SETTINGS.port}" in out
    assert all(f"TAESAR_{name.upper()}=" in out for name in Settings.model_fields)


def test_an_unknown_dataset_is_one_line_and_exit_code_2(run, tmp_path) -> None:
    code, out, err = run("train", tmp_path / "nothing", "--out", tmp_path / "bundle")

    assert (code, out) == (2, f"reading {tmp_path}/nothing")
    assert err == (f"taesar: {tmp_path}/nothing/dataset.json: not found; not a folder that `taesar prepare` wrote\n")


def test_thresholds_that_empty_the_input_are_named_in_one_line(run, tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("user,item,domain,timestamp\nu,i,food,1\nu,j,kitchen,2\n")
    code, _, err = run("prepare", tmp_path / "rows.csv", "--out", tmp_path / "dataset")

    assert code == 2
    assert "at least 3 interactions per item" in err
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_one_line(run, tmp_path, dataset) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run("train", dataset.directory, "--out", tmp_path / "file" / "bundle", *TINY, "--epochs", "0")

    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_setting_out_of_range_is_one_line_with_its_name(run, monkeypatch) -> None:
    monkeypatch.setenv("TAESAR_LOG_LEVEL", "loud")
    code, _, err = run("serve")

    assert code == 2
    assert err.startswith("taesar: TAESAR_LOG_LEVEL: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", ["inf", "nan"])
@pytest.mark.parametrize("command", [("serve",), ("worker",), ("migrate",), ("prune",), ("probe", "worker")])
def test_a_setting_that_is_no_finite_number_is_one_line_with_its_name(run, monkeypatch, command, number) -> None:
    monkeypatch.setenv("TAESAR_REQUEUE_SECONDS", number)
    code, _, err = run(*command)

    assert code == 2
    assert err.startswith("taesar: TAESAR_REQUEUE_SECONDS: ")
    assert "finite" in err
    assert len(err.splitlines()) == 1


def test_results_are_not_kept_for_infinitely_many_days(run) -> None:
    code, _, err = run("prune", "--retention-days", "inf")

    assert code == 2
    assert err.startswith("taesar: TAESAR_RETENTION_DAYS: ")
    assert "finite" in err


def test_results_may_be_kept_for_longer_than_there_are_dates(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TAESAR_DATA", str(tmp_path))
    run("migrate")
    code, out, err = run("prune", "--retention-days", "1e300")

    assert (code, err) == (0, "")
    assert "removed what 0 jobs left" in out


def test_a_revision_that_does_not_exist_is_one_line(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TAESAR_DATA", str(tmp_path))
    run("migrate")
    code, _, err = run("migrate", "--down-to", "nosuch")

    assert code == 2
    assert "nosuch" in err
    assert len(err.splitlines()) == 1


BRIEF_TRIAL = EvaluationConfig(
    training=TrainingConfig(learning_rate=0.01, batch_size=16, max_epochs=1),
    shared=SharedConfig(width=8, inner_width=8, num_layers=1, num_heads=1),
)
RATE, EPOCHS = PIPELINE.base.learning_rate, ("--epochs", "0", "--expert-epochs", "0")


@pytest.mark.parametrize(
    ("options", "base", "expert"),
    [
        (EPOCHS, {"learning_rate": RATE, "schedule": "plateau"}, {"learning_rate": RATE / 2, "schedule": "plateau"}),
        ((*EPOCHS, "--learning-rate", "0.01"), {"learning_rate": 0.01}, {"learning_rate": 0.005}),
        ((*EPOCHS, "--expert-learning-rate", "0.01"), {"learning_rate": RATE}, {"learning_rate": 0.01}),
        (("--patience", "1", "--expert-epochs", "0"), {"max_epochs": 375}, {"max_epochs": 0}),
        (
            ("--epochs", "1", "--experts", "from-scratch"),
            {"max_epochs": 1, "learning_rate": RATE},
            {"max_epochs": 1, "learning_rate": RATE},
        ),
        (
            ("--recipe", "released", *EPOCHS),
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
    run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, *EPOCHS)

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


def test_first_appearance_has_no_numbering_seed(run, tmp_path) -> None:
    code, _, err = run(
        "prepare", tmp_path / "rows.csv", "--out", tmp_path / "dataset",
        "--numbering", "first-appearance", "--numbering-seed", "1",
    )  # fmt: skip

    assert code == 2
    assert "first appearance has none" in err


def test_prepare_reports_where_every_row_went(run, tmp_path) -> None:
    rows = [f"u,{domain}{n % 3},{domain},{n}" for n in range(9) for domain in ("food", "kitchen")]
    bad, duplicate = "u,food0,food,noon", rows[0]
    text = "\n".join(["user,item,domain,timestamp", *rows, bad, duplicate])
    (tmp_path / "rows.csv").write_text(text + "\n")
    code, out, _ = run("prepare", tmp_path / "rows.csv", "--out", tmp_path / "dataset", "--max-bad-row-share", "0.1")

    assert code == 0
    assert "20 rows read; left out: 1 bad, 1 duplicate" in out
    assert "line 20: " in out
    assert "together 1 6 18 18.00" in out


def test_options_reach_the_preparation(run, tmp_path) -> None:
    rows = [f"{n},u,food{n % 3},food" for n in range(9)]
    (tmp_path / "rows.csv").write_text("\n".join(["when,who,what,domain", *rows]) + "\n")
    columns = ("--timestamp-column", "when", "--user-column", "who", "--item-column", "what")
    code, out, _ = run(
        "prepare", tmp_path / "rows.csv", "--out", tmp_path / "dataset", *columns, "--max-length", "4",
        "--min-item-interactions", "1",
    )  # fmt: skip

    assert code == 0
    assert "5 beyond the maximum length" in out


def test_train_and_regenerate_write_what_they_say(run, tmp_path, dataset: Dataset) -> None:
    """The whole path on a small dataset; the counts of the summary are those of the files."""
    trained, out, _ = run(
        "train", dataset.directory, "--out", tmp_path / "bundle", *TINY, "--epochs", "2", "--expert-epochs", "1"
    )
    bundle = load_bundle(tmp_path / "bundle")

    assert trained == 0
    assert "base, epoch 2/2: loss" in out
    assert "expert kitchen, epoch 1/1: loss" in out
    assert f"bundle {bundle.version} written to" in out
    assert bundle.config.width == bundle.config.inner_width == 16
    assert not (tmp_path / "bundle.run").exists()

    regenerated, out, _ = run(
        "regenerate", tmp_path / "bundle", dataset.directory, "--target", "food", "--out", tmp_path / "food"
    )
    counts = pl.read_parquet(tmp_path / "food" / "counts.parquet").sum()

    assert regenerated == 0
    assert f"{counts['kept'][0]:,} interactions kept, {counts['replaced'][0]:,} replaced" in out
    assert (tmp_path / "food" / "food.inter").is_file()


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


def test_the_folder_to_write_may_be_the_one_that_one_is_in(run, tmp_path, monkeypatch, dataset: Dataset) -> None:
    """A folder called "." has no name to rename; twice, because the second time something is replaced."""
    rows = [f"u,{domain}{n % 3},{domain},{n}" for n in range(9) for domain in ("food", "kitchen")]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,domain,timestamp", *rows]) + "\n")
    commands = {
        "dataset": ("prepare", tmp_path / "rows.csv", "--overwrite"),
        "bundle": ("train", dataset.directory, *TINY, "--epochs", "0", "--expert-epochs", "0", "--replace"),
        "food": ("regenerate", tmp_path / "bundle", dataset.directory, "--target", "food"),
    }
    for name, command in commands.items():
        folder = tmp_path / name
        folder.mkdir()
        for _ in range(2):
            monkeypatch.chdir(folder)
            code, _, err = run(*command, "--out", ".")

            assert (code, err) == (0, "")
    assert load_bundle(tmp_path / "bundle").vocabulary == dataset.vocabulary
    assert (tmp_path / "food" / "food.inter").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "dataset", "food", "rows.csv"]


def test_an_unknown_target_names_the_domains_there_are(run, tmp_path, dataset: Dataset) -> None:
    run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, "--epochs", "0", "--expert-epochs", "0")
    code, _, err = run(
        "regenerate", tmp_path / "bundle", dataset.directory, "--target", "toys", "--out", tmp_path / "x"
    )

    assert code == 2
    assert err == "taesar: unknown domain 'toys'; known domains: books, food, kitchen\n"


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


NO_TRAINING = (*TINY, "--epochs", "0", "--expert-epochs", "0")


@pytest.fixture
def trained(run, tmp_path, dataset: Dataset) -> Path:
    """A bundle of random weights of the small dataset."""
    code, _, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *NO_TRAINING)
    assert (code, err) == (0, "")
    return tmp_path / "bundle"


def test_a_bundle_is_replaced_only_when_asked(run, trained, dataset: Dataset) -> None:
    again = ("train", dataset.directory, "--out", trained, *NO_TRAINING)
    refused, _, err = run(*again)
    code, _, _ = run(*again, "--replace")

    assert refused == 2
    assert err == f"taesar: {trained}: holds a bundle already; --replace replaces it, or name another folder\n"
    assert code == 0


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli).commands))
def test_every_command_knows_json_and_quiet(command) -> None:
    assert {"as_json", "quiet"} <= options_of(command).keys()


def test_json_is_one_object_on_the_output_and_lines_go_to_the_error_stream(run, trained, dataset, tmp_path) -> None:
    arguments = ("regenerate", trained, dataset.directory, "--target", "food", "--out", tmp_path / "food")
    code, out, err = run(*arguments, "--json")
    refused, out_refused, err_refused = run(*arguments[:3], "--target", "toys", "--out", tmp_path / "x", "--json")
    summary = json.loads((tmp_path / "food" / "summary.json").read_text())
    answer = json.loads(out)

    assert (code, answer["ok"], answer["command"]) == (0, True, "regenerate")
    assert {name: answer[name] for name in ("kept", "replaced", "deleted")} == {
        name: summary[name] for name in ("kept", "replaced", "deleted")
    }
    assert "interactions kept" in err
    assert refused == 2
    assert json.loads(out_refused) == {
        "command": "regenerate",
        "ok": False,
        "error": "unknown domain 'toys'; known domains: books, food, kitchen",
    }
    assert "taesar: unknown domain" in err_refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "No such command 'nonsense'."),
        (("regenerate",), "Missing argument 'bundle'."),
        (("serve", "--port", "a"), "Invalid value for '--port'"),
        (("prepare", "x", "--out", "y", "--no-such"), "No such option"),
    ],
)
def test_json_is_an_object_even_of_a_command_that_did_not_begin(run, arguments, says) -> None:
    code, out, err = run(*arguments, "--json")
    answer = json.loads(out)

    assert (code, answer["command"], answer["ok"]) == (2, arguments[0], False)
    assert answer["error"].startswith(says)
    assert says in err
    assert run(*arguments)[1] == ""


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell that starts the suite before & has it ignore Ctrl-C, and everything that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_is_one_line_and_no_success(run, dataset, tmp_path) -> None:
    def interrupt_training() -> None:
        while not any(tmp_path.iterdir()):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    for_ever = ("--epochs", 100_000, "--patience", 100_000)
    threading.Thread(target=interrupt_training, daemon=True).start()
    code, out, err = run("train", dataset.directory, "--out", tmp_path / "bundle", *TINY, *for_ever, "--json")

    assert code == 130
    assert err.splitlines()[-1] == "taesar: interrupted"
    assert json.loads(out) == {"command": "train", "ok": False, "error": "interrupted"}


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_word() -> None:
    slow_import = """
import sys, time
class Slow:
    @staticmethod
    def find_spec(name, *_):
        if name == "app.cli.taesar":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow)
from app.cli.launch import launch
launch()
"""
    with subprocess.Popen(
        [sys.executable, "-c", slow_import], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)

    assert (command.returncode, err) == (-signal.SIGINT, b"")


def test_interrupts_that_were_ignored_at_the_start_stay_ignored() -> None:
    """A shell without job control starts what stands before & so."""
    program = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import app.cli.taesar
from app.cli.launch import launch
app.cli.taesar.start = lambda: print(signal.getsignal(signal.SIGINT).name)
launch()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "SIG_IGN\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [(("--prefixes",), "--prefixes is of --export recbole"), (("--export", "xlsx"), "--export: xlsx is none of ")],
)
def test_exports_that_cannot_be_are_refused_before_anything_is_read(run, tmp_path, options, why) -> None:
    nowhere = (tmp_path / "nothing", tmp_path / "nothing")
    code, out, err = run("regenerate", *nowhere, "--target", "food", "--out", tmp_path / "x", *options)

    assert (code, out) == (2, "")
    assert why in " ".join(err.split())


def test_quiet_prints_nothing_but_errors(run, trained, dataset, tmp_path) -> None:
    arguments = ("regenerate", trained, dataset.directory, "--out", tmp_path / "food", "--quiet")

    assert run(*arguments, "--target", "food") == (0, "", "")
    assert run(*arguments, "--target", "toys")[:2] == (2, "")


def test_the_version_is_an_option_too(run) -> None:
    assert run("--version") == run("version")


def test_a_shell_gets_its_completion() -> None:
    asked = {"_TAESAR_COMPLETE": "complete_bash", "COMP_WORDS": "taesar reg", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("taesar")
    done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["regenerate"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "x"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "another language"],
)
def test_a_full_disk_is_one_line(run, trained, dataset, tmp_path, monkeypatch, error) -> None:
    def write(*_, **__):
        raise error

    monkeypatch.setattr("models.composite.assembly.write_parts", write)
    code, _, err = run("regenerate", trained, dataset.directory, "--target", "food", "--out", tmp_path / "food")

    assert code == 2
    assert err.endswith(": the disk is full\n")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "food").exists()


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

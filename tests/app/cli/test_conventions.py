"""What every command has: help, defaults that are the configs', --json, --quiet, and an end by Ctrl-C."""

from __future__ import annotations

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

import pytest
import typer.main

from app.cli.taesar import cli
from app.settings import Settings
from models.data.preparation import PreparationConfig
from models.training.pipeline import PipelineConfig
from tests.command_line import TINY


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


def test_the_version_is_an_option_too(run) -> None:
    assert run("--version") == run("version")


def test_settings_lists_every_setting_with_its_default(run) -> None:
    code, out, _ = run("settings")

    assert code == 0
    assert f"TAESAR_PORT={SETTINGS.port}" in out
    assert all(f"TAESAR_{name.upper()}=" in out for name in Settings.model_fields)


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


def test_quiet_prints_nothing_but_errors(run, trained, dataset, tmp_path) -> None:
    arguments = ("regenerate", trained, dataset.directory, "--out", tmp_path / "food", "--quiet")

    assert run(*arguments, "--target", "food") == (0, "", "")
    assert run(*arguments, "--target", "toys")[:2] == (2, "")


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


def test_a_shell_gets_its_completion() -> None:
    asked = {"_TAESAR_COMPLETE": "complete_bash", "COMP_WORDS": "taesar reg", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("taesar")
    done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["regenerate"]

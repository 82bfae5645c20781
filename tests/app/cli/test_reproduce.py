"""`taesar reproduce` as a user types it."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from app.cli.reproduce import RECOMMENDERS, reproduce
from models.reproduction.paper_rows import SINGLE_DOMAIN

command = typer.Typer()
command.command()(reproduce)
CONFIG = "[training]\nmax_epochs = 1\nbatch_size = 16\n[recommender]\nwidth = 16\ninner_width = 16\n"


def run(*arguments: str):
    return CliRunner().invoke(command, [*arguments, "--device", "cpu"])


def test_a_table_is_printed_where_it_lies_and_its_cost_is_said_first(dataset, tmp_path):
    """Table 1 trains nothing."""
    done = run(str(dataset.directory), "--out", str(tmp_path), "--table", "1")

    assert done.exit_code == 0, done.output
    assert "to train, unless it is there: 0 bundles, 0 recommenders" in done.output
    assert f"written: {tmp_path / 'table-1.md'}" in done.output


def test_the_rows_that_can_be_chosen_are_those_of_the_table():
    """The command names them itself, as it starts without loading the models."""
    assert tuple(SINGLE_DOMAIN) == RECOMMENDERS


def test_who_asks_for_nothing_or_for_what_there_is_not_is_told(dataset, tmp_path):
    """By the option's name."""
    nothing = run(str(dataset.directory), "--out", str(tmp_path))
    unknown = run(str(dataset.directory), "--out", str(tmp_path), "--table", "7")
    domain = run(str(dataset.directory), "--out", str(tmp_path), "--table", "1", "--targets", "garden")

    assert "--table" in nothing.output
    assert "7 is none of 1, 2, 3" in unknown.output
    assert "garden is none of" in domain.output
    assert {nothing.exit_code, unknown.exit_code, domain.exit_code} == {2}

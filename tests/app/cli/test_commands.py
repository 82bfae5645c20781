"""Commands that prepare and regenerate: what they write, and what goes wrong in one line."""

from __future__ import annotations

import errno
import os

import polars as pl
import pytest

from models.bundle import load_bundle
from models.data.dataset import Dataset
from tests.command_line import NO_TRAINING, TINY


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


def test_the_folder_to_write_may_be_the_one_that_one_is_in(run, tmp_path, monkeypatch, dataset: Dataset) -> None:
    """A folder called "." has no name to rename; twice, because the second time something is replaced."""
    rows = [f"u,{domain}{n % 3},{domain},{n}" for n in range(9) for domain in ("food", "kitchen")]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item,domain,timestamp", *rows]) + "\n")
    commands = {
        "dataset": ("prepare", tmp_path / "rows.csv", "--overwrite"),
        "bundle": ("train", dataset.directory, *NO_TRAINING, "--replace"),
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
    run("train", dataset.directory, "--out", tmp_path / "bundle", *NO_TRAINING)
    code, _, err = run(
        "regenerate", tmp_path / "bundle", dataset.directory, "--target", "toys", "--out", tmp_path / "x"
    )

    assert code == 2
    assert err == "taesar: unknown domain 'toys'; known domains: books, food, kitchen\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [(("--prefixes",), "--prefixes is of --export recbole"), (("--export", "xlsx"), "--export: xlsx is none of ")],
)
def test_exports_that_cannot_be_are_refused_before_anything_is_read(run, tmp_path, options, why) -> None:
    nowhere = (tmp_path / "nothing", tmp_path / "nothing")
    code, out, err = run("regenerate", *nowhere, "--target", "food", "--out", tmp_path / "x", *options)

    assert (code, out) == (2, "")
    assert why in " ".join(err.split())


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

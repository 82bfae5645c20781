"""A check from end to end at small size, with recommenders of ours and of others."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models.check.checking import CheckReport, CheckRequest, check
from models.check.plans import StepTimes, make_plan
from models.data.dataset import Dataset
from models.errors import OwnRecommenderError
from models.report.check_page import outcome_of, write_check

TARGET = "food"
# A recommender of five lines: the most frequent items, whatever the history.
POPULAR = """
import sys, polars as pl
train, test, out = sys.argv[1:]
best = pl.read_parquet(train)["item_ids"].explode().value_counts(sort=True)
items = pl.DataFrame({"item_id": best["item_ids"], "score": best["count"].cast(pl.Float64)})
pl.read_parquet(test).select("query").join(items, how="cross").write_parquet(out)
"""


def request(folder: Path, **options: Any) -> CheckRequest:
    values: dict[str, Any] = {"recommender": "markov", "minutes": 0.001, "seeds": 1} | options
    return CheckRequest(TARGET, folder=folder, device=torch.device("cpu"), anyway=True, **values)


def run(dataset: Dataset, asked: CheckRequest, told: list[str] | None = None) -> CheckReport:
    lines = told if told is not None else []
    return check(dataset, asked, tell=lines.append, stage=lambda _stage, _fraction: None)


@pytest.fixture(scope="module")
def checked(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckReport, Path]:
    """One check by a Markov chain, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("check")
    return run(dataset, request(folder)), folder


def test_a_check_ends_with_one_sentence_and_a_page_that_opens_with_it(checked) -> None:
    report, folder = checked
    write_check(report, folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    numbers = json.loads((folder / "check.json").read_text(encoding="utf-8"))

    assert report.sentence.endswith(".")
    assert page.count("<svg") == 1
    assert page.index("<h1>") < page.index("<svg") < page.index("<table>")
    assert numbers["outcome"] == outcome_of(report)
    assert numbers["sentence"] == report.sentence
    assert [audit["split"] for audit in numbers["audits"]] == ["validation", "test"]


def test_a_check_that_is_run_again_reads_everything_back(dataset, checked) -> None:
    report, folder = checked
    before = {path: path.stat().st_mtime_ns for path in (folder / "bundle").iterdir()}
    told: list[str] = []
    again = run(dataset, request(folder), told)

    assert again.ndcg_at_10 == report.ndcg_at_10
    assert {path: path.stat().st_mtime_ns for path in (folder / "bundle").iterdir()} == before
    assert "timing a few steps" not in told


def test_a_trained_recommender_is_compared_with_the_expert_beside_it(dataset, checked, tmp_path) -> None:
    _, folder = checked
    report = run(dataset, request(folder, recommender="sasrec"))

    assert list(report.ndcg_at_10) == [
        "original", "with expert", "duplicated", "regenerated", "served", "served with expert",
    ]  # fmt: skip
    assert report.verdict is not None
    assert report.verdict.advice is not None


def test_a_teams_own_recommender_is_run_on_each_kind_of_rows(dataset, checked, tmp_path) -> None:
    """Popularity of theirs and of ours give the same numbers to the last digit, by command and by file."""
    _, folder = checked
    script = tmp_path / "popular.py"
    script.write_text(POPULAR, encoding="utf-8")
    command = f"{sys.executable} {script} {{train}} {{test}} {{out}}"
    theirs = run(dataset, request(folder, recommender="popularity", command=command))
    ours = run(dataset, request(folder, recommender="popularity"))

    assert theirs.verdict is not None
    assert theirs.verdict.recommender == "your recommender"
    assert theirs.ndcg_at_10 == ours.ndcg_at_10
    tables = [
        pl.read_parquet(folder / "own" / f"scores-{rows}.parquet").with_columns(rows=pl.lit(rows))
        for rows in ("original", "duplicated", "regenerated")
    ]
    pl.concat(tables).write_parquet(tmp_path / "mine.parquet")
    by_file = run(dataset, request(folder, recommender="popularity", scores=tmp_path / "mine.parquet"))
    assert by_file.ndcg_at_10 == ours.ndcg_at_10


def test_a_recommender_that_fails_is_named(dataset, checked) -> None:
    _, folder = checked
    command = f"{sys.executable} -c 'raise SystemExit(3)' {{train}} {{test}} {{out}}"

    with pytest.raises(OwnRecommenderError, match="exit code 3"):
        run(dataset, request(folder, command=command))


def test_the_files_for_a_teams_recommender_hold_no_held_out_item(dataset, checked) -> None:
    """A history of a validation row ends before its item: as long as what the user had trained on."""
    _, folder = checked
    histories = pl.read_parquet(folder / "own" / "test.parquet")
    train = pl.read_parquet(folder / "own" / "train-original.parquet")
    own = dataset.vocabulary.token_range(TARGET)
    lengths = [int(own.mask(dataset.train[user]).sum()) for user in range(len(dataset.train))]

    assert sorted(train["item_ids"].list.len().to_list()) == sorted(length for length in lengths if length >= 2)
    # The second half are regenerated ones, which are longer
    assert histories["item_ids"].list.len()[: len(histories) // 2].max() <= max(lengths) + 1


def test_a_time_too_short_to_learn_in_gives_no_verdict_but_the_time_that_it_takes(dataset, tmp_path) -> None:
    """A verdict on networks that know little would be taken for one on regeneration."""
    asked = dataclasses.replace(request(tmp_path), anyway=False)
    report = run(dataset, asked)

    assert report.verdict is None
    assert report.sentence.startswith("Undecided: 0.001 minutes on this machine train too little")
    assert outcome_of(report) == "undecided"
    assert not (tmp_path / "bundle").exists()


def test_a_forced_verdict_after_too_short_a_time_says_so_first(checked) -> None:
    report, _ = checked

    assert report.sentence.startswith("Undecided: 0.001 minutes")
    assert outcome_of(report) == "undecided"


@pytest.mark.parametrize(("minutes", "schedule"), [(60, "plateau"), (4, "linear")])
def test_a_plan_keeps_to_its_minutes(minutes, schedule) -> None:
    """With little time the rate falls to 0 at the last epoch that can be paid."""
    plan = make_plan(StepTimes(0.05, 0.05, 0.02, steps=220, recommender_steps=200), minutes)

    assert plan.schedule == schedule
    assert plan.most_minutes <= minutes * 1.02

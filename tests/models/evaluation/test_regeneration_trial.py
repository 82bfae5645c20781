"""The trial that decides how much of regeneration is left on for a target."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from models.bundle import Bundle
from models.data.dataset import Dataset, load_dataset, sha256_of
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.regeneration_trial import RegenerationTrial, Way, try_regeneration
from models.recommenders.recommender import SharedConfig
from models.training.loop import EpochReport, Silent, TrainingConfig
from models.tuning import Guard, TargetTuning

SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=0.01, batch_size=16, max_epochs=2, schedule="plateau"),
    shared=SharedConfig(width=8, inner_width=8, num_layers=1, num_heads=1),
)
ORIGINAL = Way(0, 0, 0.04)


def trial(*ways: Way, expert: float = 0.05) -> RegenerationTrial:
    return RegenerationTrial("toys", 1234, expert, (ORIGINAL, *ways))


def with_expert(found: RegenerationTrial, *both: Way) -> RegenerationTrial:
    return dataclasses.replace(found, with_expert=both)


@pytest.mark.parametrize(
    ("ways", "hints"),
    [
        # A gain below two of its standard errors is none, however many ways have one.
        ([Way(3, 0, 0.041, 0.001, 0.0006), Way(3, 3, 0.0415, 0.0015, 0.0008)], (0, 0)),
        ([Way(3, 0, 0.041, 0.001, 0.0004), Way(3, 3, 0.042, 0.002, 0.00095)], (3, 0)),
        ([Way(1, 1, 0.05, 0.01, 0.002), Way(3, 3, 0.051, 0.011, 0.002)], (3, 3)),
        ([Way(0, 1, 0.05, 0.01, 0.002), Way(3, 3, 0.03, -0.01, 0.002)], (0, 1)),
        ([], (0, 0)),
    ],
)
def test_the_way_whose_gain_is_largest_beyond_two_standard_errors_is_taken(
    ways: list[Way], hints: tuple[int, int]
) -> None:
    found = trial(*ways).guard

    assert (found.training_hints, found.serving_hints) == hints


def test_the_finding_says_what_was_chosen_and_by_how_much() -> None:
    gained = trial(Way(3, 3, 0.05, 0.01, 0.002)).guard.finding
    nothing = trial(Way(3, 0, 0.038, -0.002, 0.001), Way(1, 0, 0.0402, 0.0002, 0.001)).guard.finding

    assert gained == (
        "Training rows with at most 3 hints a run and regenerated live histories were best (NDCG@10 of SASRec among "
        "unseen items, 1,234 validation users of toys: 0.0500 instead of 0.0400, +25.0 % ± 5.0)."
    )
    assert nothing == (
        "Nothing is replaced: no way to regenerate stood out from the original rows (NDCG@10 of SASRec among unseen "
        "items, 1,234 validation users of toys: 0.0400; the best other way 0.0402, +0.5 % ± 2.5)."
    )


def test_the_weight_is_that_of_the_chosen_way_where_the_expert_adds_something_for_sure() -> None:
    """What regeneration adds to recommender and expert stands beside it."""
    nothing = Way(3, 3, 0.0405, 0.0005, 0.001)
    gained = Way(3, 3, 0.05, 0.01, 0.002)
    plain, both = Way(0, 0, 0.045, 0.005, 0.001, 0.4), Way(3, 3, 0.055, 0.015, 0.002, 0.3)
    unsure = Way(3, 3, 0.0501, 0.0101, 0.0022, 0.1)
    # One standard error is asked of the expert, which is one choice and not the best of several.
    likely = Way(0, 0, 0.041, 0.001, 0.0008, 0.2)

    closed = with_expert(trial(nothing), plain, both).guard
    assert (closed.serving_hints, closed.expert_weight) == (0, 0.4)
    assert closed.finding.endswith(" With the expert's log-probabilities added at weight 0.4: 0.0450, +12.5 % ± 2.5.")
    opened = with_expert(trial(gained), plain, both).guard
    assert (opened.serving_hints, opened.expert_weight) == (3, 0.3)
    assert opened.finding.endswith(
        " With the expert's log-probabilities added at weight 0.3: 0.0550, +37.5 % ± 5.0; without regeneration 0.0450."
    )
    alone = with_expert(trial(gained), plain, unsure).guard
    assert (alone.serving_hints, alone.expert_weight) == (3, 0.0)
    assert "log-probabilities" not in alone.finding
    assert with_expert(trial(nothing), likely, both).guard.expert_weight == 0.2


@pytest.mark.parametrize(("expert", "behind"), [(0.039, True), (0.04, False), (0.05, False)])
def test_the_expert_is_behind_where_it_ranks_worse_than_the_original_recommender(
    expert: float, *, behind: bool
) -> None:
    assert trial(expert=expert).expert_is_behind == behind


def run(dataset: Dataset, bundle: Bundle, folder: Path, **options: object) -> RegenerationTrial:
    return try_regeneration(
        dataset, bundle, "food", device=torch.device("cpu"), run_directory=folder, config=SMALL, **options
    )


@pytest.fixture(scope="module")
def found(dataset: Dataset, matching_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> RegenerationTrial:
    return run(dataset, matching_bundle, tmp_path_factory.mktemp("run"))


def test_every_way_is_tried_on_the_users_with_a_target_item(found: RegenerationTrial, dataset: Dataset) -> None:
    food = dataset.vocabulary.token_range("food")
    users = [
        user
        for user, item in enumerate(dataset.validation)
        if int(item) in food and any(int(token) in food for token in dataset.train[user])
    ]
    assert found.num_rows == len(users) > 0
    assert [(way.training_hints, way.serving_hints) for way in found.ways] == [(0, 0), (0, 3), (3, 0), (3, 3)]
    assert all(way.gain == pytest.approx(way.ndcg_at_10 - found.original.ndcg_at_10) for way in found.ways)
    assert len({way.ndcg_at_10 for way in found.ways}) > 1
    for alone, both in zip(found.ways, found.with_expert, strict=True):
        assert (alone.training_hints, alone.serving_hints) == (both.training_hints, both.serving_hints)
        # The recommender alone is one of the weights.
        assert both.ndcg_at_10 >= alone.ndcg_at_10


def test_the_bundles_own_guard_does_not_decide_what_is_tried(
    found: RegenerationTrial, dataset: Dataset, matching_bundle: Bundle, tmp_path: Path
) -> None:
    closed = dataclasses.replace(matching_bundle, tunings=(TargetTuning(guard=Guard(0, 0, "closed")),) * 3)

    assert run(dataset, closed, tmp_path) == found


def test_an_interrupted_trial_goes_on_to_the_same_end(
    found: RegenerationTrial, dataset: Dataset, matching_bundle: Bundle, tmp_path: Path
) -> None:
    """Trainings that were finished are not repeated: their epochs are told again, without a step."""

    class KilledError(Exception):
        pass

    class Steps(Silent):
        def __init__(self, most: float) -> None:
            self.most, self.taken = most, 0

        def on_step(self, report: object) -> None:
            self.taken += 1
            if self.taken > self.most:
                raise KilledError

        def on_epoch(self, report: EpochReport) -> None:
            pass

    whole = Steps(float("inf"))
    run(dataset, matching_bundle, tmp_path / "whole", progress=whole)
    with pytest.raises(KilledError):
        run(dataset, matching_bundle, tmp_path / "killed", progress=Steps(whole.taken - 1))
    rest = Steps(float("inf"))

    assert run(dataset, matching_bundle, tmp_path / "killed", progress=rest) == found
    assert 0 < rest.taken < whole.taken / 3


def test_test_items_decide_nothing(
    found: RegenerationTrial, dataset: Dataset, matching_bundle: Bundle, tmp_path: Path
) -> None:
    """Every test item replaced by another: the trial finds the same to the last digit."""
    folder = tmp_path / "poisoned"
    shutil.copytree(dataset.directory, folder)
    table = pl.read_parquet(folder / "test.parquet")
    table.with_columns(pl.col("token_id").reverse()).write_parquet(folder / "test.parquet")
    manifest = (folder / "dataset.json").read_text()
    before, after = sha256_of(dataset.directory / "test.parquet"), sha256_of(folder / "test.parquet")
    (folder / "dataset.json").write_text(manifest.replace(before, after))

    assert before != after
    assert run(load_dataset(folder), matching_bundle, tmp_path / "run") == found

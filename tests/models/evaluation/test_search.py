"""The search around a recommender's hyper-parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.data.dataset import Dataset
from models.errors import ConfigurationError
from models.evaluation.arms import Arm, build_arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.configuration import load_config, write_config
from models.evaluation.search import Point, Search, SearchTrial, search
from models.evaluation.trained import Trainings
from models.recommenders.recommender import SharedConfig
from models.training.loop import Silent, TrainingConfig

SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=4e-3, batch_size=8, max_epochs=2),
    shared=SharedConfig(width=8, inner_width=8, num_layers=1, num_heads=1, dropout=0.5),
)


@pytest.fixture(scope="module")
def original(dataset: Dataset) -> Arm:
    return build_arm(dataset, "food", "original", None)


@pytest.fixture
def trainings(original: Arm, tmp_path: Path) -> Trainings:
    return Trainings(original, SMALL, tmp_path, torch.device("cpu"))


def test_each_step_starts_from_the_best_so_far_and_half_the_rate_is_tried_where_twice_is_no_better(
    trainings: Trainings,
) -> None:
    told: list[SearchTrial] = []
    found = search("sasrec", trainings, seed=1, on_trial=told.append)

    assert tuple(told) == found.trials
    best = found.trials[0]
    assert best.point == Point(4e-3, 8, 0.5)
    expected = [lambda at: dataclasses.replace(at, dropout=0.3)]
    expected += [lambda at: dataclasses.replace(at, learning_rate=2 * at.learning_rate)]
    expected += [lambda at: dataclasses.replace(at, learning_rate=at.learning_rate / 2)]
    expected += [lambda at: dataclasses.replace(at, batch_size=32, learning_rate=2 * at.learning_rate)]
    remaining = list(found.trials[1:])
    for number, step in enumerate(expected):
        if number == 2 and found.trials[2].ndcg_at_10 > max(one.ndcg_at_10 for one in found.trials[:2]):
            continue
        trial = remaining.pop(0)
        assert trial.point == step(best.point)
        best = max(best, trial, key=lambda one: one.ndcg_at_10)
    assert remaining == []
    assert found.best.ndcg_at_10 == best.ndcg_at_10


def test_a_search_given_again_trains_nothing(trainings: Trainings) -> None:
    class Steps(Silent):
        taken = 0

        def on_step(self, report: object) -> None:
            Steps.taken += 1

    first = search("sasrec", trainings, seed=1)

    assert search("sasrec", trainings, seed=1, progress=Steps()) == first
    assert Steps.taken == 0


def test_what_was_found_is_what_the_written_file_makes_of_the_one_it_started_from(tmp_path: Path) -> None:
    """What the file said beside it stays; a recommender without dropout gets none."""
    start, out = tmp_path / "start.toml", tmp_path / "out.toml"
    start.write_text('[training]\nprecision = "bfloat16"\n[training.sasrec]\npatience = 3\nbatch_size = 16\n')
    found = Search("sasrec", (SearchTrial(Point(2e-3, 128, 0.3), 0.1, 3, 5),))
    other = Search("gcegnn", (SearchTrial(Point(1e-3, 32, None), 0.1, 3, 5),))
    write_config(out, start, [found.as_tables(), other.as_tables()])
    config = load_config(out)

    own = config.training_of("sasrec")
    assert (own.learning_rate, own.batch_size, own.patience, own.precision) == (2e-3, 128, 3, "bfloat16")
    assert config.config_of("sasrec").dropout == 0.3
    assert config.config_of("gru4rec").dropout == 0.5
    assert (config.training_of("gcegnn").learning_rate, config.training_of("gcegnn").batch_size) == (1e-3, 32)


def test_the_best_is_the_first_of_equals() -> None:
    trials = [SearchTrial(Point(rate, 8, None), ndcg, 1, 2) for rate, ndcg in ((1.0, 0.2), (2.0, 0.3), (3.0, 0.3))]

    assert Search("sasrec", tuple(trials)).best.point.learning_rate == 2.0


def test_a_file_to_start_from_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        write_config(tmp_path / "out.toml", tmp_path / "nosuch.toml", [])

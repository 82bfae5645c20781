"""The split by time: nothing of the time that is tested in is trained on, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.errors import ConfigurationError, EmptyDatasetError
from models.evaluation.arms import build_arm
from tests.conftest import write_interactions

# Times of ``write_interactions`` are 1000, 1010, ... 1170.
VALIDATION_FROM, TEST_FROM = 1_100, 1_140


def prepared(folder: Path, **options: Any) -> Dataset:
    config = PreparationConfig(split="time", **options)
    prepare(write_interactions(folder / "log.csv"), folder / "dataset", config)
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Trained before 1100, tested from 1140 on."""
    folder = tmp_path_factory.mktemp("time")
    return prepared(folder, validation_from=str(VALIDATION_FROM), test_from=str(TEST_FROM))


def test_what_is_trained_on_comes_before_the_first_date(dataset) -> None:
    times = dataset.times

    assert all(times[user][: len(row)].max() < VALIDATION_FROM for user, row in enumerate(dataset.train))
    assert all(times[user][len(row)] >= VALIDATION_FROM for user, row in enumerate(dataset.train))


def test_the_test_item_is_the_first_after_the_second_date_and_its_history_is_all_before(dataset) -> None:
    for user in range(len(dataset.user_ids)):
        place = len(dataset.before_test[user])

        assert dataset.test[user] == dataset.complete[user][place]
        assert dataset.times[user][place] == TEST_FROM
        assert dataset.times[user][place - 1] < TEST_FROM


def test_the_validation_item_is_the_first_after_the_first_date(dataset) -> None:
    firsts = [int(dataset.complete[user][len(row)]) for user, row in enumerate(dataset.train)]

    assert dataset.validation.tolist() == firsts


def test_no_interaction_is_lost(dataset, tmp_path) -> None:
    """As many as when each user's last two are held out, in the same order."""
    prepare(write_interactions(tmp_path / "log.csv"), tmp_path / "dataset")
    usual = load_dataset(tmp_path / "dataset")

    assert [row.tolist() for row in dataset.complete] == [row.tolist() for row in usual.complete]


def test_users_who_did_nothing_in_the_time_of_the_test_are_not_ranked(tmp_path) -> None:
    log = write_interactions(tmp_path / "log.csv")
    rows = log.read_text(encoding="utf-8").splitlines()
    late = [row for row in rows[1:] if row.startswith("u00") and int(row.rsplit(",", 1)[1]) >= TEST_FROM]
    log.write_text("\n".join(row for row in rows if row not in late) + "\n", encoding="utf-8")
    config = PreparationConfig(split="time", validation_from=str(VALIDATION_FROM), test_from=str(TEST_FROM))
    prepare(log, tmp_path / "dataset", config)
    dataset = load_dataset(tmp_path / "dataset")
    absent = [user for user, name in enumerate(dataset.user_ids) if name.startswith("u00")]
    queries = build_arm(dataset, "food", "original", None).test

    assert dataset.test[absent].tolist() == [0] * len(absent)
    assert not set(absent) & set(queries.users.tolist())
    assert len(queries) > 0


def test_training_reads_no_later_item(tmp_path) -> None:
    """The files of all that is held out are gone, and what is trained on is as it was."""
    dataset = prepared(tmp_path)
    before = dataset.train.token_ids.copy()
    for name in ("later", "validation", "test"):
        (dataset.directory / f"{name}.parquet").unlink()

    assert np.array_equal(dataset.train.token_ids, before)


def test_without_dates_the_last_tenth_tests_and_the_tenth_before_it_validates(tmp_path) -> None:
    dataset = prepared(tmp_path)
    split = dataset.manifest["split"]
    times = dataset.times.values

    assert (times >= split["test_from"]).mean() == pytest.approx(0.1, abs=0.05)
    assert (times < split["validation_from"]).mean() == pytest.approx(0.8, abs=0.05)
    assert dataset.split_sentence.startswith("Split by time: trained before 1970-01-01")


def test_a_date_is_read_in_the_unit_of_the_log(tmp_path) -> None:
    dataset = prepared(tmp_path, test_from="1970-01-01T00:19:00", validation_from="1100")

    assert dataset.manifest["split"]["test_from"] == 1_140.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"test_from": "soon"}, ConfigurationError, "neither a date"),
        ({"test_from": "1100", "validation_from": "1140"}, ConfigurationError, "not before the test"),
        ({"test_from": "2024-01-01"}, EmptyDatasetError, "in the time of the test"),
    ],
)
def test_dates_that_divide_nothing_are_refused(tmp_path, options, error, message) -> None:
    with pytest.raises(error, match=message):
        prepared(tmp_path, **options)

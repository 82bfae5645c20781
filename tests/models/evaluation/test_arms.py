"""The arms: what each trains on, and that all rank the same items of the same users."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.composite.folder import COMPOSITE, SUMMARY
from models.data.dataset import Dataset, Sequences
from models.errors import DatasetFormatError
from models.evaluation.arms import ARM_NAMES, Arm, Composite, build_arm, duplicate_rows, load_composite

TARGET = "food"


@pytest.fixture(scope="module")
def arms(dataset: Dataset, composite_folder: Path) -> dict[str, Arm]:
    composite = load_composite(composite_folder, dataset, TARGET)
    return {name: build_arm(dataset, TARGET, name, composite) for name in ARM_NAMES}


def slow_rows(dataset: Dataset) -> list[list[int]]:
    domain = dataset.vocabulary.token_range(TARGET)
    rows = [[int(token) - domain.first + 1 for token in row if int(token) in domain] for row in dataset.train]
    return [row for row in rows if len(row) >= 2]


def test_the_original_arm_holds_every_users_target_items_in_order(dataset, arms):
    """Training rows are f_T(s[:n-2]) of at least two items, numbered from 1."""
    assert [row.tolist() for row in arms["original"].rows] == slow_rows(dataset)


def test_the_duplicated_arm_repeats_the_rows_of_the_users_that_regeneration_adds_rows_for(
    dataset, arms, composite_folder
):
    """As many rows as the composite; each regenerated row has its user's original one in its place."""
    domain = dataset.vocabulary.token_range(TARGET)
    table = pl.read_parquet(composite_folder / COMPOSITE)
    by_origin = dict(table.select("origin", "user_id", "token_ids").partition_by("origin", as_dict=True))
    original_of = dict(by_origin[("original",)].select("user_id", "token_ids").iter_rows())
    regenerated_users = by_origin[("regenerated",)]["user_id"].to_list()
    own = [original_of[user] for user in regenerated_users if user in original_of]
    added = [own[index % len(own)] for index in range(len(regenerated_users))]

    assert 0 < len(own) < len(original_of)
    assert [row.tolist() for row in arms["duplicated"].rows] == slow_rows(dataset) + [
        [token - domain.first + 1 for token in row] for row in added
    ]


@pytest.mark.parametrize(
    ("users", "regenerated", "expected"),
    [
        ([0, 1, 1, 2, 3], [0, 0, 1, 0, 1], [[1, 2], [3, 4], [5, 6], [3, 4], [3, 4]]),
        ([0, 1, 2, 3], [0, 0, 1, 1], [[1, 2], [3, 4], [1, 2], [3, 4]]),
        ([0, 1], [1, 1], []),
        ([0, 1], [0, 0], [[1, 2], [3, 4]]),
    ],
    ids=["a user without an original row", "none has one", "no original rows", "nothing regenerated"],
)
def test_a_user_without_an_original_row_has_anothers_repeated(users, regenerated, expected) -> None:
    """The count stays the composite's as long as there is anything to repeat."""
    rows = Sequences.from_lists([[2 * user + 1, 2 * user + 2] for user in users])
    composite = Composite(np.asarray(users), np.asarray(regenerated, dtype=bool), rows, {}, Path())

    assert [row.tolist() for row in duplicate_rows(composite)] == expected


def test_the_regenerated_arm_is_the_composite(dataset, arms, composite_folder):
    """Its rows are composite.parquet's, item by item."""
    domain = dataset.vocabulary.token_range(TARGET)
    rows = pl.read_parquet(composite_folder / COMPOSITE)["token_ids"].to_list()

    assert [row.tolist() for row in arms["regenerated"].rows] == [[t - domain.first + 1 for t in row] for row in rows]


def test_every_arm_ranks_the_same_item_of_the_same_users(dataset, arms):
    """Users whose held-out item lies in the target; equal items under the arm's own numbers."""
    domain = dataset.vocabulary.token_range(TARGET)
    expected = [user for user, token in enumerate(dataset.test.tolist()) if token in domain]
    for arm in arms.values():
        offset = domain.first - arm.candidates.first

        assert arm.test.users.tolist() == expected
        assert (arm.test.targets + offset).tolist() == dataset.test[expected].tolist()
        assert (arm.test.num_target_items == arms["original"].test.num_target_items).all()
        assert len(arm.candidates) == len(domain)


def test_histories_hold_the_validation_item_at_test_only_and_foreign_items_in_mixed_only(dataset, arms):
    """history(validation) = s[:n-2], history(test) = s[:n-1]; target items alone outside ``mixed``."""
    domain = dataset.vocabulary.token_range(TARGET)
    for split, held_out in (("validation", False), ("test", True)):
        for name, arm in arms.items():
            queries = getattr(arm, split)
            for row, user in enumerate(queries.users):
                whole = [*dataset.train[user].tolist(), *([int(dataset.validation[user])] if held_out else [])]
                kept = whole if name == "mixed" else [token - domain.first + 1 for token in whole if token in domain]

                assert queries.histories[row].tolist() == kept
                assert queries.num_target_items[row] == sum(token in domain for token in whole)


def test_arms_of_other_rows_have_other_fingerprints(dataset, arms):
    """The content hash tells arms apart, and equal content alike."""
    assert len({arm.fingerprint for arm in arms.values()}) == len(ARM_NAMES)
    assert build_arm(dataset, TARGET, "original", None).fingerprint == arms["original"].fingerprint


def test_a_composite_of_another_target_dataset_or_content_is_refused(dataset, composite_folder, tmp_path):
    """Each mismatch is named before anything is trained."""
    with pytest.raises(DatasetFormatError, match="target 'food'"):
        load_composite(composite_folder, dataset, "books")
    with pytest.raises(DatasetFormatError, match="not a composite"):
        load_composite(tmp_path, dataset, TARGET)
    copied = tmp_path / "copied"
    shutil.copytree(composite_folder, copied)
    summary = json.loads((copied / SUMMARY).read_text())
    for key, value, message in (
        ("dataset_fingerprint", "other", "another dataset"),
        ("rules_version", 0, "decide otherwise today"),
        ("files", {}, "earlier version"),
    ):
        (copied / SUMMARY).write_text(json.dumps(summary | {key: value}))
        with pytest.raises(DatasetFormatError, match=message):
            load_composite(copied, dataset, TARGET)
    (copied / SUMMARY).write_text(json.dumps(summary))
    pl.read_parquet(copied / COMPOSITE).head(3).write_parquet(copied / COMPOSITE)
    with pytest.raises(DatasetFormatError, match="not as it was written"):
        load_composite(copied, dataset, TARGET)


def test_rows_are_picked_in_order():
    """Ragged indexing against lists."""
    rows = Sequences.from_lists([[1, 2], [], [3, 4, 5]])

    assert [row.tolist() for row in rows.at(np.asarray([2, 0, 2, 1]))] == [[3, 4, 5], [1, 2], [3, 4, 5], []]

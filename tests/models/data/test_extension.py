"""A dataset and newer rows: what stood somewhere stays there, and what is held out was never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from models.data.dataset import Dataset, load_dataset
from models.data.extension import joined_by
from models.data.preparation import PreparationConfig, prepare
from models.data.reading.layouts import Layout
from models.errors import ConfigurationError, DatasetFormatError
from tests.conftest import write_interactions

HEADER = "user,item,domain,timestamp"
LOOSE = PreparationConfig(overlap="any")


def rows_of(folder: Path) -> list[str]:
    return write_interactions(folder / "whole.csv").read_text(encoding="utf-8").splitlines()[1:]


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def day(row: str) -> int:
    return int(row.rsplit(",", 1)[1])


def extend(folder: Path, old: list[str], new: list[str], config: PreparationConfig = LOOSE) -> tuple[Dataset, Dataset]:
    """The dataset of *old* rows, and its extension by *new* ones."""
    prepare(write(folder / "old.csv", old), folder / "old", config)
    prepare(write(folder / "new.csv", new), folder / "new", extend=folder / "old")
    return load_dataset(folder / "old"), load_dataset(folder / "new")


def joined_items(dataset: Dataset) -> npt.NDArray[np.int32]:
    return joined_by(dataset.directory, dataset.manifest, len(dataset.train.token_ids))


@pytest.fixture
def both(tmp_path: Path) -> tuple[Dataset, Dataset]:
    """The first users until 1140; then the whole log, with more of everything."""
    rows = rows_of(tmp_path)
    newer = [
        f"u{user:03d},{item},toys,{1_200 + user}" for user in range(3) for item in ("toys-1", "toys-2", "food-new")
    ]
    newer = [row.replace("food-new,toys", "food-new,food") for row in newer]
    return extend(tmp_path, [row for row in rows if day(row) < 1_140 and row < "u040"], [*rows, *newer])


def test_users_and_items_keep_their_numbers_and_new_ones_follow(both) -> None:
    old, new = both

    assert new.user_ids[: len(old.user_ids)] == old.user_ids
    assert new.vocabulary.domains[: len(old.vocabulary.domains)] == old.vocabulary.domains
    for before, after in zip(old.vocabulary.item_ids, new.vocabulary.item_ids, strict=False):
        assert after[: len(before)] == before
    assert len(new.user_ids) == 60
    assert "food-new" in new.vocabulary.item_ids[new.vocabulary.domain_index("food")]


def test_the_extension_has_the_rows_of_the_whole_log_each_once(both, tmp_path) -> None:
    """The rows that the new file repeats are duplicates; the result is that of preparing all at once."""
    _, new = both
    prepare([tmp_path / "old.csv", tmp_path / "new.csv"], tmp_path / "at-once", LOOSE)
    at_once = load_dataset(tmp_path / "at-once")

    def sequences(dataset: Dataset) -> dict[str, list[str]]:
        return {
            user: dataset.vocabulary.item_ids_of(row)
            for user, row in zip(dataset.user_ids, dataset.complete, strict=True)
        }

    held = {user: row for user, row in sequences(new).items() if user in at_once.user_ids}
    assert held == sequences(at_once)


def test_what_is_held_out_was_held_out_before_or_is_new(both) -> None:
    """So yesterday's bundle has learned from nothing that is held out today."""
    old, new = both
    trained = {
        (user, item, float(time))
        for place, (user, row) in enumerate(zip(old.user_ids, old.train, strict=True))
        for item, time in zip(old.vocabulary.item_ids_of(row), old.times[place], strict=False)
    }
    held_out = {
        (user, item, float(time))
        for place, user in enumerate(new.user_ids)
        for item, time in zip(new.vocabulary.item_ids_of(new.complete[place])[-2:], new.times[place][-2:], strict=True)
    }

    assert not trained & held_out
    assert len(held_out) == 2 * len(new.user_ids)


def test_an_extension_by_nothing_new_is_the_same_dataset(tmp_path) -> None:
    rows = rows_of(tmp_path)
    old, new = extend(tmp_path, rows, rows[:5])

    assert new.fingerprint == old.fingerprint


def test_rows_that_were_too_few_are_counted_again_with_the_new_ones(tmp_path) -> None:
    """Two people bought it yesterday, which was not enough; today a third does."""
    rows = rows_of(tmp_path)
    seldom = [f"u00{user},food-seldom,food,{1_300 + user}" for user in range(3)]
    old, new = extend(tmp_path, [*rows, *seldom[:2]], seldom[2:])

    assert "food-seldom" not in old.vocabulary.item_ids[old.vocabulary.domain_index("food")]
    assert new.vocabulary.item_ids[new.vocabulary.domain_index("food")][-1] == "food-seldom"
    assert sum(item == new.vocabulary.token_id("food", "food-seldom") for item in new.complete.token_ids) == 3


def test_the_order_of_extending_does_not_matter_for_what_waits(tmp_path) -> None:
    """Day by day, too, the third buyer brings the first two along."""
    rows = rows_of(tmp_path)
    seldom = [f"u00{user},food-seldom,food,{1_300 + user}" for user in range(3)]
    prepare(write(tmp_path / "a.csv", [*rows, seldom[0]]), tmp_path / "day-1", LOOSE)
    for number, row in enumerate(seldom[1:], start=1):
        new = write(tmp_path / f"{number}.csv", [row])
        prepare(new, tmp_path / f"day-{number + 1}", extend=tmp_path / f"day-{number}")
    last = load_dataset(tmp_path / "day-3")

    assert sum(item == last.vocabulary.token_id("food", "food-seldom") for item in last.complete.token_ids) == 3
    assert [ancestor["name"] for ancestor in last.manifest["extends"]] == ["day-1", "day-1"]


def test_an_extension_keeps_the_configuration_and_the_dates_of_its_split(tmp_path) -> None:
    rows = rows_of(tmp_path)
    config = PreparationConfig(overlap="any", split="time")
    newer = [f"u{user:03d},food-01,food,{2_000 + user}" for user in range(20)]
    old, new = extend(tmp_path, rows, newer, config)

    assert new.manifest["split"] == old.manifest["split"]
    assert new.manifest["config"]["overlap"] == "any"
    assert all(after.tolist() == before.tolist() for before, after in zip(old.train, new.train, strict=True))


def test_times_of_another_unit_are_brought_to_the_datasets(tmp_path) -> None:
    seconds = [f"u{user},{domain}-{item},{domain},{1_600_000_000 + 10 * item}" for user in range(5)
               for domain in ("food", "toys") for item in range(4)]  # fmt: skip
    later = [f"u{user},food-1,food,{1_700_000_000_000 + user}" for user in range(5)]
    _, new = extend(tmp_path, seconds, later)

    assert [times[-1] for times in (new.times[user] for user in range(5))] == [
        1_700_000_000 + n / 1000 for n in range(5)
    ]


def test_a_dataset_that_kept_no_waiting_rows_cannot_be_extended(tmp_path) -> None:
    import json

    rows = rows_of(tmp_path)
    prepare(write(tmp_path / "old.csv", rows), tmp_path / "old", LOOSE)
    manifest = json.loads((tmp_path / "old" / "dataset.json").read_text(encoding="utf-8"))
    del manifest["files"]["waiting.parquet"]
    (tmp_path / "old" / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(DatasetFormatError, match="earlier version"):
        prepare(tmp_path / "old.csv", tmp_path / "new", extend=tmp_path / "old")


@pytest.mark.parametrize("before", [True, False])
def test_columns_are_not_carried_along_by_an_extension(tmp_path, before: bool) -> None:
    """Neither those of the dataset, which newer rows may lack, nor new ones, which older rows have not."""
    log = write(tmp_path / "log.csv", rows_of(tmp_path))
    carrying = PreparationConfig(overlap="any", layout=Layout(carried=("timestamp",)))
    prepare(log, tmp_path / "old", carrying if before else LOOSE)

    with pytest.raises(ConfigurationError, match="not by an extension"):
        prepare(log, tmp_path / "new", LOOSE if before else carrying, extend=tmp_path / "old")


def test_every_training_item_says_by_which_extension_it_became_one(tmp_path) -> None:
    """Held-out items join when newer ones take their place; a row that comes late joins in the middle."""
    rows = rows_of(tmp_path)
    mine = sorted((row for row in rows if row.startswith("u003,")), key=day)
    times = [day(row) for row in mine]
    late = f"u003,{mine[2].split(',')[1]},{mine[2].split(',')[2]},{times[0] + 0.5}"
    first, second = extend(tmp_path, rows, [f"u003,food-01,food,{times[-1] + 1}", late])
    prepare(write(tmp_path / "more.csv", ["u003,food-02,food,9000"]), tmp_path / "third", extend=tmp_path / "new")
    third = load_dataset(tmp_path / "third")

    def joined(dataset: Dataset, user: str) -> list[int]:
        index = dataset.user_ids.index(user)
        start, end = dataset.train.offsets[index : index + 2]
        return joined_items(dataset)[start:end].tolist()

    trained = len(mine) - 2
    assert joined(first, "u003") == trained * [0]
    assert joined(second, "u003") == [0, 1, *(trained - 1) * [0], 1]
    assert joined(third, "u003") == [0, 1, *(trained - 1) * [0], 1, 2]
    assert not any(joined(third, "u004"))


def test_a_table_of_joined_items_of_another_length_is_damage(both, tmp_path) -> None:
    _, new = both
    pl.DataFrame({"extension": [0, 1]}, schema={"extension": pl.Int32}).write_parquet(
        tmp_path / "new" / "joined.parquet"
    )

    with pytest.raises(DatasetFormatError, match="not one for every training item"):
        joined_items(new)

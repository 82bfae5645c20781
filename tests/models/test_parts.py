"""A composite made in parts is the one made at once: cut anywhere, interrupted anywhere, byte for byte."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.bundle import Bundle
from models.composite.engines import LocalEngine
from models.composite.folder import CompositeProgress, CompositeSummary, PartSize, write_composite
from models.composite.part_results import Part, PartRecipe
from models.composite.work_folder import claimed, work_folder_of
from models.data.dataset import Dataset, Sequences, describe_dataset, load_dataset, read_users
from models.data.preparation import PreparationConfig, prepare
from models.data.reading.layouts import Layout
from models.data.user_ranges import user_ranges
from models.errors import OutputExistsError
from models.exports.export_formats import FORMATS
from tests.conftest import write_interactions

ROOT = Path(__file__).resolve().parents[2]
EXPORTS = tuple(FORMATS)


def write(dataset: Dataset, bundle: Bundle, out: Path, **options) -> CompositeSummary:
    return write_composite(dataset, bundle, target="food", out=out, **{"rule": "anticipate"} | options)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a composite but its summary, which tells of times and parts; RecBole's YAML says where it lies."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name != "summary.json" and path.suffix != ".yaml"
    }


@pytest.fixture(scope="module")
def at_once(dataset, matching_bundle, tmp_path_factory) -> dict[str, bytes]:
    """All files of the composite of ``dataset``, exports included, made in one part."""
    out = tmp_path_factory.mktemp("once") / "food"
    summary = write(dataset, matching_bundle, out, exports=EXPORTS, prefixes=True)
    assert summary.parts == 1
    return bytes_of(out)


@pytest.mark.parametrize("size", [PartSize(users=7), PartSize(interactions=90)])
def test_a_composite_in_parts_has_the_bytes_of_one_made_at_once(dataset, matching_bundle, at_once, tmp_path, size):
    summary = write(dataset, matching_bundle, tmp_path / "food", exports=EXPORTS, prefixes=True, part_size=size)

    assert summary.parts > 8
    assert bytes_of(tmp_path / "food") == at_once
    assert [path.name for path in tmp_path.iterdir()] == ["food"]  # no parts are left


@pytest.mark.parametrize("rule", ["anticipate", "paper"])
def test_tables_and_row_groups_end_where_they_would_without_parts(
    dataset, matching_bundle, tmp_path, monkeypatch, rule
) -> None:
    """Of a result that fills several of each, of every interaction, and of a mapping that is merged piece by piece."""
    monkeypatch.setattr("models.composite.assembly.USERS_PER_TABLE", 8)
    monkeypatch.setattr("models.composite.assembly.LISTS_PER_GROUP", 16)
    monkeypatch.setattr("models.composite.mapping.ROWS_AT_A_TIME", 10)
    for name, size in (("once", 100), ("parts", 7)):
        write(
            dataset,
            matching_bundle,
            tmp_path / name,
            rule=rule,
            interactions="all",
            exports=("csv", "replay"),
            part_size=PartSize(users=size),
        )

    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "once")


def test_a_mean_score_is_that_of_the_decisions_and_the_same_to_the_bit(dataset, matching_bundle, tmp_path) -> None:
    """Sums of floats depend on their order; these do not."""
    write(dataset, matching_bundle, tmp_path / "food", part_size=PartSize(users=3))
    mapping = pl.read_parquet(tmp_path / "food" / "mapping.parquet")
    stayed = pl.read_parquet(tmp_path / "food" / "interactions" / "*.parquet").filter(pl.col("origin") == "replaced")
    expected = stayed.group_by("source_item", "item").agg(pl.col("score").cast(pl.Float64).mean(), pl.len())
    both = mapping.drop_nulls("target_item").join(
        expected, left_on=["source_item", "target_item"], right_on=["source_item", "item"]
    )

    assert both.height == expected.height > 50
    assert both["count"].to_list() == both["len"].to_list()
    assert both["mean_score"].to_list() == pytest.approx(both["score"].to_list(), rel=1e-14)
    deleted = mapping.filter(pl.col("target_item").is_null())
    assert deleted["mean_score"].null_count() == deleted.height > 0


class Interrupted(Exception):
    """The work ends here."""


class EndsAfter(LocalEngine):
    """An engine whose process ends after so many parts; without a number, one that says which it was asked for."""

    def __init__(self, num_parts: int | None = None) -> None:
        self.num_parts = num_parts
        self.asked: list[int] = []

    def make(self, recipe: PartRecipe, parts: Sequence[Part]) -> Iterator[int]:
        self.asked = [part.number for part in parts]
        yield from super().make(recipe, parts[: self.num_parts])
        if self.num_parts is not None:
            raise Interrupted


def test_a_run_goes_on_where_the_one_before_was_ended(dataset, matching_bundle, at_once, tmp_path) -> None:
    size, notes, seen = PartSize(users=7), [], []
    heard = CompositeProgress(on_note=notes.append, on_users=lambda done, total: seen.append((done, total)))
    with pytest.raises(Interrupted):
        write(dataset, matching_bundle, tmp_path / "food", engine=EndsAfter(3), part_size=size)
    assert not (tmp_path / "food").exists()
    engine = EndsAfter()
    summary = write(
        dataset,
        matching_bundle,
        tmp_path / "food",
        exports=EXPORTS,
        prefixes=True,
        engine=engine,
        part_size=size,
        progress=heard,
    )

    assert summary.parts_resumed == 3
    assert engine.asked == list(range(3, summary.parts))
    assert notes == [f"going on from {tmp_path}/.food.parts: 3 of {summary.parts} parts are made"]
    assert (seen[0], seen[-1]) == ((21, summary.users), (summary.users, summary.users))
    assert bytes_of(tmp_path / "food") == at_once


CHILD = """
import sys
from pathlib import Path
from models.bundle import load_bundle
from models.composite.folder import PartSize, write_composite
from models.data.dataset import describe_dataset

write_composite(
    describe_dataset(Path(sys.argv[1])), load_bundle(Path(sys.argv[2])), target="food", rule="anticipate",
    out=Path(sys.argv[3]), part_size=PartSize(users=3),
)
"""


def test_a_process_that_was_killed_leaves_parts_to_go_on_from(dataset, matching_bundle, at_once, tmp_path) -> None:
    """SIGKILL, in the middle of whatever it is at then."""
    arguments = [str(path) for path in (dataset.directory, matching_bundle.directory, tmp_path / "food")]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], cwd=ROOT)
    work = work_folder_of(tmp_path / "food")
    try:
        while not (work / "part-000001" / "part.json").exists():
            assert child.poll() is None
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    summary = write(
        dataset, matching_bundle, tmp_path / "food", exports=EXPORTS, prefixes=True, part_size=PartSize(users=3)
    )

    assert 2 <= summary.parts_resumed < summary.parts
    assert bytes_of(tmp_path / "food") == at_once


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ({"rule": "paper"}, "rule"),
        ({"dial": "all"}, "dial"),
        ({"interactions": "all"}, "interactions"),
        ({"part_size": PartSize(users=9)}, "size of parts"),
        ({}, "bundle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_of_anything_else_are_not_taken_over(
    dataset, matching_bundle, at_once, tmp_path, options, differing
) -> None:
    other = matching_bundle if options else dataclasses.replace(matching_bundle, version="another")
    with pytest.raises(Interrupted):
        write(
            dataset,
            other,
            tmp_path / "food",
            engine=EndsAfter(3),
            **{"part_size": PartSize(users=7)} | options,
        )
    notes: list[str] = []
    engine = EndsAfter()
    summary = write(
        dataset,
        matching_bundle,
        tmp_path / "food",
        engine=engine,
        part_size=PartSize(users=7),
        progress=CompositeProgress(on_note=notes.append),
    )
    ours = bytes_of(tmp_path / "food")

    assert (summary.parts_resumed, engine.asked) == (0, list(range(summary.parts)))
    assert notes == [f"{tmp_path}/.food.parts held parts of an earlier run that differs in {differing}: not taken over"]
    assert ours == {name: at_once[name] for name in ours}


@pytest.mark.parametrize("damage", ["part.json", "work.json"])
def test_what_cannot_be_read_is_made_again(dataset, matching_bundle, at_once, tmp_path, damage) -> None:
    with pytest.raises(Interrupted):
        write(dataset, matching_bundle, tmp_path / "food", engine=EndsAfter(3), part_size=PartSize(users=7))
    work = work_folder_of(tmp_path / "food")
    (work / damage if damage == "work.json" else work / "part-000001" / damage).write_text("{", encoding="utf-8")
    engine = EndsAfter()
    write(
        dataset,
        matching_bundle,
        tmp_path / "food",
        exports=EXPORTS,
        prefixes=True,
        engine=engine,
        part_size=PartSize(users=7),
    )

    assert 1 in engine.asked
    assert (0 in engine.asked) == (damage == "work.json")
    assert bytes_of(tmp_path / "food") == at_once


def test_two_runs_do_not_make_one_composite(dataset, matching_bundle, tmp_path) -> None:
    with claimed(work_folder_of(tmp_path / "food"), {}), pytest.raises(OutputExistsError, match="another run"):
        write(dataset, matching_bundle, tmp_path / "food")


def test_earlier_decisions_are_found_part_by_part(dataset, matching_bundle, at_once, tmp_path) -> None:
    write(dataset, matching_bundle, tmp_path / "food", part_size=PartSize(users=5))
    summary = write(
        dataset, matching_bundle, tmp_path / "food", exports=EXPORTS, prefixes=True, part_size=PartSize(users=7)
    )

    assert summary.users_taken_over == summary.users
    assert bytes_of(tmp_path / "food") == at_once


@pytest.fixture(scope="module")
def carried(tmp_path_factory) -> Dataset:
    """A dataset with a further column, which has a row for every interaction."""
    folder = tmp_path_factory.mktemp("carried")
    table = pl.read_csv(write_interactions(folder / "log.csv")).with_row_index("rating")
    table.write_csv(folder / "log.csv")
    config = PreparationConfig(
        min_user_interactions=1, min_item_interactions=1, overlap="any", layout=Layout(carried=("rating",))
    )
    prepare(folder / "log.csv", folder / "prepared", config)
    return load_dataset(folder / "prepared")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(users=st.integers(1, 70), interactions=st.integers(1, 400))
def test_ranges_of_users_are_the_dataset_cut(carried, users, interactions) -> None:
    """In order, whole, none too large unless it is one user; read by themselves, they are what the dataset holds."""
    described = describe_dataset(carried.directory, checked=False)
    ranges = user_ranges(described, max_users=users, max_interactions=interactions)
    lengths = np.diff(carried.times.offsets)

    assert [one.first for one in ranges] == [0, *(one.end for one in ranges[:-1])]
    assert ranges[-1].end == len(carried.user_ids)
    for one in ranges:
        assert 0 < len(one) <= users
        assert len(one) == 1 or lengths[one.first : one.end].sum() <= interactions
        assert one.first_interaction == lengths[: one.first].sum()
    one = ranges[len(ranges) // 2]
    some = read_users(described, one)
    assert some.user_ids == carried.user_ids[one.first : one.end]
    assert lists(some.complete) == lists(carried.complete)[one.first : one.end]
    assert some.test.tolist() == carried.test[one.first : one.end].tolist()
    place = slice(one.first_interaction, one.first_interaction + len(some.times.values))
    assert some.times.values.tolist() == carried.times.values[place].tolist()
    assert some.carried is not None
    assert carried.carried is not None
    assert some.carried.equals(carried.carried[place])


def lists(sequences: Sequences) -> list[list[int]]:
    return [sequence.tolist() for sequence in sequences]


def test_a_carried_column_comes_along_in_parts(carried, matching_bundle, tmp_path) -> None:
    """A bundle of other items: those of the target stay, too."""
    for name, size in (("once", 100), ("parts", 7)):
        write(carried, matching_bundle, tmp_path / name, interactions="all", part_size=PartSize(users=size))
    ours = bytes_of(tmp_path / "parts")

    assert ours == bytes_of(tmp_path / "once")
    assert pl.read_parquet(tmp_path / "parts" / "interactions" / "*.parquet")["rating"].n_unique() > 100


def test_the_summary_tells_of_parts(dataset, matching_bundle, tmp_path) -> None:
    write(dataset, matching_bundle, tmp_path / "food", part_size=PartSize(users=7))
    summary = json.loads((tmp_path / "food" / "summary.json").read_text(encoding="utf-8"))

    assert summary["parts"] == -(-summary["users"] // 7)
    assert summary["parts_resumed"] == 0

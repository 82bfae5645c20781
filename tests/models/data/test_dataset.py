"""The dataset folder: round trip through disk, every way it can be wrong, padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.dataset import Sequences, load_dataset, pad_right, sha256_of
from models.data.preparation import PreparationConfig, prepare
from models.errors import DatasetFormatError

DATA_FILES = ("vocabulary.parquet", "train.parquet", "validation.parquet", "test.parquet")

ragged = st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=6)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Three users with 1, 2 and 4 interactions."""
    folder = tmp_path_factory.mktemp("original")
    rows = [(f"u{n}", f"{'ab'[t % 2]}{t}", "ab"[t % 2], t) for n in (1, 2, 4) for t in range(n)]
    (folder / "input.csv").write_text(
        "user,item,domain,timestamp\n" + "".join(f"{u},{i},{d},{t}\n" for u, i, d, t in rows)
    )
    config = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any")
    prepare(folder / "input.csv", folder / "dataset", config)
    return folder / "dataset"


@pytest.fixture
def directory(original, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def edit_manifest(directory: Path, **changes) -> None:
    manifest = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps({**manifest, **changes}))


def test_loading_gives_back_what_was_prepared(original):
    dataset = load_dataset(original)
    token = dataset.vocabulary.token_id

    assert dataset.user_ids == ("u1", "u2", "u4")
    assert [sequence.tolist() for sequence in dataset.train] == [[], [], [token("a", "a0"), token("b", "b1")]]
    assert dataset.validation.tolist() == [0, token("a", "a0"), token("a", "a2")]
    assert dataset.test.tolist() == [token("a", "a0"), token("b", "b1"), token("b", "b3")]
    assert dataset.fingerprint == dataset.manifest["fingerprint"]


def test_every_item_of_the_whole_sequence_has_the_time_that_the_log_gave_it(original):
    dataset = load_dataset(original)
    named = [dataset.vocabulary.item_ids_of(sequence) for sequence in dataset.complete]

    assert named == [["a0"], ["a0", "b1"], ["a0", "b1", "a2", "b3"]]
    assert [times.tolist() for times in map(dataset.times.__getitem__, range(3))] == [[0], [0, 1], [0, 1, 2, 3]]
    assert dataset.times.of_first(dataset.train.lengths).tolist() == [0, 1]


def test_a_dataset_from_before_times_loads_and_says_what_it_lacks(directory):
    files = json.loads((directory / "dataset.json").read_text())["files"]
    (directory / "times.parquet").unlink()
    edit_manifest(directory, files={name: digest for name, digest in files.items() if name != "times.parquet"})
    dataset = load_dataset(directory)

    assert not dataset.has_times
    assert dataset.complete.lengths.tolist() == [1, 2, 4]
    with pytest.raises(DatasetFormatError, match="kept no times: `taesar prepare` its log again"):
        _ = dataset.times


def test_times_of_other_sequences_are_refused(directory):
    times = pl.read_parquet(directory / "times.parquet")
    times.with_columns(pl.col("times").list.head(1)).write_parquet(directory / "times.parquet")
    files = json.loads((directory / "dataset.json").read_text())["files"]
    edit_manifest(directory, files=files | {"times.parquet": sha256_of(directory / "times.parquet")})

    with pytest.raises(DatasetFormatError, match="numbers of times differ"):
        _ = load_dataset(directory).times


def test_loading_does_not_read_the_held_out_items(directory):
    """Only asking does: what trains on ``train`` works where the two files cannot be read at all."""
    dataset = load_dataset(directory)
    (directory / "validation.parquet").unlink()
    (directory / "test.parquet").unlink()

    assert dataset.train.lengths.tolist() == [0, 0, 2]
    with pytest.raises(DatasetFormatError, match=r"validation\.parquet"):
        _ = dataset.validation
    with pytest.raises(DatasetFormatError, match=r"test\.parquet"):
        _ = dataset.test


@pytest.mark.parametrize("name", [*DATA_FILES, "bad_rows.csv"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()

    with pytest.raises(DatasetFormatError, match=f"{name}: missing"):
        load_dataset(directory)


@pytest.mark.parametrize("name", [*DATA_FILES, "bad_rows.csv"])
def test_an_edited_file_is_named(directory, name):
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)

    with pytest.raises(DatasetFormatError, match=f"{name}: its SHA-256 differs"):
        load_dataset(directory)


@pytest.mark.parametrize("name", DATA_FILES)
def test_a_manifest_that_does_not_list_a_file_is_refused(directory, name):
    """Otherwise that file could be exchanged unnoticed."""
    files = json.loads((directory / "dataset.json").read_text())["files"]
    del files[name]
    edit_manifest(directory, files=files)

    with pytest.raises(DatasetFormatError, match=f"dataset.json: does not list {name}"):
        load_dataset(directory)


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    with pytest.raises(DatasetFormatError, match=r"dataset\.json: not found"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format_version": 1}', '{"format_version": 1, "files": []}']
)
def test_a_manifest_that_is_none_is_refused(directory, text):
    (directory / "dataset.json").write_text(text)

    with pytest.raises(DatasetFormatError, match=r"dataset\.json: not a dataset manifest"):
        load_dataset(directory)


def test_another_format_version_is_refused_with_both_numbers(directory):
    edit_manifest(directory, format_version=2)

    with pytest.raises(DatasetFormatError, match="format version 2, this code reads 1"):
        load_dataset(directory)


def test_held_out_items_of_other_users_are_refused(directory):
    table = pl.read_parquet(directory / "test.parquet")
    table.reverse().write_parquet(directory / "test.parquet")
    files = json.loads((directory / "dataset.json").read_text())["files"]
    edit_manifest(directory, files={**files, "test.parquet": sha256_of(directory / "test.parquet")})

    with pytest.raises(DatasetFormatError, match=r"test\.parquet: its users differ"):
        _ = load_dataset(directory).test


def test_a_train_table_with_other_columns_is_refused(directory):
    pl.DataFrame({"user_id": ["u"], "tokens": [[1]]}).write_parquet(directory / "train.parquet")
    files = json.loads((directory / "dataset.json").read_text())["files"]
    edit_manifest(directory, files={**files, "train.parquet": sha256_of(directory / "train.parquet")})

    with pytest.raises(DatasetFormatError, match=r"train\.parquet: not a readable table"):
        load_dataset(directory)


@given(ragged)
def test_sequences_keep_every_list_empty_ones_included(lists):
    sequences = Sequences.from_lists(lists)

    assert [sequence.tolist() for sequence in sequences] == lists
    assert sequences.lengths.tolist() == [len(tokens) for tokens in lists]
    assert len(sequences) == len(lists)


def test_padding_is_on_the_right_and_cuts_on_the_left():
    rows = [np.array(row, dtype=np.int32) for row in ([1, 2, 3], [4], [])]

    assert pad_right(rows).tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert pad_right(rows, 2).tolist() == [[2, 3], [4, 0], [0, 0]]
    assert pad_right([]).shape == (0, 1)

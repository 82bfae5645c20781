"""The vocabulary: numbering, look-ups, round trip, damaged files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DatasetFormatError, UnknownDomainError, UnknownItemError
from models.vocabulary import PADDING, TokenRange, Vocabulary

BOOKS_FOOD = Vocabulary(("books", "food"), (("b1", "b2"), ("f1", "f2", "f3")))

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
vocabularies = st.lists(
    st.tuples(names, st.lists(names, unique=True, min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: Vocabulary(tuple(d for d, _ in pairs), tuple(tuple(i) for _, i in pairs)))


def test_domains_own_contiguous_ranges_after_padding():
    assert BOOKS_FOOD.token_ranges == (TokenRange(1, 2), TokenRange(3, 5))
    assert (BOOKS_FOOD.num_items, BOOKS_FOOD.num_tokens) == (5, 6)
    assert BOOKS_FOOD.token_range("food").columns == slice(3, 6)


def test_built_lookups_do_not_read_the_items_again():
    class Counted(tuple):
        readings = 0

        def __iter__(self):
            Counted.readings += 1
            return super().__iter__()

    vocabulary = Vocabulary(("books",), (Counted(("b1", "b2")),))
    vocabulary.build_lookups()
    readings = Counted.readings

    assert (vocabulary.token_id("books", "b2"), vocabulary.item_ids_of([1, 2])) == (2, ["b1", "b2"])
    assert Counted.readings == readings > 0


@pytest.mark.parametrize("made", [np.asarray, torch.tensor])
def test_a_range_says_which_of_an_arrays_tokens_it_holds(made):
    """Arrays and tensors of any shape; padding is in no range."""
    mask = BOOKS_FOOD.token_range("food").mask(made([[0, 2, 3], [5, 6, 4]]))

    assert mask.tolist() == [[False, False, True], [True, False, True]]
    assert type(mask) is type(made([0]))


def test_a_range_holds_its_two_ends_and_nothing_beyond():
    food = BOOKS_FOOD.token_range("food")

    assert [token in food for token in (2, 3, np.int32(5), 6, "3")] == [False, True, True, False, False]
    assert len(food) == 3


def test_domain_of_tokens_names_every_token_and_minus_one_for_padding():
    tokens = np.array([[PADDING, 1, 2], [3, 5, PADDING]])

    assert BOOKS_FOOD.domain_of_tokens(tokens).tolist() == [[-1, 0, 0], [1, 1, -1]]


def test_item_ids_of_keeps_order_and_repeats():
    assert BOOKS_FOOD.item_ids_of([5, 1, 5]) == ["f3", "b1", "f3"]


def test_one_item_id_may_exist_in_two_domains():
    vocabulary = Vocabulary(("a", "b"), (("x",), ("x",)))

    assert (vocabulary.token_id("a", "x"), vocabulary.token_id("b", "x")) == (1, 2)


def test_an_unknown_domain_is_named_with_the_known_ones():
    with pytest.raises(UnknownDomainError, match=r"'toys'.*books, food"):
        BOOKS_FOOD.token_range("toys")


def test_an_item_of_another_domain_is_unknown():
    with pytest.raises(UnknownItemError, match="'f1' of domain 'books'"):
        BOOKS_FOOD.token_id("books", "f1")


@given(vocabularies)
def test_token_and_item_are_each_others_inverse(vocabulary):
    for token in range(1, vocabulary.num_tokens):
        domain, item = vocabulary.external_id(token)

        assert vocabulary.token_id(domain, item) == token
        assert token in vocabulary.token_range(domain)


@given(vocabularies)
def test_saving_and_loading_gives_an_equal_vocabulary(vocabulary):
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.save(Path(folder) / "vocabulary.parquet")
        loaded = Vocabulary.load(Path(folder) / "vocabulary.parquet")

    assert loaded == vocabulary
    assert loaded.fingerprint == vocabulary.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        Vocabulary(("books", "food"), (("b2", "b1"), ("f1", "f2", "f3"))),
        Vocabulary(("books", "food"), (("b1", "b2", "f1"), ("f2", "f3"))),
        Vocabulary(("books", "meal"), (("b1", "b2"), ("f1", "f2", "f3"))),
        Vocabulary(("food", "books"), (("f1", "f2", "f3"), ("b1", "b2"))),
        Vocabulary(("books", "food"), (("b1b", "2"), ("f1", "f2", "f3"))),
    ],
)
def test_the_fingerprint_tells_numbering_domains_and_names_apart(other):
    assert other.fingerprint != BOOKS_FOOD.fingerprint


TABLE = {"token_id": [1, 2, 3], "domain": ["a", "a", "b"], "item_id": ["x", "y", "x"]}


@pytest.mark.parametrize(
    "change",
    [
        {"token_id": [1, 2, 4]},
        {"token_id": [0, 1, 2]},
        {"domain": ["a", "b", "a"]},
        {"item_id": ["x", "x", "x"]},
        {"token_id": [], "domain": [], "item_id": []},
    ],
)
def test_a_table_that_is_not_numbered_as_promised_is_refused(tmp_path, change):
    schema = {"token_id": pl.Int64, "domain": pl.String, "item_id": pl.String}
    pl.DataFrame({**TABLE, **change}, schema=schema).write_parquet(tmp_path / "vocabulary.parquet")

    with pytest.raises(DatasetFormatError, match=r"vocabulary\.parquet: token ids are not contiguous"):
        Vocabulary.load(tmp_path / "vocabulary.parquet")


def test_a_missing_damaged_or_foreign_file_is_refused_by_name(tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 nothing PAR1")
    pl.DataFrame({"item": ["x"]}).write_parquet(tmp_path / "foreign.parquet")

    for name in ("absent.parquet", "damaged.parquet", "foreign.parquet"):
        with pytest.raises(DatasetFormatError, match=name):
            Vocabulary.load(tmp_path / name)

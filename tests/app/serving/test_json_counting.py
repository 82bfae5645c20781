"""What a JSON text holds is counted right, however it is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.json_counting import JsonCounter, overfull_sequence

DEPTH = 4
TEXTS = st.text(alphabet='a"\\{}[],\n', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=30,
)


def commas_of(value, depth=1, found=None):
    """Commas by depth, from the value itself."""
    found = [0] * (DEPTH + 1) if found is None else found
    if isinstance(value, list | dict):
        if depth <= DEPTH:
            found[depth] += max(0, len(value) - 1)
        for inner in value.values() if isinstance(value, dict) else value:
            commas_of(inner, depth + 1, found)
    return found


def depth_of(value):
    if not isinstance(value, list | dict):
        return 0
    return 1 + max((depth_of(inner) for inner in (value.values() if isinstance(value, dict) else value)), default=0)


def count(text, size):
    counter = JsonCounter(DEPTH)
    for start in range(0, len(text), size):
        counter.add(text[start : start + size])
    return counter


@given(VALUES, st.integers(1, 40), st.booleans())
def test_commas_are_counted_by_their_depth_outside_strings_however_the_text_is_cut(value, size, ascii_only):
    counter = count(json.dumps(value, ensure_ascii=ascii_only).encode(), size)

    assert counter.commas.tolist() == commas_of(value)
    assert counter.deepest == depth_of(value)


@pytest.mark.parametrize("size", [1, 7, 65536])
def test_what_is_no_json_is_counted_without_an_error(size):
    counter = count(b']]]}},,,"\\\\\\",,,\\' * 50, size)

    assert counter.deepest == 0


ITEM = {"item_id": 'a","b', "domain": "{[,"}


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ({"user_id": "u", "items": [ITEM] * 100}, None),
        ({"user_id": "u", "items": [ITEM] * 101}, "101 items; the limit is 100"),
        ({f"k{n}": 0 for n in range(200_000)}, "many fields that are not known"),
        ({"items": [{f"k{n}": 0 for n in range(200_000)}]}, "many fields that are not known"),
    ],
    ids=["full", "too many items", "fields", "fields of an item"],
)
def test_a_sequence_that_holds_too_much_is_told_before_it_is_validated(sequence, reason):
    assert overfull_sequence(json.dumps(sequence).encode(), max_items=100) == reason

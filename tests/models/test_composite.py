"""Which rows of a user enter the composite."""

from __future__ import annotations

import csv
from urllib.parse import unquote

import numpy as np
import pytest

from models.composite import MISSING_WORDS, composite_rows, inter_text
from models.data.dataset import TOKENS
from models.decoding.regenerator import Regenerated, Steps
from models.vocabulary import TokenRange

TARGET = TokenRange(1, 9)


def regenerated(sequence: list[int], replacements: list[int], result: list[int]) -> Regenerated:
    """*result* out of *sequence*, whose source items became *replacements*."""
    positions = np.asarray([p for p, token in enumerate(sequence) if token not in TARGET], dtype=np.int64)
    source = np.asarray([sequence[p] for p in positions], dtype=TOKENS)
    unscored = np.full(len(positions), np.nan, dtype=np.float32)
    steps = Steps(positions, source, np.asarray(replacements, dtype=TOKENS), *[unscored] * 4)
    return Regenerated(np.asarray(result, dtype=TOKENS), len(sequence), steps)


@pytest.mark.parametrize(
    ("sequence", "replacements", "result", "rows"),
    [
        pytest.param([1, 50, 2], [3], [1, 3, 2], [("original", [1, 2]), ("regenerated", [1, 3, 2])], id="replaced"),
        pytest.param([1, 50, 2], [0], [1, 2], [("original", [1, 2])], id="deleted"),
        pytest.param([1, 50, 2], [1], [1, 2], [("original", [1, 2])], id="replaced by its neighbour"),
        pytest.param([1, 50, 1, 2], [1], [1, 2], [("original", [1, 1, 2])], id="replaced by both its neighbours"),
        pytest.param([1, 1, 2], [], [1, 2], [("original", [1, 1, 2])], id="nothing to replace, a repeat collapsed"),
        pytest.param([1, 50, 1, 2], [0], [1, 2], [("original", [1, 1, 2])], id="deleted, a repeat collapsed"),
        pytest.param([1, 2, 3], [], [2, 3], [("original", [1, 2, 3])], id="nothing to replace, the oldest not read"),
        pytest.param([1, 50], [3], [1, 3], [("regenerated", [1, 3])], id="an original of one item"),
        pytest.param([50, 1], [0], [1], [], id="one item in all"),
    ],
)
def test_a_user_has_the_original_row_and_one_more_where_something_was_replaced(sequence, replacements, result, rows):
    made = composite_rows([np.asarray(sequence, dtype=TOKENS)], [regenerated(sequence, replacements, result)], TARGET)
    assert [(row.origin, row.token_ids.tolist()) for row in made] == rows


@pytest.mark.parametrize("identifier", ["NA", "null", '"z', 'f"', "a b", "50%", "#N/A N/A", "é"])
def test_an_identifier_comes_back_from_the_inter_file_whatever_it_is(identifier: str) -> None:
    """A reader that knows quotes and words for missing values, as RecBole's does, reads each field as written."""
    written = list(csv.reader(inter_text([identifier], [[identifier, identifier]]).splitlines(), delimiter="\t"))

    assert [unquote(field) for field in written[1]] == [identifier] * 3
    assert not MISSING_WORDS.intersection(written[1])

"""Which rows of a user enter the composite."""

from __future__ import annotations

import csv
from urllib.parse import unquote

import numpy as np
import pytest

from models.composite.mixed_log import MixedLog
from models.composite.regenerated_rows import RegeneratedUser, composite_rows, regenerated_user
from models.data.dataset import TOKENS, Sequences
from models.data.reading.inter_ids import MISSING_WORDS
from models.decoding.regenerator import Regenerated, Steps, without_repeats
from models.exports.as_inter import inter_lines
from models.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("food", "books"), (tuple(f"f{n}" for n in range(1, 10)), tuple(f"b{n}" for n in range(60))))


def log_of(*sequences: list[int]) -> MixedLog:
    nothing = np.zeros(len(sequences), dtype=np.int64)
    users = tuple(f"u{n}" for n in range(len(sequences)))
    return MixedLog(users, Sequences.from_lists(sequences), None, nothing, VOCABULARY, "food", ())


def made_of(log: MixedLog, user: int, replacements: list[int], max_items: int = 128) -> RegeneratedUser:
    """A user whose source items became *replacements*."""
    read = log.history(user, max_items).token_ids
    positions = np.flatnonzero(read > 9)
    unscored = np.full(len(positions), np.nan, dtype=np.float32)
    steps = Steps(positions, read[positions], np.asarray(replacements, dtype=TOKENS), *[unscored] * 4)
    rewritten = read.copy()
    rewritten[positions] = replacements
    result = Regenerated(without_repeats(rewritten[rewritten != 0]), len(read), steps)
    return regenerated_user(log, user, max_items, result)


@pytest.mark.parametrize(
    ("sequence", "replacements", "read", "rows"),
    [
        pytest.param([1, 50, 2], [3], 9, [("original", [1, 2]), ("regenerated", [1, 3, 2])], id="replaced"),
        pytest.param([1, 50, 2], [0], 9, [("original", [1, 2])], id="deleted"),
        pytest.param([1, 50, 2], [1], 9, [("original", [1, 2])], id="replaced by its neighbour"),
        pytest.param([1, 50, 1, 2], [1], 9, [("original", [1, 1, 2])], id="replaced by both its neighbours"),
        pytest.param([1, 1, 2], [], 9, [("original", [1, 1, 2])], id="nothing to replace, a repeat collapsed"),
        pytest.param([1, 50, 1, 2], [0], 9, [("original", [1, 1, 2])], id="deleted, a repeat collapsed"),
        pytest.param([1, 2, 3], [], 2, [("original", [1, 2, 3])], id="nothing to replace, the oldest not read"),
        pytest.param([1, 50], [3], 9, [("regenerated", [1, 3])], id="an original of one item"),
        pytest.param([50, 1], [0], 9, [], id="one item in all"),
    ],
)
def test_a_user_has_the_original_row_and_one_more_where_something_was_replaced(sequence, replacements, read, rows):
    log = log_of(sequence)
    made = composite_rows(log, [made_of(log, 0, replacements, read)])
    assert [(row.origin, row.token_ids.tolist()) for row in made] == rows


@pytest.mark.parametrize("identifier", ["NA", "null", '"z', 'f"', "a b", "50%", "#N/A N/A", "é"])
def test_an_identifier_comes_back_from_the_inter_file_whatever_it_is(identifier: str) -> None:
    """A reader that knows quotes and words for missing values, as RecBole's does, reads each field as written."""
    written = list(csv.reader(inter_lines([identifier], [[identifier, identifier]]), delimiter="\t"))

    assert [unquote(field) for field in written[0]] == [identifier] * 3
    assert not MISSING_WORDS.intersection(written[0])

"""Histories and logits in pieces: where a piece begins and ends, and how large it may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.decoding.blocks import BLOCK_ELEMENTS, MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, View, block_rows, logits_in_blocks
from models.decoding.regenerator import Regenerator
from models.decoding.rules import DEFAULT_RULE, RULES, RuleEntry, describe_rules
from models.decoding.window import Choices, StateReader, Window, split_spans
from models.network.packing import Packed, pack
from models.vocabulary import TokenRange
from tests.conftest import random_decoder


def histories(*lengths: int) -> list[np.ndarray]:
    return [np.arange(1, length + 1, dtype=np.int32) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((), []),
        ((0, 0), [(0, 2)]),
        ((3, 2, 4), [(0, 2), (2, 3)]),  # 3 + 2 fit exactly
        ((3, 3, 3), [(0, 1), (1, 2), (2, 3)]),
        ((9, 1, 4, 9), [(0, 1), (1, 3), (3, 4)]),  # one that is longer alone stands alone
        ((1, 9), [(0, 1), (1, 2)]),
        ((5, 0, 1), [(0, 2), (2, 3)]),
    ],
)
def test_spans_are_as_long_as_the_positions_allow(lengths: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert list(split_spans(histories(*lengths), 5)) == expected


def test_a_window_lists_the_source_items_of_each_history() -> None:
    """Target tokens are 3 and 4; the second history is empty, the third has none but target items."""
    rows = [np.asarray(row, dtype=np.int32) for row in ([1, 3, 5], [], [4, 3], [3, 2])]
    window = Window.of(rows, TokenRange(3, 4))

    assert window.sequences_N.tolist() == [0, 0, 3]
    assert window.positions_N.tolist() == [0, 2, 1]
    assert window.tokens_N.tolist() == [1, 5, 2]
    assert [window.items_of(index) for index in range(4)] == [slice(0, 2), slice(2, 2), slice(2, 2), slice(2, 3)]


def test_a_window_of_nothing_has_no_source_item() -> None:
    window = Window.of([], TokenRange(3, 4))

    assert (len(window.sequences_N), len(window.positions_N), len(window.tokens_N)) == (0, 0, 0)


def test_before_a_rule_chooses_everything_is_deleted_and_nothing_weighed() -> None:
    choices = Choices.all_deleted(3)

    assert choices.replacements_N.tolist() == [0, 0, 0]
    assert choices.weights_4N.shape == (4, 3)
    assert np.isnan(choices.weights_4N).all()


def test_states_are_those_of_their_own_history_and_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several encoder calls, places chosen out of order of their histories' lengths, each against its history alone."""
    monkeypatch.setattr("models.decoding.window.ENCODER_POSITIONS", 6)
    decoder = random_decoder(20, seed=1)
    rows = histories(4, 3, 2, 9, 1)
    places = [(0, 3), (1, 0), (1, 2), (3, 8), (4, 0)]  # nothing of the third
    reader = StateReader(rows, *(np.asarray(column) for column in zip(*places, strict=True)))
    with torch.inference_mode():
        found = reader.hidden_states(decoder, np.asarray([0, 1, 2, 3, 4]))
        some = reader.hidden_states(decoder, np.asarray([2, 3]))
        alone = [
            StateReader([rows[row]], np.zeros(1, dtype=np.int64), np.asarray([position])).hidden_states(
                decoder, np.zeros(1, dtype=np.int64)
            )[0]
            for row, position in places
        ]

    assert torch.equal(found, torch.stack(alone))
    assert torch.equal(some, torch.stack([alone[2], alone[3]]))


def test_no_history_is_encoded_twice_and_none_with_more_positions_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[list[int]] = []

    def seen(rows: list[np.ndarray], *arguments: object) -> Packed:
        lengths.append([len(row) for row in rows])
        return pack(rows, *arguments)

    monkeypatch.setattr("models.decoding.window.pack", seen)
    monkeypatch.setattr("models.decoding.window.ENCODER_POSITIONS", 6)
    every = np.arange(5)
    reader = StateReader(histories(4, 3, 2, 9, 1), every, np.zeros(5, dtype=np.int64))
    with torch.inference_mode():
        reader.hidden_states(random_decoder(20, seed=1), every)

    assert lengths == [[4], [3, 2], [9], [1]]


@pytest.mark.parametrize(
    ("num_tokens", "elements", "rows"),
    [
        (100, 3200, 32),
        (100, 3299, 32),
        (1000, 3200, MIN_BLOCK_ROWS),
        (2, 1 << 20, MAX_BLOCK_ROWS),
        (BLOCK_ELEMENTS // 64, None, 64),
    ],
)
def test_a_block_has_as_many_rows_as_its_logits_may_between_the_bounds(
    num_tokens: int, elements: int | None, rows: int
) -> None:
    assert block_rows(torch.zeros(num_tokens, 1), elements) == rows


def test_logits_of_all_blocks_are_the_product_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.decoding.blocks.BLOCK_ELEMENTS", 1)
    generator = torch.Generator().manual_seed(3)
    view = View(torch.randn(3 * MIN_BLOCK_ROWS + 1, 4, generator=generator), torch.randn(9, 4, generator=generator))
    blocks = list(logits_in_blocks([view]))

    assert [len(block) for block in blocks] == [MIN_BLOCK_ROWS] * 3 + [1]
    torch.testing.assert_close(torch.cat(blocks), view.hidden_ND @ view.table_VD.T)


class Prepared:
    """A rule that notes what it was prepared for."""

    def __init__(self) -> None:
        self.bundles: list[Bundle] = []

    def prepare(self, bundle: Bundle) -> None:
        self.bundles.append(bundle)


PREPARED = Prepared()


def test_a_regenerator_prepares_its_rule_before_the_first_call(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "prepared", RuleEntry(f"{__name__}:PREPARED", "is prepared"))
    Regenerator(bundle, "prepared")

    assert [bundle] == PREPARED.bundles


def test_the_default_rule_is_described_first() -> None:
    assert describe_rules().startswith(f"'{DEFAULT_RULE}'")
    assert all(f"'{name}' {entry.summary}." in describe_rules() for name, entry in RULES.items())


def test_likely_items_are_the_best_of_the_target_after_each_history_and_none_after_an_empty_one(bundle: Bundle) -> None:
    """By the target expert's own softmax over its domain; whatever the rule, and only when they are asked for."""
    target = bundle.vocabulary.token_range("food")
    rows = [np.asarray(row, dtype=np.int32) for row in ([1, 22, 45], [], [30])]
    found = Regenerator(bundle, "paper").regenerate(rows, "food", num_likely=4)
    unasked = Regenerator(bundle, "paper").regenerate(rows, "food")
    reader = StateReader([rows[0], rows[2]], np.asarray([0, 1]), np.asarray([2, 0]))
    expert = bundle.expert("food")
    with torch.inference_mode():
        hidden_RD = reader.hidden_states(expert, np.asarray([0, 1]))
        best = (hidden_RD @ expert.item_embeddings_VD[target.columns].T).topk(4, dim=1).indices + target.first

    assert [[item.token_id for item in row.likely] for row in found] == [best[0].tolist(), [], best[1].tolist()]
    assert all(row.likely == () for row in unasked)


def test_likely_items_are_told_after_as_many_items_as_decoders_have_positions(bundle: Bundle) -> None:
    """A contrastive rule decides one item more, which no decoder could read beside."""
    row = np.asarray([1 + 7 * n % 60 for n in range(40)], dtype=np.int32)
    regenerator = Regenerator(bundle, "paper")
    long, read = regenerator.regenerate([row, row[-bundle.config.max_length :]], "food", num_likely=4)
    (nothing,) = regenerator.regenerate([row[:0]], "food", num_likely=4)

    assert (long.num_read, len(long.likely)) == (33, 4)
    assert long.likely == read.likely
    assert nothing.likely == ()

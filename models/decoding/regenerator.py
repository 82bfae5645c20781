"""
Stage 2: mixed sequences -> target-only sequences (eq. 3-5).

A rule (see ``rules``) chooses for each source item; this file cuts sequences, hands them to the rule in windows, and
puts its choices in place. Every decoder reads the original mixed sequence once; replacements are not fed back
(teacher forcing).

Shapes: N = source items of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle, without_guards
from models.data.dataset import TOKENS, TokenArray
from models.decoding.anticipate import rank_expected
from models.decoding.rules import DEFAULT_DIAL, Dial, Rule, load_rule
from models.decoding.window import Choices, StateReader, Window, read_target_expert, split_spans
from models.vocabulary import PADDING

# Positions of sequences decided together: bounds the memory of gathered hidden states (3 decoders x 128 floats each).
WINDOW_POSITIONS = 1 << 15


@dataclass(frozen=True)
class Steps:
    """
    What was decided at each source position of one sequence, in order; parallel arrays.

    Args:
        positions: 0-based positions in the sequence that was regenerated.
        source_tokens: the item that stood there.
        replacements: the target token that replaces it, 0 where it is deleted.
        alpha, beta, score, margin: see ``kernels.paper_rule.Decisions``; NaN at position 0, which is not scored. Rule
            ``anticipate`` has no alpha and beta (NaN), its score is a log-probability, and what it deletes has none.
    """

    positions: npt.NDArray[np.int64]
    source_tokens: TokenArray
    replacements: TokenArray
    alpha: npt.NDArray[np.float32]
    beta: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]


class LikelyItem(NamedTuple):
    """An item of the target and its log-probability, in nats, by the target expert."""

    token_id: int
    log_probability: float


@dataclass(frozen=True)
class Regenerated:
    """
    One regenerated sequence.

    Args:
        token_ids: target items only, in the order of the input, consecutive repeats collapsed.
        num_read: items of the input that were read: its last ``Regenerator.max_items``.
        steps: one entry per source item read.
        likely: what the target expert expects next, the most probable first; as many as were asked for.
    """

    token_ids: TokenArray
    num_read: int
    steps: Steps
    likely: tuple[LikelyItem, ...] = ()

    @property
    def kept(self) -> int:
        """Target items of the input."""
        return self.num_read - len(self.steps.positions)

    @property
    def replaced(self) -> int:
        """Source items that became target items."""
        return int(np.count_nonzero(self.steps.replacements))

    @property
    def deleted(self) -> int:
        """Source items that were dropped."""
        return len(self.steps.positions) - self.replaced


class Regenerator:
    """
    A bundle and a rule, ready to regenerate; holds no state between calls, so threads may share it.

    Args:
        bundle: base and experts, and what validation chose for each target.
        rule: how to decide.
        dial: ``auto`` leaves undone what the bundle's guard of a target found to be of no use, under rule
            ``anticipate``, which it was tried with; other rules do everything, and so does ``all``.
    """

    def __init__(self, bundle: Bundle, rule: Rule, *, dial: Dial = DEFAULT_DIAL) -> None:
        self.bundle = bundle if dial == "auto" else without_guards(bundle)
        self.rule: Rule = rule
        self._decoding = load_rule(rule)
        self._decoding.prepare(bundle)

    @property
    def max_items(self) -> int:
        """Most items of a sequence that are read."""
        return self._decoding.max_items(self.bundle.config)

    @torch.inference_mode()
    def regenerate(
        self, sequences: Sequence[TokenArray], target: str, *, training_rows: bool = False, num_likely: int = 0
    ) -> list[Regenerated]:
        """
        Rewrite every source item of every sequence into a target item, or delete it.

        1. Cut each sequence to its last ``max_items`` items and list its source items.
        2. Let the rule choose for each: a target item, or to delete it.
        3. Put kept and replacing items in order and collapse consecutive repeats.

        Args:
            sequences: mixed token sequences, any lengths, empty ones included.
            target: name of the target domain.
            training_rows: the bundle was trained on these very sequences, and recommenders will be. Rule
                ``anticipate`` then withholds what the expert would recite (see there); the contrastive rules are the
                paper's and do the same either way.
            num_likely: how many of the items that the target expert expects next to tell beside, whatever the rule and
                the guard: items of the history among them, and none after an empty one.

        Returns:
            One result per sequence, in order. A sequence's result does not depend on the others of the call.

        Raises:
            UnknownDomainError: the bundle has no such domain.
        """
        target_range = self.bundle.vocabulary.token_range(target)
        histories = [np.asarray(sequence, dtype=TOKENS)[-self.max_items :] for sequence in sequences]
        results: list[Regenerated] = []
        for first, last in split_spans(histories, WINDOW_POSITIONS):
            window = Window.of(histories[first:last], target_range)
            choices = self._decoding.choose(window, self.bundle, target, training_rows=training_rows)
            likely = self._likely(window, target, num_likely)
            results += [_assemble(window, index, choices, likely[index]) for index in range(len(window.histories))]
        return results

    def _likely(self, window: Window, target: str, count: int) -> list[tuple[LikelyItem, ...]]:
        """The *count* items that the target expert expects most after every history of *window*."""
        items: list[tuple[LikelyItem, ...]] = [()] * len(window.histories)
        if not count:
            return items
        recent = [history[-self.bundle.config.max_length :] for history in window.histories]
        rows_R = np.flatnonzero([len(history) > 0 for history in recent])
        if not len(rows_R):
            return items
        lasts_R = np.asarray([len(recent[row]) - 1 for row in rows_R], dtype=np.int64)
        reader = StateReader(recent, rows_R, lasts_R)
        views = read_target_expert(self.bundle, target, reader, np.arange(len(rows_R)))
        found = rank_expected(views, window.target_range, count)
        for row, tokens_K, values_K in zip(rows_R, found.token_ids_RK, found.log_probabilities_RK, strict=True):
            items[row] = tuple(map(LikelyItem, tokens_K.tolist(), values_K.tolist()))
        return items


def _assemble(window: Window, index: int, choices: Choices, likely: tuple[LikelyItem, ...]) -> Regenerated:
    history, items = window.histories[index], window.items_of(index)
    rewritten = history.copy()
    rewritten[window.positions_N[items]] = choices.replacements_N[items]
    steps = Steps(
        window.positions_N[items], window.tokens_N[items], choices.replacements_N[items], *choices.weights_4N[:, items]
    )
    return Regenerated(without_repeats(rewritten[rewritten != PADDING]), len(history), steps, likely)


def without_repeats(sequence: TokenArray) -> TokenArray:
    """
    *sequence* with consecutive repeats collapsed.

    >>> without_repeats(np.array([7, 7, 8, 7])).tolist()
    [7, 8, 7]
    """
    repeats = np.zeros(len(sequence), dtype=bool)
    repeats[1:] = sequence[1:] == sequence[:-1]
    return sequence[~repeats]

"""
A history of (domain, item id) before and after: what of it a model reads, and what stays when it has been regenerated.

The model knows the items of its vocabulary. Of the others, those of the target domain stay where they are, for they
need no rewriting: a log is always newer than a bundle. Those of other domains are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.data.dataset import TOKENS, TokenArray
from models.decoding.regenerator import Regenerated
from models.errors import VocabularyError
from models.vocabulary import PADDING, Vocabulary

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReadHistory:
    """
    What a model reads of one history, and what it passes over. Positions count from 0 in the history as submitted.

    Args:
        token_ids: the last known items, at most as many as the model reads.
        positions: where each of them stands.
        unknown_positions: every item that the model does not know.
        passed_positions: those of them that stay: of the target domain, and no older than the first item read.
        num_skipped: those of other domains.
        num_truncated: items older than the first item read that would else have been read or have stayed.
    """

    token_ids: TokenArray
    positions: tuple[int, ...]
    unknown_positions: tuple[int, ...]
    passed_positions: tuple[int, ...]
    num_skipped: int
    num_truncated: int


@dataclass(frozen=True)
class Rewritten:
    """
    What stays of a history, in its order, repeats included; parallel arrays.

    Args:
        positions: of the history as submitted.
        token_ids: the target item that stands there now; 0 where an unknown one stayed.
        replaced: whether it took a source item's place.
        scores: of the decision; NaN where nothing was replaced or nothing scored.
    """

    positions: Positions
    token_ids: TokenArray
    replaced: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]


def read_history(
    domains: Sequence[str], item_ids: Sequence[str], vocabulary: Vocabulary, *, target: str, max_items: int
) -> ReadHistory:
    """The last *max_items* known items of a history, oldest first, as tokens, and what becomes of the others."""
    token_ids: list[int] = []
    positions: list[int] = []
    unknown: list[int] = []
    for position, (domain, item_id) in enumerate(zip(domains, item_ids, strict=True)):
        try:
            token_ids.append(vocabulary.token_id(domain, item_id))
            positions.append(position)
        except VocabularyError:
            unknown.append(position)
    of_target = [position for position in unknown if domains[position] == target]
    first_read = positions[-max_items] if len(positions) > max_items else 0
    passed = tuple(position for position in of_target if position >= first_read)
    return ReadHistory(
        token_ids=np.asarray(token_ids[-max_items:], dtype=TOKENS),
        positions=tuple(positions[-max_items:]),
        unknown_positions=tuple(unknown),
        passed_positions=passed,
        num_skipped=len(unknown) - len(of_target),
        num_truncated=max(0, len(token_ids) - max_items) + len(of_target) - len(passed),
    )


def rewritten(read: ReadHistory, result: Regenerated | None) -> Rewritten:
    """
    *result* with the passed items in their places, one entry per item that stays.

    Args:
        read: what the model was given.
        result: what it answered; None where it was given nothing.
    """
    passed = np.asarray(read.passed_positions, dtype=np.int64)
    if result is None:
        nothing = np.full(len(passed), np.nan, dtype=np.float32)
        return Rewritten(passed, np.zeros(len(passed), TOKENS), np.zeros(len(passed), np.bool_), nothing)
    tokens, replaced, scores = decided(read.token_ids, result)
    stays = tokens != PADDING
    places = np.asarray(read.positions, dtype=np.int64)[stays]
    if not len(passed):
        return Rewritten(places, tokens[stays], replaced[stays], scores[stays])
    positions = np.concatenate([places, passed])
    order = np.argsort(positions)
    return Rewritten(
        positions[order],
        np.concatenate([tokens[stays], np.zeros(len(passed), TOKENS)])[order],
        np.concatenate([replaced[stays], np.zeros(len(passed), np.bool_)])[order],
        np.concatenate([scores[stays], np.full(len(passed), np.nan, np.float32)])[order],
    )


def decided(
    token_ids: TokenArray, result: Regenerated
) -> tuple[TokenArray, npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """
    What became of each item that was read: its token now (0: deleted), whether it was replaced, and the score of that.

    Args:
        token_ids: the items read, all of them: shape [result.num_read].
        result: of regenerating them.
    """
    steps = result.steps
    tokens = token_ids.copy()
    tokens[steps.positions] = steps.replacements
    replaced = np.zeros(len(tokens), dtype=np.bool_)
    replaced[steps.positions] = steps.replacements != PADDING
    scores = np.full(len(tokens), np.nan, dtype=np.float32)
    scores[steps.positions] = np.where(steps.replacements != PADDING, steps.score, np.nan)
    return tokens, replaced, scores


def sequence_of(
    read: ReadHistory, result: Regenerated | None, item_ids: Sequence[str], vocabulary: Vocabulary
) -> list[str]:
    """
    The rewritten sequence as item ids, consecutive repeats collapsed.

    Args:
        read, result: as of ``rewritten``.
        item_ids: of the history as submitted.
        vocabulary: the model's.
    """
    if not read.passed_positions:
        return [] if result is None else vocabulary.item_ids_of(result.token_ids)
    items = items_of(rewritten(read, result), item_ids, vocabulary)
    return [item for place, item in enumerate(items) if place == 0 or items[place - 1] != item]


def items_of(stayed: Rewritten, item_ids: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """The item id of every entry: the vocabulary's, or as submitted where it does not know it."""
    items = vocabulary.item_ids_of(stayed.token_ids.tolist())  # padding has an empty one
    for place in np.flatnonzero(stayed.token_ids == PADDING).tolist():
        items[place] = item_ids[stayed.positions[place]]
    return items

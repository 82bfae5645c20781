"""
Rule ``anticipate``: what the target expert expects next stands in for the source items that made it expect it.

A *run* is a stretch of neighbouring source items. The target expert theta_T reads the history up to and including the
run's last item, and the run's last m = min(hints, length of the run) items are replaced by the m most probable
target items under p = softmax(h . e_x), x in the target domain, that the row does not hold yet, the most probable one
last; the run's earlier items are deleted.

This rule is ours, not the paper's, and it contrasts nothing: one expert is read. The paper's rules look at the history
*before* a source item and choose what stands in its place. The item itself, the freshest thing known, is never read,
so neighbouring items get the same answer, and most answers repeat a neighbour and collapse. Here the run is read whole,
and its answers differ. They are hints: they say what the other domains tell about the target. In training rows they
stand before the item that they announce, so a recommender learns to take the hint, and a live history has it too.

The expert recites rows that it was trained on: there it ranks the item that really came next among its ten best
several times as often as in rows that it has not seen. A recommender trained on such hints would trust them too much.
So in training rows the item that really came next is no candidate for the run before it (it is *withheld*), and source
items after the last target item are deleted: nothing after them could be learned.

Shapes: R = runs, D = width, X = items of the target domain, K = candidates kept per run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import TokenArray
from models.decoding.blocks import View, log_softmax, logits_in_blocks
from models.decoding.window import Choices, StateReader, Window, read_target_expert
from models.network.decoder import DecoderConfig
from models.vocabulary import TokenRange

# Items that a run leaves behind at most, unless the bundle's guard chose fewer. With ten, rows are mostly predictions.
RUN_ITEMS = 3


@dataclass(frozen=True)
class SourceRun:
    """
    Neighbouring source items of one sequence, first..last (0-based positions, both inclusive).

    ``following`` is the target item right after them, or 0 at the end of the sequence.
    """

    first: int
    last: int
    following: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Expected:
    """The expert's most probable target items at R positions, best first, both fields [R, K]."""

    token_ids_RK: npt.NDArray[np.int64]
    log_probabilities_RK: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hint:
    """One replacement: where, what, its log-probability, and its lead over the best candidate left over."""

    position: int
    token_id: int
    log_probability: float
    margin: float


def find_runs(history: TokenArray, target_range: TokenRange) -> list[SourceRun]:
    """
    The runs of a sequence, in order.

    >>> [(run.first, run.last, run.following) for run in find_runs(np.asarray([9, 1, 8, 9, 2, 8]), TokenRange(1, 5))]
    [(0, 0, 1), (2, 3, 2), (5, 5, 0)]
    """
    source_T = ~target_range.mask(history)
    edges = np.diff(np.concatenate([[0], source_T.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [
        SourceRun(int(start), int(stop) - 1, int(history[stop]) if stop < len(history) else 0)
        for start, stop in zip(starts, stops, strict=True)
    ]


def rank_expected(views: Sequence[View], target_range: TokenRange, count: int) -> Expected:
    """
    The *count* most probable items of the target domain (all of them where it has fewer) at each of R positions.

    Args:
        views: of every part of the target expert the hidden states [R, D] at the runs' last items, and its item table.
        target_range: the target domain's tokens.
        count: K.
    """
    count = min(count, len(target_range))
    tokens, values = [np.empty((0, count), dtype=np.int64)], [np.empty((0, count), dtype=np.float32)]
    candidates = [View(view.hidden_ND, view.table_VD[target_range.columns]) for view in views]
    for logits_CX in logits_in_blocks(candidates):
        best_CK, column_CK = _best(log_softmax(logits_CX), count)
        tokens.append((column_CK + target_range.first).cpu().numpy())
        values.append(best_CK.cpu().numpy())
    token_ids_RK, log_probabilities_RK = np.concatenate(tokens), np.concatenate(values)
    # The best come first, but equals in any order; the lowest token is first among them, as everywhere.
    has_equals_R = (log_probabilities_RK[:, 1:] == log_probabilities_RK[:, :-1]).any(axis=1)
    order_SK = np.lexsort((token_ids_RK[has_equals_R], -log_probabilities_RK[has_equals_R]), axis=1)
    for values_RK in (token_ids_RK, log_probabilities_RK):
        values_RK[has_equals_R] = np.take_along_axis(values_RK[has_equals_R], order_SK, axis=1)
    return Expected(token_ids_RK, log_probabilities_RK)


def _best(values_CX: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """
    The *count* largest values and their columns; of equals at the last place the lowest columns are taken.

    Which of them topk takes depends on how many are asked for, and so, here, on the other sequences of the call.
    """
    if count == values_CX.shape[1]:
        every = values_CX.sort(dim=1, descending=True, stable=True)
        return every.values, every.indices
    # One more than wanted: where it equals the last one wanted, more share that place than it has room for.
    best_CK, column_CK = values_CX.topk(count + 1, dim=1)
    tied_C = best_CK[:, count] == best_CK[:, count - 1]
    best_CK, column_CK = best_CK[:, :count], column_CK[:, :count]
    if tied_C.any():
        ordered = values_CX[tied_C].sort(dim=1, descending=True, stable=True)
        best_CK[tied_C], column_CK[tied_C] = ordered.values[:, :count], ordered.indices[:, :count]
    return best_CK, column_CK


def count_candidates(histories: Sequence[TokenArray]) -> int:
    """K that always suffices: a run's hints, what the longest row may hold already, one withheld, one runner-up."""
    return RUN_ITEMS + max((len(history) for history in histories), default=0) + 2


def choose_hints(
    history: TokenArray,
    runs_of_history: Sequence[SourceRun],
    expected: Expected,
    first_row: int,
    *,
    training_row: bool,
    most: int = RUN_ITEMS,
) -> Iterator[Hint]:
    """
    The replacements of one sequence; every source item without one is deleted.

    Args:
        history: the mixed sequence.
        runs_of_history: its runs.
        expected: what the expert expects at the end of many sequences' runs.
        first_row: row of *expected* that belongs to the first of *runs_of_history*.
        training_row: the expert was trained on this sequence: see *withheld* at the top.
        most: hints a run, 1 to RUN_ITEMS.
    """
    assert 1 <= most <= RUN_ITEMS
    met: set[int] = set()
    read = 0
    for row, run in enumerate(runs_of_history, start=first_row):
        met.update(int(token) for token in history[read : run.first])
        read = run.last + 1
        if training_row and not run.following:
            return
        refused = met | {run.following} if training_row else met
        listed = (
            (int(token), float(value))
            for token, value in zip(expected.token_ids_RK[row], expected.log_probabilities_RK[row], strict=True)
            if int(token) not in refused
        )
        num_hints = min(most, len(run))
        chosen = [pair for pair, _ in zip(listed, range(num_hints + 1), strict=False)]
        for rank, (token, value) in enumerate(chosen[:num_hints]):
            rest = chosen[num_hints:]
            yield Hint(run.last - rank, token, value, value - rest[0][1] if rest else float("inf"))
            met.add(token)


class AnticipateRule:
    """The rule; a ``DecodingRule``."""

    def max_items(self, config: DecoderConfig) -> int:
        """As many as decoders have positions: every item is read."""
        return config.max_length

    def prepare(self, bundle: Bundle) -> None:
        """Nothing of it is compiled."""

    def choose(self, window: Window, bundle: Bundle, target: str, *, training_rows: bool) -> Choices:
        """See ``DecodingRule``; a choice has no alpha and beta, its score is a log-probability."""
        most = _most_hints(bundle, target, training_rows=training_rows)
        if not most:
            return Choices.all_deleted(len(window.tokens_N))
        runs_B = [find_runs(history, window.target_range) for history in window.histories]
        expected = _expected_after(runs_B, window, bundle, target)
        choices, first_row = Choices.all_deleted(len(window.tokens_N)), 0
        for index, (history, own_runs) in enumerate(zip(window.histories, runs_B, strict=True)):
            items = window.items_of(index)
            positions_N = window.positions_N[items]
            for hint in choose_hints(history, own_runs, expected, first_row, training_row=training_rows, most=most):
                at = items.start + int(np.searchsorted(positions_N, hint.position))
                choices.replacements_N[at] = hint.token_id
                choices.weights_4N[2:, at] = hint.log_probability, hint.margin
            first_row += len(own_runs)
        return choices


def _expected_after(runs_B: Sequence[Sequence[SourceRun]], window: Window, bundle: Bundle, target: str) -> Expected:
    """What the target expert expects at the end of every run, sequence by sequence."""
    sequences_R = np.repeat(np.arange(len(runs_B)), [len(own_runs) for own_runs in runs_B])
    last_R = np.asarray([run.last for own_runs in runs_B for run in own_runs], dtype=np.int64)
    reader = StateReader(window.histories, sequences_R, last_R)
    views = read_target_expert(bundle, target, reader, np.arange(len(last_R)))
    return rank_expected(views, window.target_range, count_candidates(window.histories))


def _most_hints(bundle: Bundle, target: str, *, training_rows: bool) -> int:
    """Hints a run by the target's guard, where there is one; 0 replaces nothing."""
    guard = bundle.tuning(target).guard
    if guard is None:
        return RUN_ITEMS
    return min(RUN_ITEMS, guard.training_hints if training_rows else guard.serving_hints)


ANTICIPATE = AnticipateRule()

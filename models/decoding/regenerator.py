"""
Stage 2: mixed sequences -> target-only sequences (eq. 3-5).

Teacher-forced: one causal pass of every needed decoder over the original mixed sequence; replacements are not fed
back. Under the contrastive rules a decision reads what came before the source item, so that one at position 0 is
deleted; under rule ``anticipate`` it reads the source item, too.

Shapes: B = sequences, T = positions, N = source positions, R = runs of them, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import TOKENS, TokenArray
from models.decoding.anticipate import Expected, SourceRun, candidates_needed, expected_items, hints, runs
from models.decoding.contrastive import DELETED, Decisions, View, decide, prepare
from models.decoding.rules import ANTICIPATE, RULES, Rule
from models.network.decoder import Decoder, DecoderConfig
from models.network.packing import pack
from models.vocabulary import TokenRange

# Positions of one encoder call at most: enough for full-speed products, 32 sequences of 128.
ENCODER_POSITIONS = 4096
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
        alpha, beta, score, margin: see ``contrastive.Decisions``; NaN at position 0, which is not scored. Rule
            ``anticipate`` has no alpha and beta (NaN), its score is a log-probability, and what it deletes has none.
    """

    positions: npt.NDArray[np.int64]
    source_tokens: TokenArray
    replacements: TokenArray
    alpha: npt.NDArray[np.float32]
    beta: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Regenerated:
    """
    One regenerated sequence.

    Args:
        token_ids: target items only, in the order of the input, consecutive repeats collapsed.
        num_read: items of the input that were read: its last ``Regenerator.max_items``.
        steps: one entry per source item read.
    """

    token_ids: TokenArray
    num_read: int
    steps: Steps

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
    """A bundle and a rule, ready to regenerate; holds no state between calls, so threads may share it."""

    def __init__(self, bundle: Bundle, rule: Rule) -> None:
        assert rule in RULES
        self.bundle = bundle
        self.rule: Rule = rule
        if rule != ANTICIPATE:
            prepare(rule, bundle.base.item_embeddings_VD)

    @property
    def max_items(self) -> int:
        """Most items of a sequence that are read."""
        return most_items(self.bundle.config, self.rule)

    def regenerate(
        self, sequences: Sequence[TokenArray], target: str, *, training_rows: bool = False
    ) -> list[Regenerated]:
        """
        Rewrite every source item of every sequence into a target item, or delete it.

        1. Cut each sequence to its last ``max_items`` items and list its source positions.
        2. Encode the histories by the decoders that the rule asks, each only where needed.
        3. Decide all source positions.
        4. Put kept and replacing items in order and collapse consecutive repeats.

        Args:
            sequences: mixed token sequences, any lengths, empty ones included.
            target: name of the target domain.
            training_rows: the bundle was trained on these very sequences, and recommenders will be. Rule
                ``anticipate`` then withholds what the expert would recite (see there); the contrastive rules are the
                paper's and do the same either way.

        Returns:
            One result per sequence, in order. A sequence's result does not depend on the others of the call.

        Raises:
            UnknownDomainError: the bundle has no such domain.
        """
        target_range = self.bundle.vocabulary.token_range(target)
        histories = [np.asarray(sequence, dtype=TOKENS)[-self.max_items :] for sequence in sequences]
        results: list[Regenerated] = []
        for first, last in _spans(histories, WINDOW_POSITIONS):
            window = histories[first:last]
            if self.rule == ANTICIPATE:
                results += self._anticipate(window, target, target_range, training_rows=training_rows)
            else:
                results += self._contrast(window, target, target_range)
        return results

    @torch.inference_mode()
    def _contrast(self, histories: Sequence[TokenArray], target: str, target_range: TokenRange) -> list[Regenerated]:
        assert self.rule != ANTICIPATE
        source = _source_positions(histories, target_range)
        domain_N = self.bundle.vocabulary.domain_of_tokens(source.tokens_N)
        scored_N = source.positions_N > 0
        replacements_N = np.zeros(len(source.tokens_N), dtype=TOKENS)
        weights_4N = np.full((4, len(source.tokens_N)), np.nan, dtype=np.float32)
        base, target_expert = self.bundle.base, self.bundle.expert(target)
        # The item at a position does not read itself: the last one is no history of any.
        read = _Reader([history[:-1] for history in histories], source.sequences_N, source.positions_N - 1)
        shared = np.flatnonzero(scored_N)
        # One source domain after the other, so that all are decided in one call.
        shared = shared[np.argsort(domain_N[shared], kind="stable")]
        decisions = decide(
            self.rule,
            target_expert=View(read.hidden_states(target_expert, shared), target_expert.item_embeddings_VD),
            base=View(read.hidden_states(base, shared), base.item_embeddings_VD),
            source_experts=[
                View(read.hidden_states(expert, shared[domain_N[shared] == index]), expert.item_embeddings_VD)
                for index, expert in enumerate(self.bundle.experts)
                if (domain_N[shared] == index).any()
            ],
            target_range=target_range,
        )
        replacements_N[shared] = decisions.token_ids_N.cpu().numpy()
        weights_4N[:, shared] = _stacked(decisions)
        return [
            _assemble(history, source.of_sequence(index), replacements_N, weights_4N, source)
            for index, history in enumerate(histories)
        ]

    @torch.inference_mode()
    def _anticipate(
        self, histories: Sequence[TokenArray], target: str, target_range: TokenRange, *, training_rows: bool
    ) -> list[Regenerated]:
        source = _source_positions(histories, target_range)
        runs_B = [runs(history, target_range) for history in histories]
        expected = self._expected(histories, runs_B, target, target_range)
        replacements_N = np.zeros(len(source.tokens_N), dtype=TOKENS)
        weights_4N = np.full((4, len(source.tokens_N)), np.nan, dtype=np.float32)
        results, first_row = [], 0
        for index, (history, own_runs) in enumerate(zip(histories, runs_B, strict=True)):
            span = source.of_sequence(index)
            positions_N = source.positions_N[span]
            for hint in hints(history, own_runs, expected, first_row, training_row=training_rows):
                at = span.start + int(np.searchsorted(positions_N, hint.position))
                replacements_N[at] = hint.token_id
                weights_4N[2:, at] = hint.log_probability, hint.margin
            first_row += len(own_runs)
            results.append(_assemble(history, span, replacements_N, weights_4N, source))
        return results

    def _expected(
        self,
        histories: Sequence[TokenArray],
        runs_B: Sequence[Sequence[SourceRun]],
        target: str,
        target_range: TokenRange,
    ) -> Expected:
        """What the target expert expects at the end of every run, sequence by sequence."""
        sequences_R = np.repeat(np.arange(len(histories)), [len(own_runs) for own_runs in runs_B])
        last_R = np.asarray([run.last for own_runs in runs_B for run in own_runs], dtype=np.int64)
        expert = self.bundle.expert(target)
        hidden_RD = _Reader(histories, sequences_R, last_R).hidden_states(expert, np.arange(len(last_R)))
        return expected_items(View(hidden_RD, expert.item_embeddings_VD), target_range, candidates_needed(histories))


def most_items(config: DecoderConfig, rule: Rule) -> int:
    """Most items of a sequence that *rule* reads: as many as decoders have positions, one more if the last is not."""
    return config.max_length + (rule != ANTICIPATE)


@dataclass(frozen=True)
class _Sources:
    """All source items of a window of sequences, sequence by sequence, flat."""

    sequences_N: npt.NDArray[np.int64]
    positions_N: npt.NDArray[np.int64]
    tokens_N: TokenArray

    def of_sequence(self, index: int) -> slice:
        return slice(*np.searchsorted(self.sequences_N, [index, index + 1]))


class _Reader:
    """
    Encodes histories, side by side without padding, and picks states from them.

    Args:
        histories: what is encoded.
        sequences_N: per place, which history; rising.
        positions_N: per place, the position in it whose state is wanted.
    """

    def __init__(
        self,
        histories: Sequence[TokenArray],
        sequences_N: npt.NDArray[np.int64],
        positions_N: npt.NDArray[np.int64],
    ) -> None:
        self._histories = histories
        self._sequences_N = sequences_N
        self._positions_N = positions_N

    def hidden_states(self, decoder: Decoder, chosen_N: npt.NDArray[np.int64]) -> Tensor:
        """Hidden states [len(chosen_N), D] at the chosen places."""
        device = decoder.item_embeddings_VD.device
        hidden_ND = torch.empty(len(chosen_N), decoder.config.width, device=device)
        sequences_N = self._sequences_N[chosen_N]
        members = np.unique(sequences_N)
        starts = np.zeros(len(self._histories), dtype=np.int64)
        for first, last in _spans([self._histories[row] for row in members], ENCODER_POSITIONS):
            rows = members[first:last]
            packed = pack([self._histories[row] for row in rows], decoder.config.max_length, device)
            starts[rows] = packed.starts
            here = np.flatnonzero(np.isin(sequences_N, rows))
            places = starts[sequences_N[here]] + self._positions_N[chosen_N[here]]
            here_N, places_N = (torch.from_numpy(rows).to(device, non_blocking=True) for rows in (here, places))
            hidden_ND[here_N] = packed.encode(decoder)[places_N]
        return hidden_ND


def _spans(histories: Sequence[TokenArray], positions: int) -> Iterator[tuple[int, int]]:
    """Consecutive spans of sequences that together hold at most so many *positions*, or of one longer sequence."""
    first, held = 0, 0
    for index, history in enumerate(histories):
        if first < index and held + len(history) > positions:
            yield first, index
            first, held = index, 0
        held += len(history)
    if first < len(histories):
        yield first, len(histories)


def _source_positions(histories: Sequence[TokenArray], target_range: TokenRange) -> _Sources:
    lengths = np.asarray([len(history) for history in histories], dtype=np.int64)
    tokens = np.concatenate(histories) if histories else np.zeros(0, dtype=TOKENS)
    sequences = np.repeat(np.arange(len(histories)), lengths)
    positions = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = (tokens < target_range.first) | (tokens > target_range.last)
    return _Sources(sequences[source], positions[source], tokens[source])


def _stacked(decisions: Decisions) -> npt.NDArray[np.float32]:
    parts = (decisions.alpha_N, decisions.beta_N, decisions.score_N, decisions.margin_N)
    stacked: npt.NDArray[np.float32] = torch.stack(parts).cpu().numpy()
    return stacked


def _assemble(
    history: TokenArray,
    span: slice,
    replacements_N: TokenArray,
    weights_4N: npt.NDArray[np.float32],
    source: _Sources,
) -> Regenerated:
    rewritten = history.copy()
    rewritten[source.positions_N[span]] = replacements_N[span]
    rewritten = without_repeats(rewritten[rewritten != DELETED])
    steps = Steps(source.positions_N[span], source.tokens_N[span], replacements_N[span], *weights_4N[:, span])
    return Regenerated(rewritten, len(history), steps)


def without_repeats(sequence: TokenArray) -> TokenArray:
    """
    *sequence* with consecutive repeats collapsed.

    >>> without_repeats(np.array([7, 7, 8, 7])).tolist()
    [7, 8, 7]
    """
    repeats = np.zeros(len(sequence), dtype=bool)
    repeats[1:] = sequence[1:] == sequence[:-1]
    return sequence[~repeats]

"""
The protocol of decoding rules: a window of histories with their source items goes in, a choice for each comes out.

Shapes: N = source items of the window, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import TOKENS, TokenArray
from models.decoding.blocks import View
from models.network.decoder import Decoder, DecoderConfig
from models.network.expert_parts import ExpertPart
from models.network.packing import pack
from models.network.two_readings import combined, shares_at
from models.tuning import MIXED_ALONE
from models.vocabulary import TokenRange

# Positions of one encoder call at most: enough for full-speed products, 32 sequences of 128.
ENCODER_POSITIONS = 4096


@dataclass(frozen=True)
class Window:
    """
    Histories that are decoded together, and all their source items, flat, sequence by sequence.

    Args:
        histories: mixed token sequences, none longer than the rule reads.
        target_range: the target domain's tokens.
        sequences_N: per source item, which history it stands in; rising.
        positions_N: its 0-based position there; rising inside a history.
        tokens_N: the item.
    """

    histories: Sequence[TokenArray]
    target_range: TokenRange
    sequences_N: npt.NDArray[np.int64]
    positions_N: npt.NDArray[np.int64]
    tokens_N: TokenArray

    @classmethod
    def of(cls, histories: Sequence[TokenArray], target_range: TokenRange) -> Window:
        """The window of *histories*."""
        lengths = np.asarray([len(history) for history in histories], dtype=np.int64)
        tokens = np.concatenate([np.asarray([], dtype=TOKENS), *histories])
        sequences = np.repeat(np.arange(len(histories)), lengths)
        positions = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        source = ~target_range.mask(tokens)
        return cls(histories, target_range, sequences[source], positions[source], tokens[source])

    def items_of(self, index: int) -> slice:
        """Which of the N source items stand in history *index*."""
        return slice(*np.searchsorted(self.sequences_N, [index, index + 1]))


@dataclass(frozen=True)
class Choices:
    """
    What becomes of each of N source items.

    Args:
        replacements_N: the target token that replaces it, or PADDING: deleted.
        weights_4N: alpha, beta, score and margin of the choice; NaN where the rule has none.
    """

    replacements_N: TokenArray
    weights_4N: npt.NDArray[np.float32]

    @classmethod
    def all_deleted(cls, count: int) -> Choices:
        """The choices of *count* items before a rule fills them in."""
        return cls(np.zeros(count, dtype=TOKENS), np.full((4, count), np.nan, dtype=np.float32))


class DecodingRule(Protocol):
    """How source items are replaced; holds no state between calls, so threads may share it."""

    def max_items(self, config: DecoderConfig) -> int:
        """Most items of a sequence, counted from its end, that the rule reads with such decoders."""
        ...

    def prepare(self, bundle: Bundle) -> None:
        """Do what is slow once, before the first window of *bundle*."""
        ...

    def choose(self, window: Window, bundle: Bundle, target: str, *, training_rows: bool) -> Choices:
        """
        Choose for every source item of *window*.

        Args:
            window: histories and their source items.
            bundle: the networks.
            target: name of the target domain.
            training_rows: the bundle was trained on these very sequences, and recommenders will be.

        Returns:
            One choice per source item, in order. A history's choices do not depend on the others of the window.
        """
        ...


class StateReader:
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

    def of_domain(self, domain: TokenRange) -> StateReader:
        """The same places where items of *domain* alone are read: at its last item so far, at -1 before the first."""
        masks = [domain.mask(history) for history in self._histories]
        so_far = [np.cumsum(mask) for mask in masks]
        positions_N = np.asarray([so_far[row][at] - 1 for row, at in self._places()], dtype=np.int64)
        own = [history[mask] for history, mask in zip(self._histories, masks, strict=True)]
        return StateReader(own, self._sequences_N, positions_N)

    def stands_in(self, domain: TokenRange) -> npt.NDArray[np.bool_]:
        """Whether an item of *domain* stands at each place, [N]."""
        return np.asarray([int(self._histories[row][at]) in domain for row, at in self._places()], dtype=bool)

    def at(self, chosen_N: npt.NDArray[np.int64]) -> StateReader:
        """Of the places the chosen ones alone."""
        return StateReader(self._histories, self._sequences_N[chosen_N], self._positions_N[chosen_N])

    def begun(self) -> npt.NDArray[np.int64]:
        """Which places have read an item."""
        return np.flatnonzero(self._positions_N >= 0)

    def _places(self) -> Iterator[tuple[int, int]]:
        return zip(self._sequences_N.tolist(), self._positions_N.tolist(), strict=True)

    def hidden_states(self, decoder: Decoder, chosen_N: npt.NDArray[np.int64]) -> Tensor:
        """Hidden states [len(chosen_N), D] at the chosen places."""
        device = decoder.item_embeddings_VD.device
        hidden_ND = torch.empty(len(chosen_N), decoder.config.width, device=device)
        sequences_N = self._sequences_N[chosen_N]
        members = np.unique(sequences_N)
        starts = np.empty(len(self._histories), dtype=np.int64)  # written where a place is wanted
        for first, last in split_spans([self._histories[row] for row in members], ENCODER_POSITIONS):
            rows = members[first:last]
            packed = pack([self._histories[row] for row in rows], decoder.config.max_length, device)
            starts[rows] = packed.starts
            here = np.flatnonzero(np.isin(sequences_N, rows))
            places = starts[sequences_N[here]] + self._positions_N[chosen_N[here]]
            here_N, places_N = (torch.from_numpy(rows).to(device, non_blocking=True) for rows in (here, places))
            hidden_ND[here_N] = packed.encode(decoder)[places_N]
        return hidden_ND


def read_target_expert(bundle: Bundle, target: str, reader: StateReader, chosen_N: npt.NDArray[np.int64]) -> list[View]:
    """The expert of *target* at the chosen places: of each of its parts the weighed states [N, D], and the table."""
    domain = bundle.vocabulary.token_range(target)
    return [
        View(part.weighed(read_decoder(part, domain, reader, chosen_N)), part.decoder.item_embeddings_VD)
        for part in bundle.expert_parts(target)
    ]


def read_decoder(part: ExpertPart, domain: TokenRange, reader: StateReader, chosen_N: npt.NDArray[np.int64]) -> Tensor:
    """
    Hidden states [N, D] of one decoder at the chosen places, both its readings by their shares.

    A place reads its history up to itself, and its own share is that of the item that stands there
    (``network.two_readings``).
    """
    mixed_ND = reader.hidden_states(part.decoder, chosen_N)
    if part.own_shares == MIXED_ALONE:
        return mixed_ND
    chosen = reader.at(chosen_N)
    own = chosen.of_domain(domain)
    read_N = own.begun()
    own_ND = mixed_ND.clone()
    own_ND[torch.from_numpy(read_N).to(own_ND.device)] = own.hidden_states(part.decoder, read_N)
    return combined(mixed_ND, own_ND, shares_at(part.own_shares, chosen.stands_in(domain)))


def split_spans(histories: Sequence[TokenArray], positions: int) -> Iterator[tuple[int, int]]:
    """Consecutive spans of sequences that together have at most so many *positions*, or of one longer sequence."""
    first, num_read = 0, 0
    for index, history in enumerate(histories):
        if first < index and num_read + len(history) > positions:
            yield first, index
            first, num_read = index, 0
        num_read += len(history)
    if first < len(histories):
        yield first, len(histories)

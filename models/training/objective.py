"""
Training a decoder to predict items on mixed sequences: what the base and the experts have in common.

Base and experts differ in two things: which positions predict which item (``losses.next_item_targets`` or
``losses.domain_specific_targets``), and among which items (all of them, or one domain's).

Shapes: B = sequences, T = positions, N = rows, D = width, X = candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor

from models.data.dataset import Sequences, SequencesByNumber, TokenArray, pad_right
from models.network.decoder import Decoder
from models.network.losses import NO_TARGET, linear_cross_entropy, sampled_cross_entropy
from models.network.negatives import Negatives, PopularitySampler
from models.network.two_readings import encode_last
from models.ranking_metrics import ndcg_at_k, pessimistic_ranks
from models.training import distributed
from models.training.batches import epoch_generator, length_bucketed_batches
from models.vocabulary import TokenRange

# Sequences whose predicted positions are counted at once.
COUNTED_ROWS = 1024
# Validation rows: the mean NDCG of so many is known to a hundredth of itself, and they take 100 MB.
MOST_VALIDATED = 100_000
# Scores held at once while ranking, in elements (32 MB).
RANKING_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class HeldOut:
    """
    Rows to rank: each history and the item that followed it.

    Args:
        histories: non-empty token sequences, one per row.
        targets: the token to rank, one per row, inside the candidates it will be ranked among.
    """

    histories: SequencesByNumber
    targets: TokenArray


class PredictionBatch(NamedTuple):
    """
    One process's part of one step.

    Args:
        token_ids_BT: whole sequences, padded on the right with 0.
        negatives: of the step, in a sampled softmax.
        first_asked_B: place of each sequence's first item that is asked for; None: every item is.
        weight: predicted positions in these sequences over the mean of a step. As a step's sequences are of similar
            lengths, some predict a hundred positions and some thousands; weighting their mean losses alike would make
            those of short sequences count most.
    """

    token_ids_BT: Tensor
    negatives: Negatives | None = None
    first_asked_B: Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class PredictionObjective:
    """
    Predict items on mixed training sequences (an ``Objective`` of ``training.fit``).

    Args:
        name: stage name.
        fingerprint: of the data.
        sequences: training sequences; those without two items ask nothing and are left out.
        targets_of: [B, T] whole padded sequences -> [B, T-1] target tokens, 0 where a position asks nothing.
        candidates: tokens of the softmax and of the ranking.
        validation: rows that early stopping ranks.
        max_length: most positions that the decoder takes.
        batch_size: rows per step.
        seed: of the shuffles and of negatives.
        sampled_softmax: how many negatives to draw for each step, all its positions sharing them; as many as there are
            candidates, or more, takes each of them once, which is the whole softmax; so does None, with a gradient of
            the whole table instead of rows. Validation ranks among all candidates in any case.
        own_rows: of so many batches, drawn anew in every epoch, the sequences without anything but candidates, in
            [0, 1]: what a second reading reads (``network.two_readings``) is then trained, too.
        first_asked: for each of *sequences* the place of the first item that is asked for, where ``targets_of`` asks
            for the item that follows; None: every item is.
        validate_with: another metric than the NDCG@10 among all candidates after the histories as they are.
    """

    name: str
    fingerprint: str
    sequences: SequencesByNumber
    targets_of: Callable[[Tensor], Tensor]
    candidates: TokenRange
    validation: HeldOut
    max_length: int
    batch_size: int
    seed: int
    sampled_softmax: int | None = None
    own_rows: float = 0.0
    first_asked: npt.NDArray[np.int64] | None = None
    validate_with: Callable[[Decoder], float] | None = None

    def num_batches(self) -> int:
        """Steps per epoch."""
        return -(-len(self.sequences) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[PredictionBatch]:
        """
        Similar lengths together; each process gets rows of its own of every batch.

        Every position that an epoch predicts counts the same, whichever sequences share its step.
        """
        generator = epoch_generator(self.seed, self.name, epoch)
        # A generator of their own, so that the shuffles are the same with any number of negatives.
        negatives_generator = epoch_generator(self.seed, f"{self.name} negatives", epoch)
        own_generator = epoch_generator(self.seed, f"{self.name} own rows", epoch)
        num_processes, rank = distributed.num_processes(), distributed.rank()
        for rows in length_bucketed_batches(self._lengths_U, self.batch_size, generator):
            negatives = self._sampler.draw(negatives_generator) if self._sampler else None
            share = rows[rank::num_processes]
            without_foreign = own_generator.random() < self.own_rows
            if len(share):
                weight = float(self._num_targets_U[share].sum() / self._mean_targets)
                padded = self._padded(share, without_foreign=without_foreign)
                yield PredictionBatch(padded, negatives, self._first_asked_in(share), weight)
            else:
                # Fewer rows than processes: this one takes the same steps on some row that counts nothing.
                yield PredictionBatch(self._padded(rows[:1]), negatives, weight=0.0)

    def loss(self, module: Decoder, batch: PredictionBatch) -> Tensor:
        """Mean cross-entropy over the positions that predict an item, times the batch's weight."""
        device = module.item_embeddings_VD.device
        token_ids_BT = batch.token_ids_BT.to(device, non_blocking=True)
        targets_BT = self._targets(token_ids_BT, batch.first_asked_B)
        hidden_BTD = module(token_ids_BT[:, :-1])
        predicts_BT = targets_BT != NO_TARGET
        asked = hidden_BTD[predicts_BT], module.item_embeddings_VD, targets_BT[predicts_BT]
        if batch.negatives is None:
            return batch.weight * linear_cross_entropy(*asked, candidates=self.candidates.columns)
        token_ids_S, log_weights_S = (tensor.to(device, non_blocking=True) for tensor in batch.negatives)
        return batch.weight * sampled_cross_entropy(*asked, Negatives(token_ids_S, log_weights_S))

    def validate(self, module: Decoder) -> float | None:
        """Mean NDCG@10 over the validation rows; None if there are none."""
        if not len(self.validation.targets):
            return None
        if self.validate_with is not None:
            return self.validate_with(module)
        ranks_N = rank_held_out(module, self.validation, self.candidates)
        return float(ndcg_at_k(ranks_N, 10).mean())

    @cached_property
    def _sampler(self) -> PopularitySampler | None:
        if self.sampled_softmax is None:
            return None
        return PopularitySampler.of(self.sequences, self.candidates, self.sampled_softmax)

    def _padded(self, rows: npt.NDArray[np.int64], *, without_foreign: bool = False) -> Tensor:
        """The sequences at *rows*, each with one item more than the decoder's positions: the last is only a target."""
        longest = min(int(self._lengths_U[rows].max()), self.max_length + 1)
        if not without_foreign:
            return pad_right((self.sequences[row] for row in rows), longest)
        recent = [self.sequences[row][-longest:] for row in rows]
        own = [sequence[self.candidates.mask(sequence)] for sequence in recent]
        return pad_right(own, max(2, *map(len, own)))

    def _first_asked_in(self, rows: npt.NDArray[np.int64]) -> Tensor | None:
        """Places of the first items that are asked for, in the padded sequences at *rows*."""
        if self.first_asked is None:
            return None
        num_cut = np.maximum(self._lengths_U[rows] - (self.max_length + 1), 0)
        return torch.from_numpy(self.first_asked[rows] - num_cut)

    def _targets(self, token_ids_BT: Tensor, first_asked_B: Tensor | None) -> Tensor:
        """What each position of padded sequences predicts, [B, T-1]."""
        targets_BT = self.targets_of(token_ids_BT)
        if first_asked_B is None:
            return targets_BT
        places_T = torch.arange(1, token_ids_BT.shape[1], device=token_ids_BT.device)
        return torch.where(places_T >= first_asked_B.to(places_T.device)[:, None], targets_BT, NO_TARGET)

    @cached_property
    def _lengths_U(self) -> npt.NDArray[np.int64]:
        return np.fromiter(map(len, self.sequences), dtype=np.int64, count=len(self.sequences))

    @cached_property
    def _num_targets_U(self) -> npt.NDArray[np.int64]:
        """How many positions each sequence predicts."""
        return np.concatenate([(targets_BT != NO_TARGET).sum(dim=1).numpy() for targets_BT in self._all_targets()])

    def _all_targets(self) -> Iterator[Tensor]:
        """What the positions of all sequences predict, some sequences at once, each [B, T-1]."""
        numbers = np.arange(len(self.sequences))
        blocks = (numbers[start : start + COUNTED_ROWS] for start in range(0, len(numbers), COUNTED_ROWS))
        return (self._targets(self._padded(rows), self._first_asked_in(rows)) for rows in blocks)

    @cached_property
    def _mean_targets(self) -> float:
        """Predicted positions of a step, on average; above 0, as a domain may ask for none."""
        return max(1, int(self._num_targets_U.sum())) / self.num_batches()


def make_trainable(decoder: Decoder, *, sampled_softmax: int | None) -> None:
    """All weights train; the item table by the rows that a step reads, where its softmax is sampled."""
    decoder.requires_grad_(True)
    decoder.item_embedding.sparse = sampled_softmax is not None


def trainable_rows(sequences: Sequences) -> npt.NDArray[np.int64]:
    """Numbers of the sequences of at least two items: shorter ones have nothing to predict."""
    return np.flatnonzero(sequences.lengths >= 2)


def choose_held_out(train: Sequences, targets_U: TokenArray, candidates: TokenRange) -> HeldOut:
    """
    The users whose held-out item is a candidate and whose history is not empty.

    Of more than ``MOST_VALIDATED`` as many random ones, always the same: an epoch is to be longer than its validation.
    """
    chosen = np.flatnonzero(candidates.mask(targets_U) & (train.lengths > 0))
    if len(chosen) > MOST_VALIDATED:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, MOST_VALIDATED, replace=False))
    return HeldOut(train.at(chosen), targets_U[chosen])


@torch.inference_mode()
def rank_held_out(decoder: Decoder, held_out: HeldOut, candidates: TokenRange) -> Tensor:
    """Pessimistic rank [N] of every held-out item among the candidates, on the CPU."""
    hidden_ND = encode_last(decoder, held_out.histories)
    table_XD = decoder.item_embeddings_VD[candidates.columns]
    columns_N = torch.from_numpy(held_out.targets.astype(np.int64)).to(hidden_ND.device) - candidates.first
    rows = max(1, RANKING_ELEMENTS // len(candidates))
    ranks = [
        pessimistic_ranks(hidden_ND[start : start + rows] @ table_XD.T, columns_N[start : start + rows])
        for start in range(0, len(hidden_ND), rows)
    ]
    return torch.cat(ranks).cpu()


def weights_hash(start: Decoder) -> str:
    """A training resumes only from a file that started from the same weights."""
    return hashlib.sha256(save({key: value.cpu() for key, value in start.state_dict().items()})).hexdigest()

"""
A trained decoder goes on with a grown vocabulary: what it knows stays, and a new item starts where its neighbours are.

A new item's embedding is the mean of those of the items that stand beside it in the training sequences, and that the
decoder knows: it starts among items of its kind, not at noise. One without such a neighbour starts at the mean of its
domain. So a refresh begins with a base that ranks nearly as the last one did, and needs little: each sequence once, and
what is new in it ``NEW_READINGS`` times more. Experts do not go on: each is adapted from today's base. Those that
started from what adapting gave the day before ranked new items worse than that base
(docs/experiments/ten-days-of-refreshes.md).

Shapes: V = tokens, D = width, N = pairs of neighbours, U = training sequences, R = readings.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.bundle import Bundle
from models.data.dataset import Sequences
from models.data.extension import joined_by
from models.errors import BundleMismatchError, VocabularyError
from models.network.decoder import Decoder
from models.network.expert_parts import ExpertPart
from models.training.training_data import TrainableData
from models.vocabulary import PADDING, Vocabulary

# How far from a new item an item still tells what it is like.
NEIGHBOUR_DISTANCE = 3
# Users whose neighbours are looked for at once.
BLOCK_USERS = 1 << 16
ITEM_TABLE = "item_embedding.weight"
# How often more an epoch of the base predicts the items that the bundle has not learned from: a fortieth of all in a
# day there, which read as often as the others were what refreshes lost (docs/experiments/ten-days-of-refreshes.md).
NEW_READINGS = 8


@dataclass(frozen=True)
class Continuation:
    """
    A bundle to go on from, for a dataset that descends from its own.

    Args:
        bundle: trained earlier.
        vocabulary: of the dataset to train on.
        train: its training sequences.
        first_new_U: place of the first item in each sequence that the bundle has not learned from; the sequence's
            length where there is none.
    """

    bundle: Bundle
    vocabulary: Vocabulary
    train: Sequences
    first_new_U: npt.NDArray[np.int64]

    @classmethod
    def of(cls, bundle: Bundle, dataset: TrainableData) -> Continuation:
        """
        Go on from *bundle* on *dataset*.

        Raises:
            BundleMismatchError: the dataset is neither the bundle's nor an extension of it, reads other lengths, or the
                bundle has learned from held-out items (``--refit``).
        """
        lineage = [dataset.fingerprint, *(one["fingerprint"] for one in dataset.manifest.get("extends", ()))]
        trained_on = bundle.provenance.get("dataset_fingerprint")
        if trained_on not in lineage:
            raise BundleMismatchError(
                f"{bundle.directory}: trained on a dataset that {dataset.directory} does not extend (`taesar prepare "
                "--extend`); it may have learned from what is held out there"
            )
        if bundle.provenance.get("refit"):
            raise BundleMismatchError(
                f"{bundle.directory}: trained on the held-out items, too (--refit); go on from one that was not"
            )
        max_length = dataset.manifest["config"]["max_length"]
        if bundle.config.max_length != max_length:
            raise BundleMismatchError(
                f"{bundle.directory}: reads {bundle.config.max_length} items, the dataset keeps {max_length}"
            )
        joined_N = joined_by(dataset.directory, dataset.manifest, len(dataset.train.token_ids))
        is_new_N = joined_N > len(lineage) - 1 - lineage.index(trained_on)
        return cls(bundle, dataset.vocabulary, dataset.train, _first_places(is_new_N, dataset.train))

    @property
    def base(self) -> Decoder:
        """The bundle's base, for the dataset's vocabulary."""
        return self.continued(self.bundle.base)

    def knows(self, domain: str) -> bool:
        """Whether the bundle has an expert of *domain*."""
        return domain in self.bundle.vocabulary.domains

    def expert_parts(self, domain: str) -> tuple[ExpertPart, ...]:
        """The bundle's expert of *domain*, which it knows, for the dataset's vocabulary."""
        parts = self.bundle.expert_parts(domain)
        return tuple(dataclasses.replace(part, decoder=self.continued(part.decoder)) for part in parts)

    @property
    def joint_expert(self) -> Decoder | None:
        """The bundle's joint expert, for the dataset's vocabulary; None where it has none."""
        return None if self.bundle.joint is None else self.continued(self.bundle.joint)

    def readings(self, numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """
        What an epoch of the base reads of the training sequences of these *numbers*, two arrays [R].

        Returns:
            Numbers of sequences, and from which place on the items of each are predicted: every sequence from its
            start, and then ``NEW_READINGS`` times those with new items, from the first of them on.
        """
        is_changed = self.first_new_U[numbers] < self.train.lengths[numbers]
        changed = np.tile(numbers[is_changed], NEW_READINGS)
        return np.concatenate([numbers, changed]), np.concatenate([np.zeros_like(numbers), self.first_new_U[changed]])

    @property
    def provenance(self) -> dict[str, Any]:
        """What the new bundle's manifest says of this one."""
        earlier = self.bundle.provenance
        facts = {key: earlier.get(key) for key in ("name", "created", "period", "dataset_fingerprint")}
        ancestors = earlier.get("init", {}).get("ancestors", [])
        return {"version": self.bundle.version, **facts, "ancestors": [self.bundle.version, *ancestors]}

    def continued(self, decoder: Decoder) -> Decoder:
        """*decoder* with a row for every item of the dataset; all else is copied."""
        config = dataclasses.replace(decoder.config, num_items=self.vocabulary.num_items)
        weights = copy.deepcopy(decoder.state_dict())
        weights[ITEM_TABLE] = self._grown(weights[ITEM_TABLE])
        with torch.random.fork_rng(devices=[]):
            grown = Decoder(config)
        grown.load_state_dict(weights)
        return grown.to(decoder.item_embeddings_VD.device).eval()

    def _grown(self, table_KD: Tensor) -> Tensor:
        known_V = torch.from_numpy(self._known_V)
        table_VD = table_KD[known_V.to(table_KD.device)]
        table_VD[PADDING] = 0
        is_new_V = (known_V == PADDING).to(table_KD.device)
        is_new_V[PADDING] = False
        if not is_new_V.any():
            return table_VD
        sums_VD = torch.zeros_like(table_VD)
        tokens_N, neighbours_N = (torch.from_numpy(part).to(table_KD.device) for part in self._neighbours)
        sums_VD.index_add_(0, tokens_N, table_VD[neighbours_N])
        counts_V = torch.bincount(tokens_N, minlength=len(table_VD))
        for token_range in self.vocabulary.token_ranges:
            rows = token_range.columns
            new_X = is_new_V[rows]
            known_XD = table_VD[rows][~new_X]
            fallback_D = (known_XD if len(known_XD) else table_KD[1:]).mean(dim=0)
            counts_X = counts_V[rows][new_X]
            means_XD = sums_VD[rows][new_X] / counts_X.clamp(min=1)[:, None]
            table_VD[rows][new_X] = torch.where(counts_X[:, None] > 0, means_XD, fallback_D)
        return table_VD

    @cached_property
    def _known_V(self) -> npt.NDArray[np.int64]:
        """The bundle's token of every token of the dataset; 0 for new ones."""
        known_V = np.zeros(self.vocabulary.num_tokens, dtype=np.int64)
        for domain, items, token_range in zip(
            self.vocabulary.domains, self.vocabulary.item_ids, self.vocabulary.token_ranges, strict=True
        ):
            for token, item in enumerate(items, start=token_range.first):
                try:
                    known_V[token] = self.bundle.vocabulary.token_id(domain, item)
                except VocabularyError:
                    continue
        return known_V

    @cached_property
    def _neighbours(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pairs of a new item and a known one that stands near it: two arrays [N]."""
        found = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))]
        for first in range(0, len(self.train), BLOCK_USERS):
            users = np.arange(first, min(first + BLOCK_USERS, len(self.train)))
            block = self.train.at(users)
            tokens, owners = block.token_ids.astype(np.int64), np.repeat(users, block.lengths)
            is_known = self._known_V[tokens] != PADDING
            for distance in range(1, NEIGHBOUR_DISTANCE + 1):
                left, right = slice(None, -distance), slice(distance, None)
                for ours, theirs in ((left, right), (right, left)):
                    pairs = (owners[ours] == owners[theirs]) & ~is_known[ours] & is_known[theirs]
                    found.append((tokens[ours][pairs], tokens[theirs][pairs]))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def _first_places(is_chosen_N: npt.NDArray[np.bool_], sequences: Sequences) -> npt.NDArray[np.int64]:
    """The place of the first chosen item in each sequence, its length where none is: int64 [U]."""
    first_U = sequences.lengths.copy()
    chosen_N = np.flatnonzero(is_chosen_N)
    owners_N = np.searchsorted(sequences.offsets, chosen_N, side="right") - 1
    owners, first_of_owner = np.unique(owners_N, return_index=True)
    first_U[owners] = chosen_N[first_of_owner] - sequences.offsets[owners]
    return first_U

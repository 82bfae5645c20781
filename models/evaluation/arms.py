"""
The arms of an evaluation: which rows a recommender trains on, and which held-out items it must rank.

    original     target-only training sequences
    duplicated   the composite with its users' original rows in place of their regenerated ones: what more weight on
                 the users that regeneration picks gives by itself
    regenerated  the composite: original and regenerated rows
    mixed        mixed training sequences over every domain's items: naive mixing, where negative transfer shows

Arms differ in training rows only. All rank the same held-out items of the same users among the target's items. In the
first three, items are the target's alone, numbered from 1, and histories hold target items only; ``mixed`` keeps the
vocabulary's tokens and mixed histories.

    served       not an arm of its own: recommenders of ``regenerated``, but each test user's mixed history is
                 regenerated first, as a live user's would be by POST /regenerate

    with expert, served with expert   ``original`` and ``served``, each with the target expert's log-probabilities added
                 to the recommender's (``evaluation.advice``)

Populations: a user is a validation (test) user of the domain that s[n-2] (s[n-1]) lies in. The history of a test
item includes the validation item. Histories may be empty of target items: such users are ranked, reported as a group
of their own, and left out of the main table.

Shapes: U = users, N = held-out rows, R = composite rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from models.composite.assembly import COMPOSITE
from models.composite.folder import CHECKED_FILES, SUMMARY
from models.composite.regenerated_rows import REGENERATED
from models.data.dataset import TOKENS, Dataset, Sequences, TokenArray, sha256_of
from models.decoding.rules import RULES_VERSION
from models.errors import DatasetFormatError
from models.training.objective import trainable_rows
from models.vocabulary import TokenRange

ArmName = Literal["original", "duplicated", "regenerated", "mixed"]
ARM_NAMES: tuple[ArmName, ...] = get_args(ArmName)
# What a line of the results says was ranked: an arm, the arm ``regenerated`` with regenerated histories, or, of both,
# recommender and target expert together.
RowName = Literal[ArmName, "served", "with expert", "served with expert"]
# These need a composite: ``regenerated`` for its rows, ``duplicated`` to know whose they are.
COMPOSITE_ARMS: tuple[ArmName, ...] = ("duplicated", "regenerated")


@dataclass(frozen=True)
class Queries:
    """
    Held-out items to rank.

    Args:
        users: position of each row's user in the dataset, rising, int64 [N].
        histories: what came before, in the arm's item ids; may be empty.
        targets: the held-out item in the arm's item ids, int32 [N].
        seen: the target's items that each user had before, in the arm's item ids: each once, never the held-out item
            itself, and none that regeneration added.
        num_target_items: target-domain interactions in each history, int64 [N], the same in every arm.
    """

    users: npt.NDArray[np.int64]
    histories: Sequences
    targets: TokenArray
    seen: Sequences
    num_target_items: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, indices: npt.NDArray[np.int64]) -> Queries:
        """The rows at *indices*, in that order."""
        return Queries(
            self.users[indices],
            self.histories.at(indices),
            self.targets[indices],
            self.seen.at(indices),
            self.num_target_items[indices],
        )


@dataclass(frozen=True)
class Validation:
    """Held-out items of one domain and the items that they are ranked among: what chooses an epoch."""

    candidates: TokenRange
    queries: Queries


@dataclass(frozen=True)
class Arm:
    """
    Training rows of at least two items, the item ids they use, and what is ranked.

    Args:
        name: which arm.
        rows: training rows.
        num_items: items 1..num_items are what rows and histories hold.
        domains: the domains that those items are of, one range after the other.
        candidates: the target's items, one of *domains*.
        validation, test: held-out items of the target.
        served: the test items once more, after regenerated histories; None where they are not asked for.
        validations: of all domains, where one training serves every target (``mixed``); else none.
    """

    name: ArmName
    rows: Sequences
    num_items: int
    domains: tuple[TokenRange, ...]
    candidates: TokenRange
    validation: Queries
    test: Queries
    served: Queries | None = None
    validations: tuple[Validation, ...] = ()

    @property
    def selection(self) -> tuple[Validation, ...]:
        """What its trainings choose their epochs by."""
        return self.validations or (Validation(self.candidates, self.validation),)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a trained recommender's ranks depend on, unless it is told the domains."""
        ranked = [self.test.histories, *([] if self.served is None else [self.served.histories])]
        chosen = [self.training_fingerprint, self.candidates.first, self.candidates.last]
        return _digest(chosen, ranked, [self.test.targets])

    @cached_property
    def training_fingerprint(self) -> str:
        """SHA-256 of everything that a recommender's weights depend on, unless it is told the domains."""
        ranges = [[one.candidates.first, one.candidates.last] for one in self.selection]
        histories = [one.queries.histories for one in self.selection]
        targets = [one.queries.targets for one in self.selection]
        return _digest([self.num_items, ranges], [self.rows, *histories], targets)


@dataclass(frozen=True)
class Composite:
    """A composite dataset on disk, its rows in the vocabulary's tokens; ``load_composite`` makes one."""

    users: npt.NDArray[np.int64]
    regenerated: npt.NDArray[np.bool_]
    rows: Sequences
    summary: Mapping[str, Any]
    directory: Path


def load_composite(directory: Path, dataset: Dataset, target: str) -> Composite:
    """
    Read what ``taesar regenerate`` wrote for *target* of *dataset*.

    Raises:
        DatasetFormatError: files are missing or damaged, or belong to another dataset, target or version of the rules.
    """
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        made_for, fingerprint, rules_version = (
            summary[key] for key in ("target", "dataset_fingerprint", "rules_version")
        )
        damaged = [name for name in CHECKED_FILES if sha256_of(directory / name) != summary["files"][name]]
        table = pl.read_parquet(directory / COMPOSITE, columns=["user_id", "origin", "token_ids"])
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(
            f"{directory}: not a composite dataset, or an earlier version's; `taesar regenerate` makes one: {error}"
        ) from error
    if made_for != target:
        raise DatasetFormatError(f"{directory}: made for target {made_for!r}, not for {target!r}")
    if fingerprint != dataset.fingerprint:
        raise DatasetFormatError(f"{directory}: made of another dataset than {dataset.directory}")
    if summary.get("interactions", "training") != "training":
        raise DatasetFormatError(
            f"{directory}: made of all interactions, held-out ones among them (--interactions all); an evaluation "
            "needs one of training interactions"
        )
    if rules_version != RULES_VERSION:
        raise DatasetFormatError(f"{directory}: made by rules that decide otherwise today; make it anew")
    if damaged:
        raise DatasetFormatError(f"{directory / damaged[0]}: not as it was written; make the composite anew")
    index_of = {user: index for index, user in enumerate(dataset.user_ids)}
    users = np.asarray([index_of[user] for user in table["user_id"]], dtype=np.int64)
    rows = Sequences.from_column(table["token_ids"])
    return Composite(users, (table["origin"] == REGENERATED).to_numpy(), rows, summary, directory)


def build_arm(dataset: Dataset, target: str, name: ArmName, composite: Composite | None) -> Arm:
    """
    One arm of *target*.

    Args:
        composite: needed for the arms in ``COMPOSITE_ARMS``, ignored by the others.

    Raises:
        UnknownDomainError: no such domain.
    """
    domain = dataset.vocabulary.token_range(target)
    if name == "mixed":
        rows = dataset.train
        domains, candidates, kept = dataset.vocabulary.token_ranges, domain, None
    else:
        rows = keep_domain(dataset.train, domain)
        candidates, kept = TokenRange(1, len(domain)), domain
        domains = (candidates,)
    if name in COMPOSITE_ARMS:
        assert composite is not None
        rows = keep_domain(composite.rows if name == "regenerated" else duplicate_rows(composite), domain)
    return Arm(
        name,
        rows.at(trainable_rows(rows)),
        domains[-1].last,
        domains,
        candidates,
        build_queries(dataset.train, dataset.validation, domain, kept),
        build_queries(dataset.before_test, dataset.test, domain, kept),
        validations=_of_all_domains(dataset) if name == "mixed" else (),
    )


def with_served(arm: Arm, histories: Sequences, domain: TokenRange) -> Arm:
    """
    *arm* with its test items ranked a second time, after *histories*.

    Args:
        arm: of the target's items alone.
        histories: one regenerated history per test row, in the vocabulary's tokens.
        domain: the target's tokens.
    """
    return replace(arm, served=replace(arm.test, histories=keep_domain(histories, domain)))


def keep_domain(sequences: Sequences, domain: TokenRange) -> Sequences:
    """
    Keep the items of *domain*, in order, numbered from 1; as many sequences, some perhaps empty.

    >>> [row.tolist() for row in keep_domain(Sequences.from_lists([[5, 1, 6], [2]]), TokenRange(5, 9))]
    [[1, 2], []]
    """
    inside = sequences.inside(domain)
    return Sequences((inside.token_ids - (domain.first - 1)).astype(TOKENS), inside.offsets)


def duplicate_rows(composite: Composite) -> Sequences:
    """
    The original rows, then as many as there are regenerated ones: the original rows of the same users.

    Regeneration adds rows for the users with something to replace, who are the busy ones: to repeat just anybody's
    rows would compare with a table of other people. A user may have a regenerated row and no original one; for each of
    those the first of the others is repeated once more. Where no original row is of such a user, all are in turn.
    """
    originals = np.flatnonzero(~composite.regenerated)
    num_regenerated = len(composite.rows) - len(originals)
    twice = originals[np.isin(composite.users[originals], composite.users[composite.regenerated])]
    if not len(twice):
        twice = originals
    added = np.resize(twice, num_regenerated) if len(twice) else twice
    return composite.rows.at(np.concatenate([originals, added]))


def build_queries(before: Sequences, held_out_U: TokenArray, domain: TokenRange, kept: TokenRange | None) -> Queries:
    """
    One query per user whose held-out item is of *domain*.

    Args:
        before: every user's mixed history, in the vocabulary's tokens.
        held_out_U: the item after it; 0 for none.
        domain: the target's tokens.
        kept: keep only these items and number them from 1; None keeps whole histories in the vocabulary's tokens.
    """
    users = np.flatnonzero(domain.mask(held_out_U))
    whole = before.at(users)
    in_domain = keep_domain(whole, domain)
    own_targets = (held_out_U[users] - (domain.first - 1)).astype(TOKENS)
    seen = _distinct_others(in_domain, own_targets)
    if kept is not None:
        return Queries(users, in_domain, own_targets, seen, in_domain.lengths)
    in_vocabulary = Sequences((seen.token_ids + (domain.first - 1)).astype(TOKENS), seen.offsets)
    return Queries(users, whole, held_out_U[users], in_vocabulary, in_domain.lengths)


def _of_all_domains(dataset: Dataset) -> tuple[Validation, ...]:
    """The validation items of every domain, in the vocabulary's tokens."""
    return tuple(
        Validation(domain, build_queries(dataset.train, dataset.validation, domain, None))
        for domain in dataset.vocabulary.token_ranges
    )


def _digest(values: object, sequences: Iterable[Sequences], targets: Iterable[TokenArray]) -> str:
    digest = hashlib.sha256(json.dumps(values).encode())
    for one in sequences:
        digest.update(one.offsets.astype(np.int64).tobytes())
        digest.update(one.token_ids.astype(TOKENS).tobytes())
    for held_out in targets:
        digest.update(held_out.astype(TOKENS).tobytes())
    return digest.hexdigest()


def _distinct_others(sequences: Sequences, held_out_N: TokenArray) -> Sequences:
    """Each sequence's distinct items, rising, without its held-out one."""
    row_of = np.repeat(np.arange(len(sequences)), sequences.lengths)
    others = sequences.token_ids != held_out_N[row_of]
    pairs = np.unique(np.stack([row_of[others], sequences.token_ids[others].astype(np.int64)], axis=1), axis=0)
    offsets = np.searchsorted(pairs[:, 0], np.arange(len(sequences) + 1)).astype(np.int64)
    return Sequences(pairs[:, 1].astype(TOKENS), offsets)

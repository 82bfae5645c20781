"""
Online inference: schemas -> tokens -> batcher -> models -> schemas, and the registry of loaded bundles.

The batcher's thread gives each batch to the model's process and waits for it. Every row in the queue carries the model
that was active when its request came, so a switch never drops or mixes requests: the old model answers what it
accepted, then is forgotten and its process ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from app.batching import Batcher
from app.bundles import BundleFolders
from app.errors import (
    MAX_LISTED_PARTS,
    InvalidPart,
    ModelUnavailableError,
    RequestTooLargeError,
    UnknownModelError,
    UnknownSequenceItemsError,
)
from app.model_process import JOBS, REQUESTS, ModelProcess, RemoteRegenerator
from app.schemas import (
    Domain,
    Item,
    MixedSequence,
    Model,
    Models,
    RegeneratedSequence,
    RegenerateRequest,
    RegenerateResponse,
    Step,
)
from app.settings import Settings
from app.telemetry import Metrics, logger
from models.checkpoint import BundleDescription
from models.contrastive import DELETED
from models.dataset import TOKENS, TokenArray
from models.errors import VocabularyError
from models.packing import padded_length
from models.regenerate import Regenerated
from models.rules import Rule
from models.vocabulary import Vocabulary

log = logger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """
    A bundle whose networks are in a process of their own; equal only to itself.

    Args:
        process: runs it; ends when nothing refers to this model any more.
        regenerator: for requests.
        job_regenerator: for jobs: neither waits for the other's call.
    """

    process: ModelProcess
    regenerator: RemoteRegenerator
    job_regenerator: RemoteRegenerator

    @property
    def bundle(self) -> BundleDescription:
        """What is loaded."""
        return self.process.bundle

    @property
    def rule(self) -> Rule:
        """How it decides."""
        return self.process.rule


@dataclass(frozen=True)
class BatchKey:
    """What the rows of one call share."""

    model: LoadedModel
    target: str


@dataclass(frozen=True)
class Encoded:
    """
    What the model reads of one submitted sequence.

    Args:
        token_ids: int64, the last known items, at most as many as the model reads.
        positions: the index of each token in the submitted items.
        unknown_positions: indices of items that the model does not know.
        num_truncated: known items before the first token.
    """

    token_ids: TokenArray
    positions: tuple[int, ...]
    unknown_positions: tuple[int, ...]
    num_truncated: int


RegenerationBatcher = Batcher[BatchKey, TokenArray, Regenerated]


def run_batch(key: BatchKey, token_ids: Sequence[TokenArray]) -> list[Regenerated]:
    """One call of the model; the batcher's ``process``."""
    return key.model.regenerator.regenerate(token_ids, key.target)


class ModelRegistry:
    """
    The bundles in memory, one of them active.

    Args:
        bundle: folder that may hold the first bundle, or None.
        root: folder whose subfolders may hold others, or None.
        rule: decoding rule of every model.
        device: where networks are loaded to.
        capacity: models kept, the active one included; the longest inactive is forgotten first.
        metrics: told which version is active.
    """

    def __init__(
        self,
        *,
        bundle: Path | None,
        root: Path | None,
        rule: Rule,
        device: torch.device,
        capacity: int,
        metrics: Metrics,
    ) -> None:
        self._bundle = bundle
        self._folders = BundleFolders(bundle, root)
        self._rule: Rule = rule
        self._device = device
        self._capacity = capacity
        self._metrics = metrics
        self._loaded: tuple[LoadedModel, ...] = ()  # most recently active first; replaced whole, never changed
        self._activating = asyncio.Lock()

    def active(self) -> LoadedModel:
        """The model that serves; raises ModelUnavailableError when none is loaded."""
        if not self._loaded:
            raise ModelUnavailableError("no model is loaded; activate one or start with a bundle")
        return self._loaded[0]

    async def load_first(self) -> None:
        """Load and activate the bundle given at the start, if one was; raises BundleError."""
        if self._bundle is not None:
            async with self._activating:
                self._put_first(await asyncio.to_thread(self._load, self._bundle))

    async def activate(self, version: str) -> Model:
        """
        Serve *version* from the next request on; requests already accepted keep their model.

        Raises:
            UnknownModelError: neither loaded nor among the folders.
            BundleError, ModelProcessDiedError: it cannot be loaded; the active model stays.
        """
        async with self._activating:
            model = next((model for model in self._loaded if model.bundle.version == version), None)
            if model is None:
                # In another thread than the batcher's: reading files must not hold up requests
                model = await asyncio.to_thread(self._load_version, version)
            self._put_first(model)
            return self._describe(model)

    async def describe(self) -> Models:
        """What is loaded and what could be."""
        on_disk = await asyncio.to_thread(self._folders.by_version)
        loaded = [self._describe(model) for model in self._loaded]
        in_memory = {model.version for model in loaded}
        return Models(
            active=loaded[0].version if loaded else None,
            loaded=loaded,
            available=sorted(set(on_disk) - in_memory),
        )

    async def unreadiness(self) -> str | None:
        """Why no model serves, or None."""
        return self._loaded[0].process.outage if self._loaded else "no model is loaded"

    def close(self) -> None:
        """End the models' processes; nothing may be asked of them any more."""
        for model in self._loaded:
            model.process.close()
        self._loaded = ()

    def _load(self, directory: Path) -> LoadedModel:
        process = ModelProcess.start(directory, self._rule, self._device)
        process.bundle.vocabulary.build_lookups()  # here, so that no request waits for it
        return LoadedModel(process, RemoteRegenerator(process, REQUESTS), RemoteRegenerator(process, JOBS))

    def _load_version(self, version: str) -> LoadedModel:
        def load(directory: Path) -> LoadedModel:
            model = self._load(directory)
            if model.bundle.version != version:  # the folder was replaced between the two looks at it
                raise UnknownModelError(version)
            return model

        return self._folders.load(version, load)

    def _put_first(self, model: LoadedModel) -> None:
        others = tuple(other for other in self._loaded if other is not model)
        self._loaded = (model, *others)[: self._capacity]
        self._metrics.set_active_model(model.bundle.version)
        log.info("model_activated", version=model.bundle.version, directory=str(model.bundle.directory))

    def _describe(self, model: LoadedModel) -> Model:
        vocabulary = model.bundle.vocabulary
        ranges = zip(vocabulary.domains, vocabulary.token_ranges, strict=True)
        return Model(
            version=model.bundle.version,
            active=bool(self._loaded) and model is self._loaded[0],
            rule=model.rule,
            max_items=model.regenerator.max_items,
            domains=[Domain(name=name, num_items=len(tokens)) for name, tokens in ranges],
            provenance=dict(model.bundle.provenance),
        )


class Inference:
    """
    Answer POST /regenerate.

    Args:
        registry: says which model serves.
        batcher: runs it.
        settings: the limits.
        metrics: counts decisions.
    """

    def __init__(
        self, registry: ModelRegistry, batcher: RegenerationBatcher, *, settings: Settings, metrics: Metrics
    ) -> None:
        self.registry = registry
        self._batcher = batcher
        self._settings = settings
        self._metrics = metrics

    async def regenerate(self, request: RegenerateRequest) -> RegenerateResponse:
        """
        Rewrite every sequence of *request*; a sequence's answer does not depend on its company.

        Raises:
            RequestTooLargeError: more sequences or items, in one or in all, than the settings permit.
            ModelUnavailableError: no model is active.
            UnknownDomainError: the target is none of the model's domains.
            UnknownSequenceItemsError: ``on_unknown`` is "error" and there are some.
            ModelProcessDiedError: the model's process ended over this request's batch, twice.
            QueueFullError, ShuttingDownError, ModelThreadDiedError: from the batcher.
        """
        self._check_limits(request)
        model = self.registry.active()
        vocabulary = model.bundle.vocabulary
        vocabulary.domain_index(request.target_domain)
        # Beside the event loop: a request at its limits must not hold up the others
        encoded = await asyncio.to_thread(encode_all, request, vocabulary, model.regenerator.max_items)
        results = await self._run(BatchKey(model, request.target_domain), encoded)
        if request.explain:  # a tenth of a second at the limits; without, a few milliseconds
            answers = await asyncio.to_thread(answer_all, request, encoded, results, vocabulary)
        else:
            answers = answer_all(request, encoded, results, vocabulary)
        for answer in answers:
            self._metrics.observe_sequence(
                kept=answer.kept,
                replaced=answer.replaced,
                deleted=answer.deleted,
                unknown=answer.unknown,
                truncated=answer.truncated,
            )
        return RegenerateResponse(
            target_domain=request.target_domain, model_version=model.bundle.version, sequences=answers
        )

    async def unreadiness(self) -> str | None:
        """Why the model's thread cannot work, or None."""
        return None if self._batcher.death is None else f"the model's thread ended: {self._batcher.death!r}"

    def _check_limits(self, request: RegenerateRequest) -> None:
        limit = self._settings.max_sequences_per_request
        if len(request.sequences) > limit:
            raise RequestTooLargeError(f"{len(request.sequences)} sequences", limit, "TAESAR_MAX_SEQUENCES_PER_REQUEST")
        limit = self._settings.max_items_per_sequence
        for index, sequence in enumerate(request.sequences):
            if len(sequence.items) > limit:
                raise RequestTooLargeError(
                    f"sequence {index} has {len(sequence.items)} items", limit, "TAESAR_MAX_ITEMS_PER_SEQUENCE"
                )
        limit = self._settings.max_items_per_request
        total = sum(len(sequence.items) for sequence in request.sequences)
        if total > limit:
            raise RequestTooLargeError(f"{total} items in all sequences", limit, "TAESAR_MAX_ITEMS_PER_REQUEST")

    async def _run(self, key: BatchKey, encoded: Sequence[Encoded]) -> list[Regenerated | None]:
        """Results in order; None for a sequence of which nothing is known: there is nothing to compute."""
        rows = [index for index, read in enumerate(encoded) if len(read.token_ids)]
        results: list[Regenerated | None] = [None] * len(encoded)
        if rows:
            tokens = [encoded[index].token_ids for index in rows]
            found = await self._batcher.submit(key, tokens, [padded_length(len(row)) for row in tokens])
            for index, result in zip(rows, found, strict=True):
                results[index] = result
        return results


def encode_all(request: RegenerateRequest, vocabulary: Vocabulary, max_items: int) -> list[Encoded]:
    """
    Every sequence of *request* as the model reads it.

    Raises:
        UnknownSequenceItemsError: ``on_unknown`` is "error" and there are unknown items.
    """
    encoded = [encode(sequence, vocabulary, max_items) for sequence in request.sequences]
    if request.on_unknown == "error":
        _refuse_unknown(request.sequences, encoded)
    return encoded


def encode(sequence: MixedSequence, vocabulary: Vocabulary, max_items: int) -> Encoded:
    """The last *max_items* known items of *sequence* as tokens, and what was left out."""
    token_ids: list[int] = []
    positions: list[int] = []
    unknown: list[int] = []
    for position, item in enumerate(sequence.items):
        try:
            token_ids.append(vocabulary.token_id(item.domain, item.item_id))
            positions.append(position)
        except VocabularyError:
            unknown.append(position)
    return Encoded(
        token_ids=np.asarray(token_ids[-max_items:], dtype=TOKENS),
        positions=tuple(positions[-max_items:]),
        unknown_positions=tuple(unknown),
        num_truncated=max(0, len(token_ids) - max_items),
    )


def _refuse_unknown(sequences: Sequence[MixedSequence], encoded: Sequence[Encoded]) -> None:
    total = sum(len(read.unknown_positions) for read in encoded)
    if not total:
        return
    parts = (
        InvalidPart(
            ("body", "sequences", row, "items", position),
            f"sequence {row}, position {position}: unknown item {sequence.items[position].item_id!r} "
            f"of domain {sequence.items[position].domain!r}",
        )
        for row, (sequence, read) in enumerate(zip(sequences, encoded, strict=True))
        for position in read.unknown_positions
    )
    raise UnknownSequenceItemsError(list(islice(parts, MAX_LISTED_PARTS)), total)


def answer_all(
    request: RegenerateRequest,
    encoded: Sequence[Encoded],
    results: Sequence[Regenerated | None],
    vocabulary: Vocabulary,
) -> list[RegeneratedSequence]:
    """The answer to every sequence of *request*; a result is None where nothing of it is known."""
    return [
        _answer(sequence, read, result, vocabulary, explain=request.explain)
        for sequence, read, result in zip(request.sequences, encoded, results, strict=True)
    ]


def _answer(
    sequence: MixedSequence, read: Encoded, result: Regenerated | None, vocabulary: Vocabulary, *, explain: bool
) -> RegeneratedSequence:
    answer = RegeneratedSequence(
        user_id=sequence.user_id,
        items=[] if result is None else vocabulary.item_ids_of(result.token_ids),
        kept=0 if result is None else result.kept,
        replaced=0 if result is None else result.replaced,
        deleted=0 if result is None else result.deleted,
        unknown=len(read.unknown_positions),
        truncated=read.num_truncated,
    )
    if explain:
        # Assigned, not passed: the route leaves out what was not set, so "steps" is there only when asked for
        answer.steps = [] if result is None else _steps(sequence.items, read, result, vocabulary)
    return answer


def _steps(items: Sequence[Item], read: Encoded, result: Regenerated, vocabulary: Vocabulary) -> list[Step]:
    steps = result.steps
    columns = (steps.positions, steps.replacements, steps.alpha, steps.beta, steps.score, steps.margin)
    described = []
    for row, replacement, alpha, beta, score, margin in zip(*(column.tolist() for column in columns), strict=True):
        position = read.positions[row]
        deleted = replacement == DELETED
        described.append(
            Step(
                position=position,
                source=items[position],
                action="deleted" if deleted else "replaced",
                item_id=None if deleted else vocabulary.item_ids_of([replacement])[0],
                alpha=_finite(alpha),
                beta=_finite(beta),
                score=_finite(score),
                margin=_finite(margin),
            )
        )
    return described


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

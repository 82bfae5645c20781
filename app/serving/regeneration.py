"""
From a request to its answer: sequences -> tokens -> batcher -> model's process -> sequences.

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
from typing import NamedTuple

from app.errors import (
    MAX_LISTED_PARTS,
    InvalidPart,
    RequestTooLargeError,
    UnknownSequenceItemsError,
)
from app.runtime.logs import logger
from app.runtime.metrics import Metrics
from app.runtime.tracing import current_traceparent, span
from app.serving.batching import Batcher
from app.serving.model_registry import LoadedModel, ModelRegistry
from app.serving.regeneration_bodies import (
    Item,
    LikelyTargetItem,
    MixedSequence,
    RegeneratedSequence,
    RegenerateRequest,
    RegenerateResponse,
    Step,
)
from app.settings import Settings
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerated
from models.histories import ReadHistory, read_history, sequence_of
from models.item_counts import ITEM_COUNTS, ItemCounts
from models.network.packing import padded_length
from models.vocabulary import PADDING, Vocabulary

log = logger(__name__)


@dataclass(frozen=True)
class BatchKey:
    """What the rows of one call share."""

    model: LoadedModel
    target: str
    num_likely: int


class BatchRow(NamedTuple):
    """One sequence of a call, and the trace that it belongs to."""

    token_ids: TokenArray
    traceparent: str | None


RegenerationBatcher = Batcher[BatchKey, BatchRow, Regenerated]


def run_batch(key: BatchKey, rows: Sequence[BatchRow]) -> list[Regenerated]:
    """One call of the model; the batcher's ``process``. A part of the first row's trace, and linked to the others'."""
    token_ids = [row.token_ids for row in rows]
    first, *others = dict.fromkeys(row.traceparent for row in rows)
    with span("batch", parent=first, links=[other for other in others if other], taesar_sequences=len(rows)):
        return key.model.regenerator.regenerate(token_ids, key.target, num_likely=key.num_likely)


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

    async def regenerate(self, request: RegenerateRequest, *, request_id: str) -> RegenerateResponse:
        """
        Rewrite every sequence of *request*; a sequence's answer does not depend on its company.

        One model does all of it. Whether that is a canary hangs on the first sequence's user, or without one on
        *request_id*, which a client that tries again sends again.

        Raises:
            RequestTooLargeError: more sequences or items, in one or in all, than the settings permit.
            ModelUnavailableError: no model is active.
            UnknownModelError: the model that the request names is not in memory.
            UnknownDomainError: the target is none of the model's domains.
            UnknownSequenceItemsError: ``on_unknown`` is "error" and there are some.
            ModelProcessDiedError: the model's process ended over this request's batch, twice.
            QueueFullError, ShuttingDownError, ModelThreadDiedError: from the batcher.
        """
        self._check_limits(request)
        model = self.registry.choose(request.model_version, key=request.sequences[0].user_id or request_id)
        vocabulary = model.bundle.vocabulary
        vocabulary.domain_index(request.target_domain)
        # Beside the event loop: a request at its limits must not hold up the others
        encoded = await asyncio.to_thread(encode_all, request, vocabulary, model.regenerator.max_items)
        results = await self._run(BatchKey(model, request.target_domain, request.likely_items), encoded)
        if request.explain or request.likely_items:  # a tenth of a second at the limits; without, a few milliseconds
            answers = await asyncio.to_thread(answer_all, request, encoded, results, vocabulary)
        else:
            answers = answer_all(request, encoded, results, vocabulary)
        for answer in answers:
            self._metrics.observe_sequence(
                model.bundle.version, ItemCounts(**{name: getattr(answer, name) for name in ITEM_COUNTS})
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

    async def _run(self, key: BatchKey, encoded: Sequence[ReadHistory]) -> list[Regenerated | None]:
        """Results in order; None for a sequence of which nothing is known: there is nothing to compute."""
        rows = [index for index, read in enumerate(encoded) if len(read.token_ids)]
        results: list[Regenerated | None] = [None] * len(encoded)
        if rows:
            traceparent = current_traceparent()
            batch = [BatchRow(encoded[index].token_ids, traceparent) for index in rows]
            found = await self._batcher.submit(key, batch, [padded_length(len(row.token_ids)) for row in batch])
            for index, result in zip(rows, found, strict=True):
                results[index] = result
        return results


def encode_all(request: RegenerateRequest, vocabulary: Vocabulary, max_items: int) -> list[ReadHistory]:
    """
    Every sequence of *request* as the model reads it.

    Raises:
        UnknownSequenceItemsError: ``on_unknown`` is "error" and there are unknown items.
    """
    encoded = [
        read_history(
            [item.domain for item in sequence.items],
            [item.item_id for item in sequence.items],
            vocabulary,
            target=request.target_domain,
            max_items=max_items,
        )
        for sequence in request.sequences
    ]
    if request.on_unknown == "error":
        _refuse_unknown(request.sequences, encoded)
    return encoded


def _refuse_unknown(sequences: Sequence[MixedSequence], encoded: Sequence[ReadHistory]) -> None:
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
    encoded: Sequence[ReadHistory],
    results: Sequence[Regenerated | None],
    vocabulary: Vocabulary,
) -> list[RegeneratedSequence]:
    """The answer to every sequence of *request*; a result is None where nothing of it is known."""
    return [
        _answer(sequence, read, result, vocabulary, request)
        for sequence, read, result in zip(request.sequences, encoded, results, strict=True)
    ]


def _answer(
    sequence: MixedSequence,
    read: ReadHistory,
    result: Regenerated | None,
    vocabulary: Vocabulary,
    request: RegenerateRequest,
) -> RegeneratedSequence:
    answer = RegeneratedSequence(
        user_id=sequence.user_id,
        items=sequence_of(read, result, [item.item_id for item in sequence.items], vocabulary),
        kept=0 if result is None else result.kept,
        replaced=0 if result is None else result.replaced,
        deleted=0 if result is None else result.deleted,
        unknown=read.num_skipped,
        unknown_kept=len(read.passed_positions),
        truncated=read.num_truncated,
    )
    # Assigned, not passed: the route leaves out what was not set, so these are there only when asked for
    if request.explain:
        answer.steps = [] if result is None else _steps(sequence.items, read, result, vocabulary)
    if request.likely_items:
        likely = () if result is None else result.likely
        names = vocabulary.item_ids_of([item.token_id for item in likely])
        answer.likely_items = [
            LikelyTargetItem(item_id=name, log_probability=item.log_probability)
            for name, item in zip(names, likely, strict=True)
        ]
    return answer


def _steps(items: Sequence[Item], read: ReadHistory, result: Regenerated, vocabulary: Vocabulary) -> list[Step]:
    steps = result.steps
    columns = (steps.positions, steps.replacements, steps.alpha, steps.beta, steps.score, steps.margin)
    described = []
    for row, replacement, alpha, beta, score, margin in zip(*(column.tolist() for column in columns), strict=True):
        position = read.positions[row]
        deleted = replacement == PADDING
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

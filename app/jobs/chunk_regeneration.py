"""What one chunk of a job adds: its rewritten rows, bad rows, counts and mapping increments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.jobs.formats import BadRow, SequenceRow
from app.jobs.job_models import Regenerates
from app.jobs.records import ChunkCounts, Job
from app.jobs.results import Rewritten
from app.mappings.mapping_store import Increment, increments_of
from models.data.dataset import TOKENS, TokenArray
from models.decoding.regenerator import Regenerated
from models.errors import VocabularyError
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk adds to its job."""

    rows: list[Rewritten]
    bad: list[BadRow]
    counts: ChunkCounts
    increments: list[Increment]


def regenerate_rows(regenerator: Regenerates, job: Job, rows: Sequence[SequenceRow]) -> ChunkResult:
    """
    Rewrite *rows* for the job's target.

    Unknown items are skipped and counted, or make their row a bad one, as the job says.

    Raises:
        UnknownDomainError: the model has no such target.
    """
    vocabulary = regenerator.bundle.vocabulary
    read: list[tuple[SequenceRow, TokenArray]] = []
    bad: list[BadRow] = []
    for row in rows:
        tokens, first_unknown = _tokens_of(row, vocabulary)
        if first_unknown is not None and job.on_unknown == "error":
            item, domain = row.item_ids[first_unknown], row.domains[first_unknown]
            reason = f"position {first_unknown}: unknown item {item!r} of domain {domain!r}"
            bad.append(BadRow(row.line, reason, row.num_rows))
        else:
            read.append((row, tokens))
    results = regenerator.regenerate(
        [tokens for _, tokens in read], job.target_domain, training_rows=job.purpose == "training"
    )
    rewritten = [
        Rewritten(
            user_id=row.user_id,
            items=vocabulary.item_ids_of(result.token_ids),
            kept=result.kept,
            replaced=result.replaced,
            deleted=result.deleted,
            unknown=len(row.item_ids) - len(tokens),
            truncated=len(tokens) - result.num_read,
        )
        for (row, tokens), result in zip(read, results, strict=True)
    ]
    return ChunkResult(rewritten, bad, _counts_of(rewritten), _increments(vocabulary, results))


def _tokens_of(row: SequenceRow, vocabulary: Vocabulary) -> tuple[TokenArray, int | None]:
    """Tokens of the known items, and the position of the first unknown one."""
    tokens: list[int] = []
    first_unknown: int | None = None
    for position, (domain, item_id) in enumerate(zip(row.domains, row.item_ids, strict=True)):
        try:
            tokens.append(vocabulary.token_id(domain, item_id))
        except VocabularyError:
            first_unknown = position if first_unknown is None else first_unknown
    return np.asarray(tokens, dtype=TOKENS), first_unknown


def _counts_of(rows: Sequence[Rewritten]) -> ChunkCounts:
    return ChunkCounts(
        sequences=len(rows),
        kept=sum(row.kept for row in rows),
        replaced=sum(row.replaced for row in rows),
        deleted=sum(row.deleted for row in rows),
        unknown=sum(row.unknown for row in rows),
        truncated=sum(row.truncated for row in rows),
    )


def _increments(vocabulary: Vocabulary, results: Sequence[Regenerated]) -> list[Increment]:
    if not results:
        return []
    steps = [result.steps for result in results]
    return increments_of(
        vocabulary,
        np.concatenate([step.source_tokens for step in steps]),
        np.concatenate([step.replacements for step in steps]),
        np.concatenate([step.score for step in steps]),
    )

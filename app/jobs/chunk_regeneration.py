"""What one chunk of a job adds: its rewritten rows, bad rows, counts and mapping increments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.jobs.formats import BadRow, SequenceRow
from app.jobs.job_models import Regenerates
from app.jobs.records import Job
from app.jobs.results import ResultRow
from app.mappings.mapping_store import Increment, increments_of
from models.decoding.regenerator import Regenerated
from models.exports.encoding import KEPT, REPLACED
from models.histories import ReadHistory, Rewritten, items_of, read_history, rewritten
from models.item_counts import ITEM_COUNTS, SequenceCounts
from models.vocabulary import Vocabulary


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk adds to its job."""

    rows: list[ResultRow]
    bad: list[BadRow]
    counts: SequenceCounts
    increments: list[Increment]


def regenerate_rows(regenerator: Regenerates, job: Job, rows: Sequence[SequenceRow]) -> ChunkResult:
    """
    Rewrite *rows* for the job's target.

    Unknown items of the target domain stay in place, others are skipped, and both are counted; or they make their row a
    bad one, as the job says.

    Raises:
        UnknownDomainError: the model has no such target.
    """
    vocabulary = regenerator.bundle.vocabulary
    vocabulary.domain_index(job.target_domain)
    read: list[tuple[SequenceRow, ReadHistory]] = []
    bad: list[BadRow] = []
    for row in rows:
        history = read_history(
            row.domains, row.item_ids, vocabulary, target=job.target_domain, max_items=regenerator.max_items
        )
        if history.unknown_positions and job.on_unknown == "error":
            first = history.unknown_positions[0]
            item, domain = row.item_ids[first], row.domains[first]
            bad.append(BadRow(row.line, f"position {first}: unknown item {item!r} of domain {domain!r}", row.num_rows))
        else:
            read.append((row, history))
    results = regenerator.regenerate(
        [history.token_ids for _, history in read], job.target_domain, training_rows=job.purpose == "training"
    )
    results_rows = [
        _result_row(row, history, result, vocabulary, num_carried=len(job.carried_columns))
        for (row, history), result in zip(read, results, strict=True)
    ]
    return ChunkResult(results_rows, bad, _counts_of(results_rows), _increments(vocabulary, results))


def _result_row(
    row: SequenceRow, history: ReadHistory, result: Regenerated, vocabulary: Vocabulary, *, num_carried: int
) -> ResultRow:
    stayed = rewritten(history, result)
    items = items_of(stayed, row.item_ids, vocabulary)
    return ResultRow(
        user_id=row.user_id,
        items=[item for place, item in enumerate(items) if place == 0 or items[place - 1] != item],
        kept=result.kept,
        replaced=result.replaced,
        deleted=result.deleted,
        unknown=history.num_skipped,
        truncated=history.num_truncated,
        unknown_kept=len(history.passed_positions),
        interactions=_interactions(row, stayed, items, num_carried),
    )


def _interactions(
    row: SequenceRow, stayed: Rewritten, items: Sequence[str], num_carried: int
) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    columns = (stayed.positions.tolist(), items, stayed.replaced.tolist(), stayed.scores.tolist())
    for position, item, replaced, score in zip(*columns, strict=True):
        time = row.times[position] if row.times else None
        carried = row.carried[position] if row.carried else [None] * num_carried
        if replaced:
            source = (REPLACED, row.item_ids[position], row.domains[position], None if math.isnan(score) else score)
        else:
            source = (KEPT, None, None, None)
        found.append((item, time, *source, carried))
    return found


def _counts_of(rows: Sequence[ResultRow]) -> SequenceCounts:
    sums = {name: sum(getattr(row, name) for row in rows) for name in ITEM_COUNTS}
    return SequenceCounts(sequences=len(rows), **sums)


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

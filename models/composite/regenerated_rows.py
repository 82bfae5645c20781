"""Which sequences of a user enter the composite, and every interaction that stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.composite.mixed_log import MixedLog
from models.data.dataset import TOKENS, TokenArray
from models.data.reading.times import are_whole
from models.decoding.regenerator import Regenerated, without_repeats
from models.exports.encoding import KEPT, REPLACED, interactions_schema
from models.histories import rewritten
from models.item_counts import ITEM_COUNTS
from models.vocabulary import PADDING

ORIGINAL, REGENERATED = "original", "regenerated"
# A row needs a history and an item to predict.
SHORTEST_ROW = 2


@dataclass(frozen=True)
class CompositeRow:
    """One sequence of the composite."""

    user: int
    origin: str
    token_ids: TokenArray


@dataclass(frozen=True)
class RegeneratedUser:
    """
    One user of a log after regeneration.

    Args:
        result: of regenerating what the bundle read.
        positions: in the user's sequence, of the items that stay, repeats included.
        token_ids: what stands there now.
        replaced: whether it took a source item's place.
        scores: of that decision, else NaN.
        num_unread: target items that stayed although they are older than the first item read.
        num_passed: unknown target items that stayed.
        num_skipped: unknown items of other domains.
        num_truncated: items of other domains older than the first that was read.
    """

    result: Regenerated
    positions: npt.NDArray[np.int64]
    token_ids: TokenArray
    replaced: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    num_unread: int
    num_passed: int
    num_skipped: int
    num_truncated: int

    @property
    def counts(self) -> tuple[int, ...]:
        """As ``COUNTS`` names them."""
        result = self.result
        return (
            result.kept + self.num_unread,
            result.replaced,
            result.deleted,
            self.num_skipped,
            self.num_passed,
            self.num_truncated,
        )


# What was not read comes last: the order of the columns of counts.parquet.
COUNTS = (*(name for name in ITEM_COUNTS if name != "truncated"), "truncated")


def regenerated_user(log: MixedLog, user: int, max_items: int, result: Regenerated) -> RegeneratedUser:
    """What became of one user's sequence, given the *result* of what was read of it."""
    read = log.history(user, max_items)
    stayed = rewritten(read, result)
    passed = stayed.token_ids == PADDING
    num_unknown = len(read.unknown_positions)
    tokens = np.where(passed, log.sequences[user][stayed.positions], stayed.token_ids).astype(TOKENS)
    return RegeneratedUser(
        result,
        stayed.positions,
        tokens,
        stayed.replaced,
        stayed.scores,
        len(read.passed_positions) - num_unknown,
        num_unknown,
        read.num_skipped,
        read.num_truncated,
    )


def composite_rows(log: MixedLog, users: Iterable[RegeneratedUser]) -> list[CompositeRow]:
    """
    The rows of every user in order, the original first.

    A regenerated row holds a replacement and differs from the original row by more than repeats; else the user has the
    original row alone. Rows of fewer than two items are left out.
    """
    rows = []
    for user, regenerated in enumerate(users):
        sequence = log.sequences[user]
        original = sequence[log.of_target(sequence)]
        if len(original) >= SHORTEST_ROW:
            rows.append(CompositeRow(user, ORIGINAL, original))
        result = without_repeats(regenerated.token_ids)
        says_new = regenerated.result.replaced > 0 and not np.array_equal(result, without_repeats(original))
        if says_new and len(result) >= SHORTEST_ROW:
            rows.append(CompositeRow(user, REGENERATED, result))
    return rows


def interaction_schema_of(log: MixedLog) -> pa.Schema:
    """The schema of the log's interactions: times are whole numbers where all of them are; carried columns are last."""
    times = log.times_N
    carried = () if log.carried is None else tuple(log.carried.columns)
    return interactions_schema(whole_times=times is None or are_whole(times), carried=carried)


def interaction_table(log: MixedLog, users: Sequence[RegeneratedUser], schema: pa.Schema) -> pa.Table:
    """Every item of all *users* of a log that stays, kept or replaced, user by user in order of time, in *schema*."""
    offsets = log.sequences.offsets
    lengths = [len(user.token_ids) for user in users]
    none = np.zeros(0, dtype=np.int64)
    flat = np.concatenate([none, *(offsets[place] + user.positions for place, user in enumerate(users))])
    replaced = np.concatenate([none.astype(np.bool_), *(user.replaced for user in users)])
    sources = log.sequences.token_ids[flat]
    source_tokens = np.where(replaced, sources, 0)
    names = np.asarray(["", *(d for d in log.vocabulary.domains)], dtype=object)
    domains = names[log.vocabulary.domain_of_tokens(source_tokens) + 1]
    scores = np.concatenate([none.astype(np.float32), *(user.scores for user in users)])
    tokens = np.concatenate([none.astype(TOKENS), *(user.token_ids for user in users)])
    columns = {
        "user": np.repeat(np.asarray(log.user_ids, dtype=object), lengths),
        "item": log.item_ids_of(tokens),
        "timestamp": pa.nulls(len(flat)) if log.times_N is None else log.times_N[flat],
        "origin": np.where(replaced, REPLACED, KEPT).astype(object),
        "source_item": [log.vocabulary.item_ids_of([token])[0] if token else None for token in source_tokens.tolist()],
        "source_domain": pa.array(domains, mask=~replaced),
        "score": pa.array(scores, mask=np.isnan(scores)),
    }
    if log.carried is not None:
        columns |= log.carried[flat.tolist()].to_dict(as_series=False)
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)

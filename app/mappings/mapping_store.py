"""
The mapping store: which source item became which target item, how often and how surely. All its SQL is here.

A *dictionary* counts the decisions of one job, or of all finished jobs of one (target domain, bundle version, rule).
Each pair holds a count and a sum of scores; a deletion is the pair whose target item is ``DELETED``. Chunks merge into
their job's dictionary; a finished job is folded into the sum, a removed one is taken back out of it. Scores are summed
in integer millionths, so neither the order of the chunks nor adding and taking back leaves a trace.

Merges of one dictionary never run at once: each first takes the lock of the dictionary's row, a job's before that of
the sum. That is why they cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Select, bindparam, delete, literal, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.tables import ALL_JOBS, DELETED, dictionaries, mapping_pairs, mapping_sources
from models.vocabulary import Vocabulary

SCORE_UNIT = 1_000_000
# Fetching them is one call, and the interpreter is held until it ends
STREAM_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Increment:
    """*count* more decisions that turned the source item into *target_item* (``DELETED``: into nothing)."""

    source_domain: str
    source_item: str
    target_item: str
    count: int
    score_micros: int


@dataclass(frozen=True, slots=True)
class MappingKey:
    """Where a page ends: the key of its last row."""

    source_domain: str
    source_item: str
    target_item: str


@dataclass(frozen=True, slots=True)
class MappingRow:
    """
    One line of a dictionary.

    ``decisions`` and ``deletions`` count all decisions of the source item; ``count / decisions`` is the line's share,
    and the shares of one source item sum to 1. ``target_item`` is None on the line that counts its deletions, which
    has no score.
    """

    source_domain: str
    source_item: str
    target_item: str | None
    count: int
    score_micros: int
    decisions: int
    deletions: int

    @property
    def share(self) -> float:
        """Part of the source item's decisions, in (0, 1]."""
        return self.count / self.decisions

    @property
    def mean_score(self) -> float | None:
        """Mean score of the decisions, None for deletions."""
        return None if self.target_item is None else self.score_micros / SCORE_UNIT / self.count

    @property
    def key(self) -> MappingKey:
        """The row's place in the order of pages."""
        return MappingKey(self.source_domain, self.source_item, self.target_item or DELETED)


@dataclass(frozen=True)
class DictionaryKey:
    """What a dictionary counts: decisions for one target by one bundle and rule; of one job or of all."""

    target_domain: str
    model_version: str
    rule: str
    job_id: str = ALL_JOBS


@dataclass(frozen=True)
class Dictionary:
    """A dictionary's identity, and the revision that grows with every change of it."""

    dictionary_id: int
    revision: int


@dataclass(frozen=True)
class MappingFilter:
    """Which lines of a dictionary to return; None means any."""

    source_domain: str | None = None
    source_item: str | None = None
    target_item: str | None = None


def increments_of(
    vocabulary: Vocabulary,
    source_tokens: npt.NDArray[np.integer],
    replacements: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
) -> list[Increment]:
    """
    Sum decisions into one increment per (source, target) pair, in key order.

    Args:
        vocabulary: of the bundle that decided.
        source_tokens: token ids, shape [N].
        replacements: the token each became, 0 = deleted, shape [N].
        scores: of the decisions, shape [N]; those of deletions are not counted.
    """
    if len(source_tokens) == 0:
        return []
    pairs = source_tokens.astype(np.int64) * vocabulary.num_tokens + replacements.astype(np.int64)
    unique, inverse = np.unique(pairs, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(unique))
    micros = np.where(replacements == 0, 0, np.rint(scores.astype(np.float64) * SCORE_UNIT)).astype(np.int64)
    sums = np.zeros(len(unique), dtype=np.int64)
    np.add.at(sums, inverse, micros)
    sources, targets = np.divmod(unique, vocabulary.num_tokens)
    domains = (vocabulary.domains[index] for index in vocabulary.domain_of_tokens(sources).tolist())
    items = vocabulary.item_ids_of(sources)
    names = iter(vocabulary.item_ids_of(targets[targets != 0]))
    into = (next(names) if target else DELETED for target in targets.tolist())
    increments = map(Increment, domains, items, into, counts.tolist(), sums.tolist())
    return sorted(increments, key=lambda i: (i.source_domain, i.source_item, i.target_item))


def find_dictionary(connection: Connection, key: DictionaryKey) -> Dictionary | None:
    """The dictionary of *key*; None when nothing has been recorded."""
    row = connection.execute(
        select(dictionaries.c.dictionary_id, dictionaries.c.revision).where(
            *(dictionaries.c[name] == value for name, value in asdict(key).items())
        )
    ).one_or_none()
    return None if row is None else Dictionary(row.dictionary_id, row.revision)


def stage(connection: Connection, increments: Sequence[Increment]) -> None:
    """Load *increments* into this connection's temporary table; no lock is taken that another connection could want."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(_STAGING.format(text='text COLLATE "C"', options="ON COMMIT DELETE ROWS")))
        # Binary COPY, not INSERT: several times the rows per second (benchmarks/bench_mappings.py).
        raw: Any = connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(("text", "text", "text", "int8", "int8"))
            for i in increments:
                copy.write_row((i.source_domain, i.source_item, i.target_item, i.count, i.score_micros))
        return
    connection.execute(text(_STAGING.format(text="text", options="")))
    connection.execute(text("DELETE FROM temp.increments"))
    rows = [(i.source_domain, i.source_item, i.target_item, i.count, i.score_micros) for i in increments]
    if rows:
        connection.exec_driver_sql("INSERT INTO temp.increments VALUES (?, ?, ?, ?, ?)", rows)


def merge_staged(connection: Connection, key: DictionaryKey) -> None:
    """Add what ``stage`` loaded to the dictionary of *key*."""
    into = _lock_dictionary(connection, key)
    connection.execute(text(_MERGE_PAIRS), {"into": into})
    connection.execute(text(_MERGE_SOURCES), {"into": into})


def fold_in(connection: Connection, job: DictionaryKey) -> None:
    """Add a finished job's dictionary to the sum of all jobs."""
    _add(connection, job, sign=1)


def take_back(connection: Connection, job: DictionaryKey) -> None:
    """Subtract a folded-in job from the sum of all jobs: as if it had never run."""
    _add(connection, job, sign=-1)


def drop(connection: Connection, *, job_id: str) -> None:
    """Forget the job's own dictionary; does nothing when it has none."""
    assert job_id != ALL_JOBS
    found = connection.execute(select(dictionaries.c.dictionary_id).where(dictionaries.c.job_id == job_id))
    for dictionary_id in found.scalars().all():
        for table in (mapping_pairs, mapping_sources, dictionaries):
            connection.execute(delete(table).where(table.c.dictionary_id == dictionary_id))


def page(
    connection: Connection, dictionary: Dictionary, where: MappingFilter, *, after: MappingKey | None, limit: int
) -> list[MappingRow]:
    """Up to *limit* lines in key order, beginning behind *after*."""
    _walk_the_index(connection)
    statement = _lines(dictionary, where)
    if after is not None:
        key = tuple_(mapping_pairs.c.source_domain, mapping_pairs.c.source_item, mapping_pairs.c.target_item)
        last = (literal(after.source_domain), literal(after.source_item), literal(after.target_item))
        statement = statement.where(key > tuple_(*last))
    return [_row(r) for r in connection.execute(statement.limit(limit))]


def most_frequent(
    connection: Connection, dictionary: Dictionary, where: MappingFilter, *, limit: int
) -> list[MappingRow]:
    """The *limit* lines of the largest counts, largest first, equals in key order; lines of deletions are left out."""
    pairs = mapping_pairs.c
    key = (pairs.source_domain, pairs.source_item, pairs.target_item)
    statement = _lines(dictionary, where).where(pairs.target_item != DELETED).order_by(None)
    return [_row(r) for r in connection.execute(statement.order_by(pairs["count"].desc(), *key).limit(limit))]


def stream(connection: Connection, dictionary: Dictionary, where: MappingFilter) -> Iterator[list[MappingRow]]:
    """Every line in key order, a block at a time; memory does not grow with the dictionary."""
    _walk_the_index(connection)
    result = connection.execution_options(yield_per=STREAM_ROWS).execute(_lines(dictionary, where))
    for block in result.partitions():
        yield [_row(r) for r in block]


def _lines(dictionary: Dictionary, where: MappingFilter) -> Select[Any]:
    pairs, sources = mapping_pairs.c, mapping_sources.c
    statement = (
        select(
            pairs.source_domain,
            pairs.source_item,
            pairs.target_item,
            pairs["count"],
            pairs.score_micros,
            sources.decisions,
            sources.deletions,
        )
        .join_from(
            mapping_pairs,
            mapping_sources,
            (sources.dictionary_id == pairs.dictionary_id)
            & (sources.source_domain == pairs.source_domain)
            & (sources.source_item == pairs.source_item),
        )
        .where(pairs.dictionary_id == dictionary.dictionary_id)
        .order_by(pairs.source_domain, pairs.source_item, pairs.target_item)
    )
    for column in ("source_domain", "source_item", "target_item"):
        value = getattr(where, column)
        if value is not None:
            statement = statement.where(pairs[column] == value)
    return statement


def _walk_the_index(connection: Connection) -> None:
    """
    Make PostgreSQL read pairs in the order of their index until the transaction ends.

    Left to itself it may, before it has gathered statistics of rows just merged, sort the whole dictionary for every
    page: 33 s instead of 0.2 ms for a page of 200,000 rows.
    """
    if connection.dialect.name == "postgresql":
        settings = ", ".join(f"set_config('{name}', 'off', true)" for name in _OTHER_PLANS)
        connection.execute(text(f"SELECT {settings}"))


def _row(r: Any) -> MappingRow:
    return MappingRow(r[0], r[1], r[2] or None, r[3], r[4], r[5], r[6])


def _lock_dictionary(connection: Connection, key: DictionaryKey) -> int:
    """Create the dictionary or advance its revision; either way its row stays locked until the transaction ends."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = (
        insert(dictionaries)
        .values(**asdict(key), revision=1)
        .on_conflict_do_update(index_elements=list(asdict(key)), set_={"revision": dictionaries.c.revision + 1})
        .returning(dictionaries.c.dictionary_id)
    )
    return int(connection.execute(statement).scalar_one())


def _add(connection: Connection, key: DictionaryKey, *, sign: int) -> None:
    job = find_dictionary(connection, key)
    if job is None:  # a job whose sequences held no item of another domain
        return
    into = _lock_dictionary(connection, replace(key, job_id=ALL_JOBS))
    values = {"into": into, "job": job.dictionary_id, "sign": sign}
    for statement in (_ADD_PAIRS, _ADD_SOURCES):
        connection.execute(text(statement).bindparams(bindparam("sign", type_=mapping_pairs.c["count"].type)), values)
    if sign == -1:
        for statement in (_DROP_EMPTY_PAIRS, _DROP_EMPTY_SOURCES):
            connection.execute(text(statement), {"into": into, "job": job.dictionary_id})


_OTHER_PLANS = (
    "enable_sort",
    "enable_incremental_sort",
    "enable_bitmapscan",
    "enable_seqscan",
    "enable_hashjoin",
    "enable_mergejoin",
)

_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS increments (
    source_domain {text} NOT NULL, source_item {text} NOT NULL, target_item {text} NOT NULL,
    count bigint NOT NULL, score_micros bigint NOT NULL
) {options}
"""

_COPY = "COPY increments (source_domain, source_item, target_item, count, score_micros) FROM STDIN (FORMAT BINARY)"

_MERGE_PAIRS = """
INSERT INTO mapping_pairs (dictionary_id, source_domain, source_item, target_item, count, score_micros)
SELECT :into, source_domain, source_item, target_item, count, score_micros FROM increments
WHERE true ORDER BY source_domain, source_item, target_item
ON CONFLICT (dictionary_id, source_domain, source_item, target_item) DO UPDATE SET
    count = mapping_pairs.count + excluded.count, score_micros = mapping_pairs.score_micros + excluded.score_micros
"""

_MERGE_SOURCES = """
INSERT INTO mapping_sources (dictionary_id, source_domain, source_item, decisions, deletions)
SELECT :into, source_domain, source_item, SUM(count), SUM(CASE WHEN target_item = '' THEN count ELSE 0 END)
FROM increments WHERE true GROUP BY source_domain, source_item ORDER BY source_domain, source_item
ON CONFLICT (dictionary_id, source_domain, source_item) DO UPDATE SET
    decisions = mapping_sources.decisions + excluded.decisions,
    deletions = mapping_sources.deletions + excluded.deletions
"""

_ADD_PAIRS = """
INSERT INTO mapping_pairs (dictionary_id, source_domain, source_item, target_item, count, score_micros)
SELECT :into, source_domain, source_item, target_item, :sign * count, :sign * score_micros FROM mapping_pairs
WHERE dictionary_id = :job ORDER BY source_domain, source_item, target_item
ON CONFLICT (dictionary_id, source_domain, source_item, target_item) DO UPDATE SET
    count = mapping_pairs.count + excluded.count, score_micros = mapping_pairs.score_micros + excluded.score_micros
"""

_ADD_SOURCES = """
INSERT INTO mapping_sources (dictionary_id, source_domain, source_item, decisions, deletions)
SELECT :into, source_domain, source_item, :sign * decisions, :sign * deletions FROM mapping_sources
WHERE dictionary_id = :job ORDER BY source_domain, source_item
ON CONFLICT (dictionary_id, source_domain, source_item) DO UPDATE SET
    decisions = mapping_sources.decisions + excluded.decisions,
    deletions = mapping_sources.deletions + excluded.deletions
"""

_DROP_EMPTY_PAIRS = """
DELETE FROM mapping_pairs WHERE dictionary_id = :into AND count = 0
AND (source_domain, source_item, target_item) IN (
    SELECT source_domain, source_item, target_item FROM mapping_pairs WHERE dictionary_id = :job)
"""

_DROP_EMPTY_SOURCES = """
DELETE FROM mapping_sources WHERE dictionary_id = :into AND decisions = 0
AND (source_domain, source_item) IN (
    SELECT source_domain, source_item FROM mapping_sources WHERE dictionary_id = :job)
"""

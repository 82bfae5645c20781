"""
The SQL tables, and how a connection to them is opened: one schema for SQLite and PostgreSQL.

SQL is the truth about jobs; the queue only carries their ids. Instants are integer milliseconds since 1970 (UTC), so
both databases keep and compare them alike. Text that orders a page compares by code point on both (``COLLATE "C"`` on
PostgreSQL, where SQLite's default already does), so a page ends at the same row whichever database serves it.

``mapping_pairs`` and ``mapping_sources`` hold many *dictionaries* side by side: one per job, and one per (target
domain, bundle version, rule) that sums the finished jobs (``job_id`` = '').
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from models.item_counts import SEQUENCE_COUNTS

# One naming convention, so that a migration can name any constraint on either database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

ALL_JOBS = ""
"""The ``job_id`` of the dictionary that sums every finished job of one target, bundle version and rule."""

DELETED = ""
"""The ``target_item`` of a decision that deleted its source item."""


metadata = MetaData(naming_convention=NAMING)
_Text = String().with_variant(String(collation="C"), "postgresql")

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(32), primary_key=True),  # begins with its creation time: newest first is job_id descending
    Column("state", String(16), nullable=False),
    Column("target_domain", _Text, nullable=False),
    Column("model_version", _Text, nullable=False),
    Column("rule", String(32), nullable=False),
    Column("on_unknown", String(8), nullable=False),
    Column("purpose", String(16), nullable=False, server_default="live"),
    Column("source_uri", Text, nullable=True),  # null: an upload, kept in the job's own storage
    Column("source_name", Text, nullable=False),
    Column("source_format", String(16), nullable=False),
    Column("input_description", Text, nullable=True),  # JSON; null: one file whose layout is found by looking at it
    Column("submitted_by", String(64), nullable=True),  # the name of the key; null: none was asked for
    Column("idempotency_key", String(255), nullable=True, unique=True),
    Column("request_digest", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
    Column("claimed_at_ms", BigInteger, nullable=True),
    Column("started_at_ms", BigInteger, nullable=True),
    Column("finished_at_ms", BigInteger, nullable=True),
    Column("pruned_at_ms", BigInteger, nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("num_chunks", Integer, nullable=True),  # null until the whole input has been cut
    Column("chunks_done", Integer, nullable=False),
    Column("rows_read", BigInteger, nullable=False),
    Column("rows_bad", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in SEQUENCE_COUNTS),
    Column("result_uri", Text, nullable=True),  # null: the result is downloaded
    Column("result_format", String(16), nullable=True),
    Column("result_view", String(16), nullable=True),
    Column("carried", Text, nullable=True),  # a JSON list of names; null: none
    Column("input_warnings", Text, nullable=True),  # a JSON list; null: the input has not been read to its end
    Column("whole_times", Boolean, nullable=True),  # every time of the input is a whole number; null: not known
    Column("reason", Text, nullable=True),  # of an unfinished job: see job_bodies
    Column("traceparent", String(55), nullable=True),  # of the request that made it; null: no traces are asked for
    Index(None, "state", "job_id"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("chunk_index", Integer, primary_key=True, autoincrement=False),
    Column("num_rows", Integer, nullable=False),
    Column("input_name", Text, nullable=False),
    Column("output_name", Text, nullable=True),  # null until the chunk is done
    Column("attempts", Integer, nullable=False),
    Column("queued_at_ms", BigInteger, nullable=False),
    Column("claimed_at_ms", BigInteger, nullable=True),
    Column("last_error", Text, nullable=True),
)

bad_rows = Table(
    "bad_rows",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
)

dictionaries = Table(
    "dictionaries",
    metadata,
    Column("dictionary_id", Integer, primary_key=True),
    Column("target_domain", _Text, nullable=False),
    Column("model_version", _Text, nullable=False),
    Column("rule", String(32), nullable=False),
    Column("job_id", String(32), nullable=False),
    Column("revision", BigInteger, nullable=False),  # one more at every change: the ETag
    UniqueConstraint("target_domain", "model_version", "rule", "job_id"),
    Index(None, "job_id"),
)

# Appended to, never changed: the row with the highest number says which versions serve.
activations = Table(
    "activations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("active", _Text, nullable=False),
    Column("previous", _Text, nullable=True),  # what a roll back would serve
    Column("canary", _Text, nullable=True),
    Column("canary_share", Float, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

# No foreign key to ``dictionaries``: it would be checked for every merged row; both sides change in one transaction.
mapping_pairs = Table(
    "mapping_pairs",
    metadata,
    Column("dictionary_id", Integer, primary_key=True, autoincrement=False),
    Column("source_domain", _Text, primary_key=True),
    Column("source_item", _Text, primary_key=True),
    Column("target_item", _Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("score_micros", BigInteger, nullable=False),  # sum of scores in millionths: integers add up in any order
    # Named by hand: the convention's name would be longer than PostgreSQL's 63 characters.
    Index("ix_mapping_pairs_by_target", "dictionary_id", "target_item", "source_domain", "source_item"),
    sqlite_with_rowid=False,
)

mapping_sources = Table(
    "mapping_sources",
    metadata,
    Column("dictionary_id", Integer, primary_key=True, autoincrement=False),
    Column("source_domain", _Text, primary_key=True),
    Column("source_item", _Text, primary_key=True),
    Column("decisions", BigInteger, nullable=False),
    Column("deletions", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# It only grows: triggers of the migration refuse every change, so an operator's hand is stopped, too.
audit = Table(
    "audit",
    metadata,
    Column("entry_id", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("key_name", String(64), nullable=True),
    Column("request_id", String(128), nullable=True),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=True),  # a JSON object; null: nothing
)

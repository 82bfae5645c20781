"""
The SQL tables, and how a connection to them is opened: one schema for SQLite and PostgreSQL.

SQL is the truth about jobs; the queue only carries their ids. Instants are integer milliseconds since 1970 (UTC), so
both databases keep and compare them alike. Text that orders a page compares by code point on both (``COLLATE "C"`` on
PostgreSQL, where SQLite's default already does), so a page ends at the same row whichever database serves it.

``mapping_pairs`` and ``mapping_sources`` hold many *dictionaries* side by side: one per job, and one per (target
domain, bundle version, rule) that sums the finished jobs (``job_id`` = '').
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import StoreUnavailableError

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

SQLITE_LOCK_TIMEOUT_SECONDS = 60
# A server or a network that has gone silent must end in an error, not in a thread that waits for ever: 5 s to connect;
# 30 s for what was sent to be acknowledged, or for a sign of life while an answer is computed. What the URL says of
# these goes first. A server that is frozen while its kernel acknowledges is noticed by none of them but the first.
POSTGRESQL_PATIENCE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# Of one statement that only reads, a block of a stream included: they take milliseconds, so this one waits for a lock,
# and its client has gone. Statements that write may take long: a merge, a migration, a job's rows removed.
READ_SECONDS = 30
_IMMEDIATE = "taesar_immediate"

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
    Column("sequences", BigInteger, nullable=False),
    Column("kept", BigInteger, nullable=False),
    Column("replaced", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False),
    Column("unknown", BigInteger, nullable=False),
    Column("truncated", BigInteger, nullable=False),
    Column("reason", Text, nullable=True),  # of an unfinished job: why the last attempt to cut its input failed
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


def now_ms() -> int:
    """The present instant in milliseconds since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


def open_engine(database_url: str, *, pool_size: int = 10) -> Engine:
    """
    Connect to the database of *database_url* (``sqlite:///path`` or ``postgresql://...``).

    SQLite runs in WAL mode: readers never wait for the writer, and a second writer waits up to 60 s. PostgreSQL
    connections are checked before use, so a restarted server costs one reconnect and no error; one that has gone silent
    is given up (``POSTGRESQL_PATIENCE``).
    """
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=4 * pool_size,
            connect_args={"timeout": SQLITE_LOCK_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    patience = {name: value for name, value in POSTGRESQL_PATIENCE.items() if name not in url.query}
    return create_engine(
        url, pool_size=pool_size, max_overflow=4 * pool_size, pool_pre_ping=True, connect_args=patience
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """
    A transaction that changes nothing; on PostgreSQL a statement of it ends after READ_SECONDS.

    Raises:
        StoreUnavailableError: the database does not answer, or not in time.
    """
    with _store_errors(), engine.connect() as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{READ_SECONDS}s'")
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """
    A transaction that commits when the block ends and rolls back when it raises.

    On SQLite it takes the write lock at once: upgrading a read transaction later fails instead of waiting.

    Raises:
        StoreUnavailableError: the database does not answer; whether the transaction took effect is then unknown.
    """
    with _store_errors(), engine.connect().execution_options(**{_IMMEDIATE: True}) as connection, connection.begin():
        yield connection


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        reason = type(error.__cause__ or error).__name__
        raise StoreUnavailableError(f"the database does not answer: {reason}") from error


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # the driver's own implicit BEGIN would come too late for IMMEDIATE
    _switch_to_wal(dbapi_connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        dbapi_connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(dbapi_connection: sqlite3.Connection) -> None:
    """Set WAL mode. SQLite refuses the switch at once while another connection makes it, whatever the lock timeout."""
    deadline = time.monotonic() + SQLITE_LOCK_TIMEOUT_SECONDS
    while True:
        try:
            dbapi_connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_IMMEDIATE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

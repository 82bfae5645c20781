"""Opening the database, SQLite or PostgreSQL, and the two kinds of transaction on it."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.errors import StoreRefusesError, StoreUnavailableError
from app.storage.private import PRIVATE_FILE

SQLITE_LOCK_TIMEOUT_SECONDS = 60
# Threads that may wait for SQLite's one write lock, which somebody may hold for long; a further one waits half a second
# for its place. Without a bound they would take every thread and connection, and those who only read would wait, too.
SQLITE_WAITING_WRITERS = 8
SQLITE_PLACE_SECONDS = 0.5


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


UNDEFINED_TABLE = "42P01"
UNDEFINED_COLUMN = "42703"

_IMMEDIATE = "taesar_immediate"
_WRITERS = "taesar_writers"
_ON_OUTAGE = "taesar_on_outage"


def now_ms() -> int:
    """The present instant in milliseconds since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


def open_engine(database_url: str, *, pool_size: int = 10, on_outage: Callable[[], None] | None = None) -> Engine:
    """
    Connect to the database of *database_url* (``sqlite:///path`` or ``postgresql://...``).

    *on_outage* is told of every call that it did not answer.

    SQLite runs in WAL mode: readers never wait for the writer, and a few more writers wait up to 60 s. PostgreSQL
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
            execution_options={_WRITERS: threading.BoundedSemaphore(SQLITE_WAITING_WRITERS), _ON_OUTAGE: on_outage},
        )
        event.listen(engine, "do_connect", _make_private)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    patience = {name: value for name, value in POSTGRESQL_PATIENCE.items() if name not in url.query}
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=4 * pool_size,
        pool_pre_ping=True,
        connect_args=patience,
        execution_options={_ON_OUTAGE: on_outage},
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """
    A transaction that changes nothing; on PostgreSQL a statement of it ends after READ_SECONDS.

    Raises:
        StoreUnavailableError: the database does not answer, or not in time; StoreRefusesError: not to us.
    """
    with _store_errors(engine), engine.connect() as connection, connection.begin():
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
    with (
        _place_among_writers(engine),
        _store_errors(engine),
        engine.connect().execution_options(**{_IMMEDIATE: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def _place_among_writers(engine: Engine) -> Iterator[None]:
    writers: threading.BoundedSemaphore | None = engine.get_execution_options().get(_WRITERS)
    if writers is None:  # PostgreSQL
        yield
        return
    if not writers.acquire(timeout=SQLITE_PLACE_SECONDS):
        _tell_of_outage(engine)
        raise StoreUnavailableError("the database does not answer: too many others wait to write to it")
    try:
        yield
    finally:
        writers.release()


def _tell_of_outage(engine: Engine) -> None:
    on_outage: Callable[[], None] | None = engine.get_execution_options().get(_ON_OUTAGE)
    if on_outage is not None:
        on_outage()


@contextmanager
def _store_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if _lacks_schema(error):
            raise StoreUnavailableError("the database's schema is not this version's: run `taesar migrate`") from error
        if not isinstance(error, OperationalError | InterfaceError):
            raise
        _tell_of_outage(engine)
        reason = _reason(error)
        if reason in dict(_NO_ENTRANCE).values():
            raise StoreRefusesError(f"the database cannot be used: {reason}") from error
        raise StoreUnavailableError(f"the database does not answer: {reason}") from error
    except PoolTimeoutError as error:
        _tell_of_outage(engine)
        reason = type(error.__cause__ or error).__name__
        raise StoreUnavailableError(f"the database does not answer: {reason}") from error


def _reason(error: DBAPIError) -> str:
    """In words that tell a stranger no address, user or name of a database: answers of the service say them, too."""
    said = str(error.orig)
    if isinstance(error.orig, sqlite3.Error):  # none of its messages names anything
        return said
    known = (reason for pattern, reason in _POSTGRESQL_REASONS if re.search(pattern, said))
    return next(known, type(error.orig).__name__)


_NO_ENTRANCE = (
    (r"authentication failed|no password supplied|role .* does not exist|pg_hba", "it refuses this user or password"),
    (r"database .* does not exist", "it has no database of this name"),
)
_POSTGRESQL_REASONS = (
    *_NO_ENTRANCE,
    (r"[Cc]onnection refused", "nothing listens at its address"),
    (r"resolve host|translate host name|Name or service not known", "its host is not known"),
    (r"too many clients|connection slots", "it has no connection left"),
)


def _lacks_schema(error: DBAPIError) -> bool:
    """Whether a table or a column is missing, as in a database that was not migrated."""
    if isinstance(error.orig, sqlite3.OperationalError):
        return str(error.orig).startswith(("no such table", "no such column"))
    return getattr(error.orig, "sqlstate", None) in (UNDEFINED_TABLE, UNDEFINED_COLUMN)


def _make_private(_dialect: Any, _record: Any, arguments: Any, _options: Any) -> None:
    """Make SQLite's file before SQLite does, readable by this user only; its other files follow its mode."""
    if str(arguments[0]).startswith("file:"):  # SQLite's own kind of URI
        return
    with suppress(OSError):  # a folder that is not there: SQLite says so
        os.close(os.open(arguments[0], os.O_RDWR | os.O_CREAT, PRIVATE_FILE))


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

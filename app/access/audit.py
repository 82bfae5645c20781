"""
The audit record: who did what, and when.

A table of SQL that grows only: the database refuses to change or remove an entry. An act and its entry are one
transaction, so neither is without the other. Who acts is what the log says of the same moment: the key and the request
that the context has bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from app.access.key_file import AccessKey
from app.runtime.logs import current_key_name, current_request_id
from app.storage.database import now_ms, reading, writing
from app.storage.tables import audit

PAGE = 1000


class Act(StrEnum):
    """What is recorded."""

    SUBMIT = "job.submit"
    CANCEL = "job.cancel"
    REMOVE = "job.remove"
    SERVE = "model.serve"
    KEY_ADDED = "key.added"
    KEY_REMOVED = "key.removed"


_KEYS = (Act.KEY_ADDED, Act.KEY_REMOVED)


@dataclass(frozen=True)
class AuditEntry:
    """
    One act.

    Args:
        entry_id: grows with each.
        at_ms: when, in milliseconds since 1970 (UTC).
        key_name: whose key; None where no key is asked for, and for what no request did.
        request_id: as in the log and in X-Request-ID; None for what no request did.
        action: one of ``Act``.
        subject: the job, the version or the key that it was done to.
        detail: what else is worth knowing.
    """

    entry_id: int
    at_ms: int
    key_name: str | None
    request_id: str | None
    action: str
    subject: str
    detail: Mapping[str, Any]


def append_act(connection: Connection, act: Act, subject: str, **detail: Any) -> None:
    """Record an act in the transaction that does it."""
    connection.execute(
        insert(audit).values(
            at_ms=now_ms(),
            key_name=current_key_name(),
            request_id=current_request_id() or None,
            action=act,
            subject=subject,
            detail=json.dumps(detail) if detail else None,
        )
    )


def entries_after(engine: Engine, after: int = 0, *, limit: int = PAGE) -> list[AuditEntry]:
    """Up to *limit* entries, oldest first, behind the entry *after*."""
    statement = select(audit).where(audit.c.entry_id > after).order_by(audit.c.entry_id).limit(limit)
    with reading(engine) as connection:
        return [_entry_of(row) for row in connection.execute(statement)]


def record_keys(engine: Engine, keys: Sequence[AccessKey]) -> None:
    """
    Record which keys came and went since the last time, whichever process noticed, and also while none ran.

    The record itself says what was known: its last entry of each name. Another value or other scopes under the same
    name are a key that went and one that came.
    """
    now = {key.name: _told_of(key) for key in keys}
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":  # replicas notice at the same time; one records
            connection.exec_driver_sql("LOCK TABLE audit IN SHARE ROW EXCLUSIVE MODE")
        known = _known_keys(connection)
        for name in sorted(known.keys() - {name for name in now if now[name] == known.get(name)}):
            append_act(connection, Act.KEY_REMOVED, name)
        for name in sorted(name for name in now if now[name] != known.get(name)):
            append_act(connection, Act.KEY_ADDED, name, **now[name])


def _told_of(key: AccessKey) -> dict[str, Any]:
    # A part of the hash tells a new value from the old one, and nobody anything about it
    return {"scopes": sorted(key.scopes), "hash_begins": key.hash[:8]}


def _known_keys(connection: Connection) -> dict[str, dict[str, Any]]:
    statement = select(audit.c.action, audit.c.subject, audit.c.detail).where(audit.c.action.in_(_KEYS))
    known: dict[str, dict[str, Any]] = {}
    for row in connection.execute(statement.order_by(audit.c.entry_id)):
        known.pop(row.subject, None)
        if row.action == Act.KEY_ADDED:
            known[row.subject] = json.loads(row.detail)
    return known


def _entry_of(row: Any) -> AuditEntry:
    detail = {} if row.detail is None else json.loads(row.detail)
    return AuditEntry(row.entry_id, row.at_ms, row.key_name, row.request_id, row.action, row.subject, detail)

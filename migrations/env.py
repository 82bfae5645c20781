"""Alembic's entry point: runs the revisions on the connection that ``app.storage.schema`` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from app.storage.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite alters a table by copying it; batch mode writes that copy.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()

"""The database schema's history: Alembic revisions that run forwards and backwards on SQLite and PostgreSQL."""

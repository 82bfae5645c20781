"""The version of the database's schema: bring it up to date, take it back, and say whether it is this code's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine

import migrations
from app.storage.database import reading, writing

HEAD = "head"
BASE = "base"


class RevisionError(Exception):
    """There is no such revision, or no way to it from the database's."""


def upgrade(engine: Engine, revision: str = HEAD) -> None:
    """
    Run every revision up to *revision* that the database has not seen; running it again changes nothing.

    Raises:
        RevisionError: this code does not know the revision, or the database's.
    """
    with _revision_errors(), writing(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        if engine.dialect.name == "postgresql":  # several processes may start at once; one migrates, the others wait
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264519)")
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """
    Take the schema back to *revision* (``BASE``: to nothing). The data of dropped tables is lost.

    Raises:
        RevisionError: this code does not know the revision, or it is newer than the database's.
    """
    with _revision_errors(), writing(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def is_current(engine: Engine) -> bool:
    """Whether the database's schema is the newest that this code knows."""
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision() == newest_revision()


def newest_revision() -> str | None:
    """The revision that this code was written for."""
    return ScriptDirectory.from_config(_config()).get_current_head()


@contextmanager
def _revision_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise RevisionError(f"the schema cannot be moved to that revision: {error}") from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    return config

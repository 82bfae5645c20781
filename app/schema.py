"""The version of the database's schema: bring it up to date, take it back, and say whether it is this code's."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

import migrations
from app.tables import reading, writing

HEAD = "head"
BASE = "base"


def upgrade(engine: Engine, revision: str = HEAD) -> None:
    """Run every revision up to *revision* that the database has not seen; running it again changes nothing."""
    with writing(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        if engine.dialect.name == "postgresql":  # several processes may start at once; one migrates, the others wait
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7264519)")
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the schema back to *revision* (``BASE``: to nothing). The data of dropped tables is lost."""
    with writing(engine) as connection:
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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    return config

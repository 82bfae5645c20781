"""`taesar migrate`: brings the database to this version's schema, or back."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.console import fail, say, set_result
from app.cli.options import read_settings


def migrate(
    down_to: Annotated[
        str | None,
        typer.Option(
            help="Take the schema back to this revision ('base': to nothing). Data of dropped tables is lost."
        ),
    ] = None,
) -> None:
    """Bring the database's schema up to date; several at once are safe, and again changes nothing."""
    from app.errors import StoreUnavailableError
    from app.storage import schema
    from app.storage.database import open_engine
    from app.storage.private import make_private_folder

    settings = read_settings()
    if settings.database_url is None:
        make_private_folder(settings.data)
    engine = open_engine(settings.database())
    try:
        if down_to is None:
            schema.upgrade(engine)
        else:
            schema.downgrade(engine, down_to)
    except (StoreUnavailableError, schema.RevisionError) as error:
        fail(error)
    finally:
        engine.dispose()
    revision = schema.newest_revision() if down_to is None else down_to
    say(f"schema at revision {revision}")
    set_result(revision=revision)

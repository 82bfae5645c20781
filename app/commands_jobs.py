"""The commands around jobs: `taesar worker`, `taesar migrate`, `taesar prune`."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from app.options import read_settings
from app.terminal import complain, say

FAILED = 2


def worker(
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Chunks computed at once, instead of TAESAR_WORKER_THREADS.", show_default=False),
    ] = None,
) -> None:
    """
    Work on jobs from Redis until SIGTERM, then finish the chunks that were begun.

    Any number of workers, on any number of machines, may share one Redis, database and storage.
    """
    from app.errors import StoreUnavailableError
    from app.worker import NoQueueError, SchemaOutdatedError, run_worker

    settings = read_settings(worker_threads=threads)
    try:
        run_worker(settings)
    except (NoQueueError, SchemaOutdatedError, StoreUnavailableError) as error:
        _fail(error)


def migrate(
    down_to: Annotated[
        str | None,
        typer.Option(
            help="Take the schema back to this revision ('base': to nothing). Data of dropped tables is lost."
        ),
    ] = None,
) -> None:
    """Bring the database's schema up to date; several at once are safe, and again changes nothing."""
    from app import schema
    from app.errors import StoreUnavailableError
    from app.tables import open_engine

    settings = read_settings()
    if settings.database_url is None:
        settings.data.mkdir(parents=True, exist_ok=True)
    engine = open_engine(settings.database())
    try:
        if down_to is None:
            schema.upgrade(engine)
        else:
            schema.downgrade(engine, down_to)
    except (StoreUnavailableError, schema.RevisionError) as error:
        _fail(error)
    finally:
        engine.dispose()
    say(f"schema at revision {schema.newest_revision() if down_to is None else down_to}")


def prune(
    retention_days: Annotated[
        float | None,
        typer.Option(min=0, help="Age of what is removed, instead of TAESAR_RETENTION_DAYS.", show_default=False),
    ] = None,
) -> None:
    """Remove results and bad rows past their retention, and files that no job needs; records and counts stay."""
    from app.errors import StoreUnavailableError
    from app.worker import job_parts
    from app.worker import prune as prune_results

    settings = read_settings(retention_days=retention_days)
    parts = job_parts(settings)
    try:
        pruned = prune_results(parts, retention_days=settings.retention_days)
    except StoreUnavailableError as error:
        _fail(error)
    finally:
        parts.close()
    days = f"{settings.retention_days:g}"
    say(f"removed what {len(pruned)} jobs left that ended more than {days} days ago")


def _fail(error: Exception) -> NoReturn:
    complain(f"taesar: {error}")
    sys.exit(FAILED)

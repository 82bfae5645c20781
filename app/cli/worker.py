"""`taesar worker`: works on jobs from Redis."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.console import fail
from app.cli.options import read_settings, say_starting


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
    settings = read_settings(worker_threads=threads)
    say_starting(settings, "worker")
    from app.errors import StoreUnavailableError
    from app.jobs.parts import SchemaOutdatedError
    from app.jobs.worker import NoQueueError, run_worker
    from app.runtime.tracing import TracingMissingError

    try:
        run_worker(settings)
    except (NoQueueError, SchemaOutdatedError, StoreUnavailableError, TracingMissingError, OSError) as error:
        fail(error)

"""`taesar prune`: removes the results of old jobs; their records and counts stay."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from app.cli.console import fail, print_error, say, set_result
from app.cli.options import read_settings


def prune(
    retention_days: Annotated[
        float | None,
        typer.Option(min=0, help="Age of what is removed, instead of TAESAR_RETENTION_DAYS.", show_default=False),
    ] = None,
    every_hours: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Again and again, so many hours after the last time, until SIGTERM; a database that does not answer "
            "is asked again the next time. Without it: once.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Remove results and bad rows past their retention, and files that no job needs; records and counts stay."""
    settings = read_settings(retention_days=retention_days)
    say("looking for what is past its retention")
    from app.errors import StoreUnavailableError
    from app.jobs.parts import job_parts
    from app.jobs.pruning import prune as prune_results

    parts = job_parts(settings)
    stopping = threading.Event()
    if every_hours is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
    try:
        while True:
            try:
                pruned = prune_results(parts, retention_days=settings.retention_days)
            except StoreUnavailableError as error:
                if every_hours is None:
                    fail(error)
                print_error(f"taesar: {error}")
            else:
                days = f"{settings.retention_days:g}"
                say(f"removed what {len(pruned)} jobs left that ended more than {days} days ago")
                set_result(jobs=sorted(pruned), retention_days=settings.retention_days)
            if every_hours is None or stopping.wait(every_hours * 3600):
                return
    finally:
        parts.close()

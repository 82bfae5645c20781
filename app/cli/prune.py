"""`taesar prune`: removes the results of old jobs; their records and counts stay."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.console import fail, say, set_result
from app.cli.options import read_settings


def prune(
    retention_days: Annotated[
        float | None,
        typer.Option(min=0, help="Age of what is removed, instead of TAESAR_RETENTION_DAYS.", show_default=False),
    ] = None,
) -> None:
    """Remove results and bad rows past their retention, and files that no job needs; records and counts stay."""
    from app.errors import StoreUnavailableError
    from app.jobs.parts import job_parts
    from app.jobs.pruning import prune as prune_results

    settings = read_settings(retention_days=retention_days)
    parts = job_parts(settings)
    try:
        pruned = prune_results(parts, retention_days=settings.retention_days)
    except StoreUnavailableError as error:
        fail(error)
    finally:
        parts.close()
    days = f"{settings.retention_days:g}"
    say(f"removed what {len(pruned)} jobs left that ended more than {days} days ago")
    set_result(jobs=sorted(pruned), retention_days=settings.retention_days)

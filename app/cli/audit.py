"""`taesar audit`: who did what, and when."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.cli.console import say, set_result
from app.cli.options import read_settings


def audit(
    after: Annotated[int, typer.Option(min=0, help="Only entries behind this number: the last one that you have.")] = 0,
) -> None:
    """Print the audit record, an object a line, oldest first: jobs submitted, cancelled, removed; models; keys."""
    from app.access.audit import entries_after
    from app.storage.database import open_engine

    engine = open_engine(read_settings().database())
    last = after
    try:
        while entries := entries_after(engine, last):
            for entry in entries:
                say(json.dumps(vars(entry)))
            last = entries[-1].entry_id
    finally:
        engine.dispose()
    set_result(last=last)

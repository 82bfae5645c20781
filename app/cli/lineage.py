"""``taesar lineage``: from a result back to its bundle, its datasets, their inputs and the time they cover."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import say, set_result


def lineage(
    folder: Annotated[Path, typer.Argument(help="What `taesar regenerate`, `taesar train` or `taesar prepare` wrote.")],
) -> None:
    """
    Say where a result, a bundle or a dataset comes from, the latest first.

    The folders before it need not be there any more: every output keeps the facts of what it was made of.
    """
    say(f"reading {folder}")
    from models.composite.lineage import describe_lineage, read_lineage

    found = read_lineage(folder)
    for line in describe_lineage(found):
        say(line)
    set_result(**found)

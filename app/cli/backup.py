"""`taesar backup` and `taesar restore`: what the service keeps, in one folder, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import say, set_result
from app.cli.options import read_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.storage.job_files import Storage


def backup(
    folder: Annotated[Path, typer.Argument(resolve_path=True, help="A new folder.", show_default=False)],
) -> None:
    """
    Save database and files of jobs into one folder; the service may run meanwhile.

    Redis needs no backup, bundles are where you trained them.
    """
    say(f"saving to {folder}")
    from app.storage.backup import save_backup

    engine, storage = _kept()
    try:
        made = save_backup(engine, storage, folder)
    finally:
        engine.dispose()
    say(f"saved {sum(made.rows.values()):,} rows of {len(made.rows)} tables and {made.num_files:,} files in {folder}")
    set_result(folder=str(folder), rows=made.rows, files=made.num_files, revision=made.revision)


def restore(
    folder: Annotated[Path, typer.Argument(resolve_path=True, help="Of `taesar backup`.", show_default=False)],
) -> None:
    """
    Put a backup into an empty database and the storage of jobs, at this version's schema; then start the service.

    The database may be of another kind than the one that was saved.
    """
    say(f"reading {folder}")
    from app.storage.backup import restore_backup

    engine, storage = _kept()
    try:
        found = restore_backup(engine, storage, folder)
    finally:
        engine.dispose()
    say(f"restored {sum(found.rows.values()):,} rows and {found.num_files:,} files of {found.created}")
    set_result(folder=str(folder), rows=found.rows, files=found.num_files)


def _kept() -> tuple[Engine, Storage]:
    from app.storage.database import open_engine
    from app.storage.job_files import Storage
    from app.storage.private import make_private_folder

    settings = read_settings()
    if settings.database_url is None:
        make_private_folder(settings.data)
    return open_engine(settings.database()), Storage(settings.job_storage())

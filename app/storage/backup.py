"""
Backup and restore of what the service keeps: every table and the files of jobs, in one folder.

The tables are read in one transaction, then the files: a result that the tables do not know is removed by pruning, one
that they know and that is not there would be an error. The folder knows neither database: what SQLite held can be
restored into PostgreSQL, and the other way round. Redis needs none: what it held is found in SQL.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, func, inspect, select, text

from app.errors import BackupError
from app.storage import schema
from app.storage.database import reading, writing
from app.storage.job_files import Storage
from models.files import PARTIAL_SUFFIX, replace_folder

MANIFEST = "backup.json"
TABLES, FILES = "tables", "files"
ROWS_AT_ONCE = 1000
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class Backup:
    """
    What a folder holds.

    Args:
        software, revision: of Taesar and of the schema, when it was made.
        created: when, ISO 8601.
        rows: by table.
        num_files: of jobs.
    """

    software: str
    revision: str
    created: str
    rows: dict[str, int]
    num_files: int


def save_backup(engine: Engine, storage: Storage, folder: Path) -> Backup:
    """
    Write all that *engine* and *storage* hold into *folder*, which appears whole or not at all; the service may run.

    Raises:
        BackupError: the folder is there already, or the database was never migrated.
        StoreUnavailableError, FilesUnavailableError: what is to be saved cannot be read.
    """
    if folder.exists():
        raise BackupError(f"{folder} is there already; a backup is written into a new folder")
    with replace_folder(folder) as partial:
        partial.chmod(0o700)
        (partial / TABLES).mkdir()
        # A transaction is a snapshot on SQLite; PostgreSQL is asked for one.
        with reading(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            revision = MigrationContext.configure(connection).get_current_revision()
            if revision is None:
                raise BackupError("the database holds nothing of Taesar's: `taesar migrate` has not run")
            found = MetaData()
            found.reflect(connection)
            rows = {
                table.name: _save_table(connection, table, partial / TABLES / f"{table.name}.ndjson.gz")
                for table in found.sorted_tables
                if table.name != _VERSION_TABLE
            }
        made = Backup(
            software=importlib.metadata.version("taesar"),
            revision=revision,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            rows=rows,
            num_files=_save_files(storage, partial / FILES),
        )
        (partial / MANIFEST).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
    return made


def restore_backup(engine: Engine, storage: Storage, folder: Path) -> Backup:
    """
    Put what *folder* holds into an empty database and its storage, and bring the schema up to date.

    The files come first: a database that knows a result finds it. Start the service afterwards.

    Raises:
        BackupError: the folder is no backup or damaged, it is of a newer schema, or the database is not empty.
        StoreUnavailableError, FilesUnavailableError: it cannot be written.
    """
    backup = _manifest_of(folder)
    _refuse_what_is_not_empty(engine)
    names = sorted(path.relative_to(folder / FILES) for path in (folder / FILES).rglob("*") if path.is_file())
    if len(names) != backup.num_files:
        raise BackupError(f"{folder}: holds {len(names)} files of jobs, and its manifest says {backup.num_files}")
    for name in names:
        with (folder / FILES / name).open("rb") as source:
            storage.write_stream(name.as_posix(), source)
    try:
        schema.upgrade(engine, backup.revision)
    except schema.RevisionError as error:
        raise BackupError(f"{folder} is of a newer schema ({backup.revision}) than this version knows") from error
    with writing(engine) as connection:
        found = MetaData()
        found.reflect(connection)
        for table in found.sorted_tables:
            if table.name in backup.rows:
                _restore_table(connection, table, folder, backup.rows[table.name])
    schema.upgrade(engine)
    return backup


def _save_table(connection: Connection, table: Any, path: Path) -> int:
    num_rows = 0
    found = connection.execute(select(table), execution_options={"yield_per": ROWS_AT_ONCE})
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for row in found:
            out.write(json.dumps(dict(row._mapping)) + "\n")
            num_rows += 1
    return num_rows


def _save_files(storage: Storage, out: Path) -> int:
    out.mkdir()
    num_files = 0
    for folder in storage.folders():
        for name in storage.names(folder):
            if name.endswith(PARTIAL_SUFFIX):
                continue
            path = out / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with storage.open(f"{folder}/{name}") as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            except FileNotFoundError:  # its job was removed meanwhile
                path.unlink(missing_ok=True)
                continue
            num_files += 1
    return num_files


def _restore_table(connection: Connection, table: Any, folder: Path, num_rows: int) -> None:
    path = folder / TABLES / f"{table.name}.ndjson.gz"
    try:
        rows = _rows_of(path)
        written = 0
        while block := list(islice(rows, ROWS_AT_ONCE)):
            connection.execute(table.insert(), block)
            written += len(block)
    except (OSError, EOFError, ValueError) as error:
        raise BackupError(f"{path}: cannot be read: {error}") from error
    if written != num_rows:
        raise BackupError(f"{path}: holds {written} rows, and its manifest says {num_rows}")
    if connection.dialect.name == "postgresql":
        _continue_numbers(connection, table)


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _continue_numbers(connection: Connection, table: Any) -> None:
    """PostgreSQL counts in a sequence, which does not see numbers that were given."""
    for column in table.primary_key.columns:
        sequence = connection.execute(
            text("SELECT pg_get_serial_sequence(:table, :column)"), {"table": table.name, "column": column.name}
        ).scalar_one()
        highest = connection.execute(select(func.max(column))).scalar_one() if sequence else None
        if highest is not None:
            connection.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})


def _refuse_what_is_not_empty(engine: Engine) -> None:
    with writing(engine) as connection:
        for name in inspect(connection).get_table_names():
            if name == _VERSION_TABLE:
                continue
            if connection.execute(text(f'SELECT 1 FROM "{name}" LIMIT 1')).one_or_none() is not None:
                raise BackupError(f"the database is not empty (table {name}): a backup is restored into an empty one")


def _manifest_of(folder: Path) -> Backup:
    try:
        return Backup(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BackupError(f"{folder / MANIFEST}: not a backup: {error}") from error

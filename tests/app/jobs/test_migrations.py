"""Migrations run forwards and backwards on both databases and end at the tables that the code uses."""

import concurrent.futures
import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Integer, inspect, text

from app.storage import schema
from app.storage.database import open_engine, reading, writing
from app.storage.tables import metadata

OURS = {"activations", "audit", "jobs", "chunks", "bad_rows", "dictionaries", "mapping_pairs", "mapping_sources"}


@pytest.fixture
def empty(empty_database):
    engine = open_engine(empty_database)
    yield engine
    engine.dispose()


def test_up_down_and_up_again_leaves_the_same_tables(empty):
    schema.upgrade(empty)
    first = {name: columns_of(empty, name) for name in inspect(empty).get_table_names()}
    schema.downgrade(empty, schema.BASE)
    between = set(inspect(empty).get_table_names())
    schema.upgrade(empty)

    assert between == {"alembic_version"}
    assert {name: columns_of(empty, name) for name in inspect(empty).get_table_names()} == first
    assert set(first) == OURS | {"alembic_version"}


def columns_of(engine, table):
    return [(column["name"], str(column["type"]), column["nullable"]) for column in inspect(engine).get_columns(table)]


def test_the_migrated_tables_are_the_ones_that_the_code_declares(empty):
    """Nothing for Alembic to generate: columns, types, indexes, keys and their names agree."""
    schema.upgrade(empty)
    with reading(empty) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)

    assert differences == []


def test_every_constraint_is_named_by_the_convention(empty):
    schema.upgrade(empty)
    inspector = inspect(empty)
    names = []
    for table in OURS:
        names.append(inspector.get_pk_constraint(table)["name"])
        names += [key["name"] for key in inspector.get_foreign_keys(table)]
        names += [key["name"] for key in inspector.get_unique_constraints(table)]
        names += [index["name"] for index in inspector.get_indexes(table)]

    assert all(name is not None and name[:3] in ("pk_", "fk_", "uq_", "ix_") for name in names), names


def test_a_database_that_was_not_migrated_is_not_current(empty):
    before = schema.is_current(empty)
    schema.upgrade(empty)

    assert (before, schema.is_current(empty)) == (False, True)


def test_several_processes_may_migrate_at_once(empty_database):
    """Started together, as containers are: one runs the revisions, the others find them done."""

    def migrate(_):
        engine = open_engine(empty_database)
        schema.upgrade(engine)
        current = schema.is_current(engine)
        engine.dispose()
        return current

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, range(4))) == [True] * 4


def test_a_fresh_sqlite_file_waits_for_whoever_is_writing_it(tmp_path):
    """SQLite refuses the switch to WAL at once while another connection may write; ``timeout`` does not cover it."""
    path = tmp_path / "fresh.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, writer.rollback)
    engine = open_engine(f"sqlite:///{path}")
    release.start()
    with reading(engine) as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    engine.dispose()
    release.join()
    writer.close()

    assert mode == "wal"


def test_text_is_ordered_by_code_point_on_both_databases(engine):
    """Pages end at the same row whatever the database's locale says."""
    with writing(engine) as connection:
        for item in ("b", "B", "a-c", "ab", "ä", "Z"):
            connection.execute(text("INSERT INTO mapping_sources VALUES (1, 'books', :item, 1, 0)"), {"item": item})
    with reading(engine) as connection:
        found = connection.execute(text("SELECT source_item FROM mapping_sources ORDER BY source_item")).scalars().all()

    assert found == sorted(("b", "B", "a-c", "ab", "ä", "Z"))


@pytest.mark.parametrize(
    ("revision", "column", "value"),
    [
        pytest.param("0001", "purpose", "live", id="all histories were live ones"),
        pytest.param("0002", "unknown_kept", 0, id="no unknown item stayed"),
        pytest.param("0003", "result_uri", None, id="every result was downloaded"),
        pytest.param("0003", "carried", None, id="no column came along"),
        pytest.param("0004", "input_description", None, id="every input was found by looking at it"),
        pytest.param("0006", "traceparent", None, id="no trace was kept"),
    ],
)
def test_a_job_from_before_a_column_has_what_was_true_then(empty, revision, column, value):
    schema.upgrade(empty)
    schema.downgrade(empty, revision)
    names = {found["name"]: found["type"] for found in inspect(empty).get_columns("jobs")}
    values = {name: 0 if isinstance(kind, Integer) else "x" for name, kind in names.items()}
    with writing(empty) as connection:
        places = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({places})"), values)
    schema.upgrade(empty)

    with reading(empty) as connection:
        assert connection.execute(text(f"SELECT {column} FROM jobs")).scalars().all() == [value]

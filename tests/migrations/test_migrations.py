"""A database made by all migrations equals `storage/schema.py`, down to names, defaults and predicates."""

import threading

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from storage import migrate
from storage.schema import metadata
from storage.strings import WELL_KNOWN

CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
               pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
          AND NOT a.attisdropped ORDER BY 1, 2""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, condeferrable, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
    "tables": """
        SELECT relname, relkind, relpersistence, reloptions, obj_description(oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S') ORDER BY 1""",
    "sequences": "SELECT sequencename, data_type, start_value FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1",
}


def test_the_migrated_database_has_the_catalogue_of_the_schema(conninfo: str, empty_conninfo: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_conninfo), poolclass=NullPool)
    metadata.create_all(engine)
    engine.dispose()

    with psycopg.connect(conninfo) as migrated, psycopg.connect(empty_conninfo) as made:
        migrated.execute("DROP TABLE alembic_version")
        for what, query in CATALOGUE.items():
            assert migrated.execute(query).fetchall() == made.execute(query).fetchall(), what


def test_alembic_sees_no_difference(conninfo: str) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo), poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_rows_that_the_code_relies_on_are_there(connection: psycopg.Connection) -> None:
    assert connection.execute("SELECT position FROM log_head").fetchall() == [(0,)]
    assert dict(connection.execute("SELECT value, id FROM strings").fetchall()) == WELL_KNOWN


def test_servers_that_start_together_migrate_once(empty_conninfo: str) -> None:
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(migrate.upgrade(empty_conninfo))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(done) == [False, False, False, True]
    assert migrate.find_revision(empty_conninfo) == migrate.newest_revision()


def test_an_empty_database_has_no_revision(empty_conninfo: str) -> None:
    assert migrate.find_revision(empty_conninfo) is None


def test_a_database_of_a_later_release_is_left_alone(conninfo: str, connection: psycopg.Connection) -> None:
    connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(migrate.DatabaseTooNewError, match="9999"):
        migrate.upgrade(conninfo)

"""Bring a database's schema up to date, and say whether it is.

Forward only, each migration in a transaction of its own. Processes that start together take turns under an advisory
lock; whoever comes second finds nothing left to do. Alembic is loaded only when there is something to do.
"""

import importlib
import re
from pathlib import Path

import psycopg

import migrations

# Taken for as long as an upgrade runs; any number that nothing else in this database uses.
_LOCK = 7_236_839_170_001
_FILE_NAME = re.compile(r"(\d{4})_\w+\.py")


class DatabaseTooNewError(Exception):
    """A later release has migrated this database; this one must not touch it."""


def newest_revision() -> str:
    """The revision that this release's code expects."""
    return max(match[1] for match in map(_FILE_NAME.fullmatch, _file_names()) if match)


def find_revision(conninfo: str) -> str | None:
    """The database's revision; None if it is empty. Raises DatabaseTooNewError if this release does not know it."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return _find_revision(connection)


def upgrade(conninfo: str) -> bool:
    """Run the migrations that the database lacks; whether there were any.

    Raises DatabaseTooNewError if the database is ahead of this release, psycopg.Error or SQLAlchemy's if it fails; what
    had been finished before that stays.
    """
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if _find_revision(connection) == newest_revision():
            return False
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        if _find_revision(connection) == newest_revision():
            return False
        # Not imported above: alembic and SQLAlchemy cost half a second, and most starts need neither.
        run = importlib.import_module("migrations.run")
        run.upgrade(conninfo)
        return True  # the lock goes with the connection


def _find_revision(connection: psycopg.Connection) -> str | None:
    if connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None:
        return None
    revision = str(row[0])
    if revision > newest_revision():
        raise DatabaseTooNewError(
            f"The database has revision {revision}, and this release knows up to {newest_revision()}: "
            "a later release has used it. Install that release again."
        )
    return revision


def _file_names() -> list[str]:
    return [path.name for path in (Path(migrations.__path__[0]) / "versions").iterdir()]

"""The PostgreSQL cluster of a test run: one for all workers, made by whoever comes first, gone with the run."""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg import sql

from migrations import render_initial
from storage import migrate
from storage.cluster_settings import ClusterSettings
from storage.embedded import EmbeddedPostgres
from tests import fellows

TEMPLATE = "hearth_template"
DROP_ATTEMPTS = 50


class RunCluster:
    """A cluster without durability and the directory that it lives in."""

    def __init__(self) -> None:
        """Start it, and make the template that every test's database is a copy of."""
        # Not pytest's own directory: as root that is closed to the user that PostgreSQL runs as.
        self.directory = Path(tempfile.mkdtemp(prefix="hearth-tests-"))
        self.directory.chmod(0o711)
        self._postgres = EmbeddedPostgres(
            self.directory,
            settings=ClusterSettings(
                durable=False, max_connections=1000 * fellows.COUNT, shared_buffers_bytes=64 << 20
            ),
        )
        try:
            self._postgres.start()
            if render_initial.TARGET.read_text(encoding="utf-8") != render_initial.render():
                raise RuntimeError("storage/schema.py has changed: run `make initial-migration`")
            migrate.upgrade(self._postgres.create_database(TEMPLATE))
        except BaseException:
            self.close()
            raise

    def conninfo(self, database: str) -> str:
        """How to connect to one of its databases."""
        return self._postgres.conninfo(database)

    def close(self) -> None:
        """Stop it and remove everything."""
        self._postgres.stop()
        shutil.rmtree((self.directory / "postgresql").resolve(), ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def create_database(maintenance: str, name: str, template: str) -> None:
    """Make a copy of the template; faster than emptying the tables of one that was used."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop_database(maintenance: str, name: str) -> None:
    """Remove it, whoever is still connected."""
    drop = sql.SQL("DROP DATABASE {}").format(sql.Identifier(name))
    with psycopg.connect(maintenance, autocommit=True) as connection:
        for _ in range(DROP_ATTEMPTS):
            try:
                connection.execute(sql.SQL("{} WITH (FORCE)").format(drop))
                return
            except psycopg.errors.InsufficientPrivilege:  # a vacuum is under way there: without force it is ended
                with suppress(psycopg.errors.ObjectInUse):  # somebody else is there besides
                    connection.execute(drop)
                    return
            time.sleep(0.2)
        connection.execute(drop)

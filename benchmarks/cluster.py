"""The PostgreSQL of servers under test. A cluster of one server runs on Hearth's own code and settings, fsync on."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from storage.embedded import EmbeddedPostgres

# A table with what belongs to it but its indexes, and each index.
_RELATIONS = """
select c.relname, case c.relkind when 'i' then pg_relation_size(c.oid) else pg_table_size(c.oid) end
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm', 'i') and n.nspname not in ('pg_catalog', 'pg_toast', 'information_schema')
"""


class Databases:
    """The databases of a cluster that runs, and a directory for the files of the servers that use them."""

    def __init__(self, directory: Path, maintenance_conninfo: str) -> None:
        """`maintenance_conninfo` leads to its database `postgres`."""
        self.directory = directory
        self._maintenance = maintenance_conninfo

    @property
    def pid(self) -> int:
        """The postmaster's process ID."""
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            backend = connection.info.backend_pid
            postmaster = psutil.Process(backend).ppid()
        return postmaster

    def address(self, database: str) -> dict[str, str]:
        """How to reach a database: `host`, `port`, `user`, `dbname`."""
        known = conninfo_to_dict(self.conninfo(database))
        return {name: str(known[name]) for name in ("host", "port", "user", "dbname")}

    def conninfo(self, database: str) -> str:
        """The same for psycopg."""
        return make_conninfo(self._maintenance, dbname=database)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make a database, as a copy of another one if it is named, which nobody may be connected to."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))

    def drop_database(self, name: str) -> None:
        """Remove a database; PostgreSQL ends a vacuum that is under way there."""
        with psycopg.connect(self._maintenance, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))

    def relation_bytes(self, database: str) -> dict[str, int]:
        """The size of every table and every index, as the files are; nothing is vacuumed before."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            return {name: int(size) for name, size in connection.execute(_RELATIONS)}

    def database_bytes(self, database: str) -> int:
        """The size of the whole database, the system's catalogue included."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            row = connection.execute("select pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])


class Cluster(Databases):
    """A cluster in a directory of its own, which is gone with it."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="hearth-bench-")), "")
        # As root, PostgreSQL runs as a user who must pass through here.
        self.directory.chmod(0o711)
        self._postgres = EmbeddedPostgres(self.directory)

    def __enter__(self) -> Self:
        """Start it."""
        self._postgres.start()
        self._maintenance = self._postgres.conninfo("postgres")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove everything, also what others put into its directory."""
        self._postgres.stop()
        shutil.rmtree((self.directory / "postgresql").resolve(), ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The postmaster's process ID."""
        return self._postgres.postmaster_pid

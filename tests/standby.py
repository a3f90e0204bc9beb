"""A primary and its standby by streaming replication, made with PostgreSQL's own programs, for tests."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from storage import migrate, postgres_binaries
from tests.federation.servers import free_port

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "wal_level=replica",
    "hot_standby=on",
    "max_connections=60",
    "shared_buffers=32MB",
    "dynamic_shared_memory_type=mmap",
    "log_min_messages=fatal",
)


class Replicated:
    """Two clusters. What is written to `primary` comes to `replica` unless it is paused."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="hearth-standby-"))
        self._user = postgres_binaries.find_system_user(self._directory / "none")
        self._binaries = postgres_binaries.find_binaries(None, None, self._user)
        self._servers: list[subprocess.Popen[bytes]] = []
        self._directory.chmod(0o700)
        if self._user.switch:
            shutil.chown(self._directory, self._user.uid, self._user.gid)
        try:
            self._run("initdb", "-D", self._directory / "primary", "-U", "hearth", "-A", "trust", "-E", "UTF8", "-N")
            self.primary = self._start("primary")
            with psycopg.connect(self.primary, autocommit=True) as connection:
                connection.execute("create database hearth")
            self.primary = make_conninfo(self.primary, dbname="hearth")
            migrate.upgrade(self.primary)
            copy = ("-D", self._directory / "replica", "-d", make_conninfo(self.primary, dbname="replication"), "-R")
            self._run("pg_basebackup", *copy, "-c", "fast")
            self.replica = make_conninfo(self._start("replica"), dbname="hearth")
        except BaseException:
            self.close()
            raise

    def _run(self, program: str, *arguments: str | Path) -> None:
        answer = self._user.run(self._binaries.directory / program, *arguments)
        assert answer.returncode == 0, answer.stderr

    def _start(self, name: str) -> str:
        port = free_port()
        settings = [f"-c{each}" for each in (*_SETTINGS, f"unix_socket_directories={self._directory}", f"port={port}")]
        server = subprocess.Popen(
            [self._binaries.postgres, "-D", self._directory / name, *settings],
            stdin=subprocess.DEVNULL,
            env=postgres_binaries.ENVIRONMENT,
            cwd="/",
            user=self._user.become_uid,
            group=self._user.become_gid,
            extra_groups=self._user.become_groups,
        )
        self._servers.append(server)
        conninfo = make_conninfo(host="127.0.0.1", port=port, user="hearth", dbname="postgres")
        for _ in range(600):
            try:
                psycopg.connect(conninfo).close()
            except psycopg.OperationalError:
                assert server.poll() is None, f"PostgreSQL ({name}) ended"
                time.sleep(0.05)
            else:
                return conninfo
        raise AssertionError(f"PostgreSQL ({name}) does not answer")

    def pause(self, *, is_paused: bool) -> None:
        """Have the replica take in nothing more, or go on."""
        function = sql.SQL("select pg_wal_replay_pause()" if is_paused else "select pg_wal_replay_resume()")
        with psycopg.connect(self.replica, autocommit=True) as connection:
            connection.execute(function)

    def promote(self) -> None:
        """Make the replica a primary of its own."""
        with psycopg.connect(self.replica, autocommit=True) as connection:
            connection.execute("select pg_promote()")

    def wait_for_replica(self) -> None:
        """From now on nothing is committed that the replica does not have, too."""
        with psycopg.connect(self.primary, autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")

    def stop_primary(self) -> None:
        """End it as a crash would."""
        self._servers[0].kill()
        self._servers[0].wait()

    def stop_replica(self) -> None:
        """End it as a crash would."""
        self._servers[1].kill()
        self._servers[1].wait()

    def close(self) -> None:
        """End both, and remove them."""
        for server in reversed(self._servers):
            server.kill()
            server.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

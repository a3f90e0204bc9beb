"""Our own PostgreSQL: a private cluster in the data directory, started and stopped with the server.

C collation, UTF-8, reached by a unix socket only, and only by the user of the system that runs the server. What holds:

- One owner. The process that holds the lock (`cluster_placement.OwnerLock`) owns the cluster; a second one is refused.
- Whoever dies. If the owner is killed, a shell of a few kilobytes that waits on a pipe to it shuts PostgreSQL down. If
  that was killed too, the next owner ends what it finds before it starts its own. If PostgreSQL is killed, the owner
  starts it again. Whatever happens, committed transactions are there afterwards.
- Whole or not at all. A cluster appears under its name only when `initdb` has finished.
- The superuser sets the cluster up; the server's role may only make databases.
"""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Self

import psycopg
from msgspec import Struct
from psycopg import sql
from psycopg.conninfo import make_conninfo

from storage import cluster_processes, cluster_settings, postgres_binaries
from storage.cluster_placement import DATA_LOCK, ClusterPlace, OwnerLock, find_running_socket
from storage.cluster_settings import ClusterSettings
from storage.postgres_binaries import EmbeddedPostgresError as EmbeddedPostgresError
from storage.postgres_binaries import PostgresBinaries

logger = logging.getLogger(__name__)

DEFAULT_DATABASE = "hearth"

_LARGEST_LOG_BYTES = 10_000_000
_READY_SECONDS = 600.0  # recovery after a crash replays the log, at most `max_wal_size` of it
_TELL_SECONDS = 10.0
_FAST_SHUTDOWN_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 10.0
# Waits for the pipe's other end to close without a word, which is how an owner looks that was killed.
_GUARD = 'read -r word || kill -INT "$1"'


class _Running(Struct, frozen=True):
    """One life of the postmaster, and the shell that ends it if we die."""

    postmaster: subprocess.Popen[bytes]
    guard: subprocess.Popen[bytes]
    guard_pipe: IO[bytes]

    def dismiss_guard(self) -> None:
        try:
            self.guard_pipe.write(b"done\n")
            self.guard_pipe.close()
        except BrokenPipeError:
            pass  # it was killed
        self.guard.wait()


def find_running(data_directory: Path) -> str | None:
    """The conninfo of the server's database if a server runs on this data directory, in another process."""
    socket_directory = find_running_socket(data_directory.absolute())
    return None if socket_directory is None else _make_conninfo(socket_directory, DEFAULT_DATABASE)


def has_cluster(data_directory: Path) -> bool:
    """Whether a server has run on this data directory with a PostgreSQL of its own."""
    return (data_directory / "postgresql" / "cluster").exists()


class EmbeddedPostgres:
    """A private PostgreSQL cluster. Blocking; call it from a thread if a loop is running."""

    def __init__(
        self, data_directory: Path, *, binaries: Path | None = None, settings: ClusterSettings | None = None
    ) -> None:
        """`binaries` is the directory of an installed PostgreSQL's programs; without it the wheel's are used."""
        self._data_directory = data_directory.absolute()
        self._binaries_directory = binaries
        self._settings = settings or ClusterSettings()
        self._locks: list[OwnerLock] = []
        self._place: ClusterPlace | None = None
        self._socket_directory: Path | None = None
        self._running: _Running | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> None:
        """Become the owner, make the cluster if there is none, and return when it takes connections.

        Raises EmbeddedPostgresError if another process owns it, if its version does not match, or if it cannot run.
        """
        if self._locks:
            raise EmbeddedPostgresError("PostgreSQL was started already.")
        try:
            self._become_owner()
            place = self._owned_place()
            binaries = postgres_binaries.find_binaries(self._binaries_directory, place.cluster_major(), place.user)
            if not place.cluster.exists():
                _initialise(place, binaries, sync=self._settings.durable)
            self._socket_directory = place.make_socket_directory()
            arguments = self._write_configuration(place, binaries, self._socket_directory)
            self._running = self._start_postmaster(arguments)
            self._create_role()
        except (OSError, psycopg.Error) as error:
            self._abandon()
            raise EmbeddedPostgresError(f"PostgreSQL in {self._data_directory} does not start: {error}") from error
        except BaseException:
            self._abandon()
            raise
        self._stopping.clear()
        self._watcher = threading.Thread(target=self._watch, args=(arguments,), name="postgresql-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Shut PostgreSQL down, ending its connections, and give the cluster up. Harmless if it does not run."""
        watcher, self._watcher = self._watcher, None
        if watcher is None:
            return
        self._stopping.set()
        for number, seconds in ((signal.SIGINT, _FAST_SHUTDOWN_SECONDS), (signal.SIGQUIT, None)):
            if self._running is not None:
                self._running.postmaster.send_signal(number)
            watcher.join(seconds)
            if not watcher.is_alive():
                break
        self._release()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def postmaster_pid(self) -> int:
        """The process ID of PostgreSQL's first process."""
        if self._running is None:
            raise EmbeddedPostgresError("PostgreSQL is not running.")
        return self._running.postmaster.pid

    def conninfo(self, database: str = DEFAULT_DATABASE) -> str:
        """How libpq, and so psycopg, connects to a database of the cluster as the server's role."""
        return _make_conninfo(self._started_socket_directory(), database)

    def create_database(self, name: str = DEFAULT_DATABASE, *, template: str | None = None) -> str:
        """Make the database unless it exists; returns its conninfo."""
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if known is None:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        return self.conninfo(name)

    def _become_owner(self) -> None:
        self._data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._locks.append(OwnerLock(self._data_directory / DATA_LOCK))
        self._place = ClusterPlace.find(self._data_directory)
        # A copied data directory may hold a link to another one's cluster.
        self._locks.append(OwnerLock(self._place.home / "owner.lock"))

    def _owned_place(self) -> ClusterPlace:
        assert self._place is not None
        return self._place

    def _started_socket_directory(self) -> Path:
        if self._socket_directory is None:
            raise EmbeddedPostgresError("PostgreSQL has not been started.")
        return self._socket_directory

    def _cluster_name(self) -> str:
        # Goes into the title of every process, by which orphans are found.
        identity = hashlib.sha256(os.fsencode(self._owned_place().cluster)).hexdigest()[:12]
        return f"hearth-{identity}"

    def _write_configuration(self, place: ClusterPlace, binaries: PostgresBinaries, socket: Path) -> list[str]:
        """Write the configuration files; returns the command that starts PostgreSQL with them."""
        main = cluster_settings.render_postgresql_conf(self._settings, socket, binaries.major)
        access = cluster_settings.render_pg_hba_conf()
        names = cluster_settings.render_pg_ident_conf(postgres_binaries.current_user_name())
        files = {
            "config_file": place.write_readable("postgresql.conf", main),
            "hba_file": place.write_readable("pg_hba.conf", access),
            "ident_file": place.write_readable("pg_ident.conf", names),
        }
        if not (place.home / "local.conf").exists():
            place.write_readable("local.conf", "# Settings of your own for PostgreSQL; read last.\n")
        command = [str(binaries.postgres), "-D", str(place.cluster), "-c", f"cluster_name={self._cluster_name()}"]
        for setting, path in files.items():
            command += ["-c", f"{setting}={path}"]
        return command

    def _start_postmaster(self, command: list[str]) -> _Running:
        place = self._owned_place()
        cluster_processes.end_processes(place.cluster, self._cluster_name(), place.user.uid)
        cluster_processes.remove_stale_lock_files(place.cluster, self._started_socket_directory())
        running = _launch(place, command)
        try:
            _wait_until_ready(place, running.postmaster)
        except BaseException:
            if running.postmaster.poll() is None:
                running.postmaster.send_signal(signal.SIGQUIT)
                running.postmaster.wait()
            running.dismiss_guard()
            raise
        return running

    def _create_role(self) -> None:
        conninfo = make_conninfo(self.conninfo("postgres"), user=cluster_settings.SUPERUSER)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_roles WHERE rolname = %s", (cluster_settings.OWNER,)
            ).fetchone()
            if known is None:
                role = sql.Identifier(cluster_settings.OWNER)
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(role))

    def _watch(self, command: list[str]) -> None:
        """Start PostgreSQL again each time it ends, until `stop`."""
        pause = 0.0
        while True:
            running = self._running
            if running is not None:
                status = running.postmaster.wait()
                running.dismiss_guard()
                self._running = None
                if self._stopping.is_set():
                    return
                logger.error("PostgreSQL ended (status %d); starting it again", status)
                pause = 0.0
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause + 0.1, _LONGEST_PAUSE_SECONDS)
            try:
                self._running = self._start_postmaster(command)
            except Exception as error:  # whatever it was: without this thread nothing starts it any more
                logger.error("PostgreSQL does not start again: %s", error)
            if self._stopping.is_set() and self._running is not None:
                self._running.postmaster.send_signal(signal.SIGINT)

    def _abandon(self) -> None:
        """Undo a start that failed midway."""
        running, self._running = self._running, None
        if running is not None:
            running.postmaster.send_signal(signal.SIGINT)
            running.postmaster.wait()
            running.dismiss_guard()
        self._release()

    def _release(self) -> None:
        self._socket_directory = None
        while self._locks:
            self._locks.pop().release()


def _make_conninfo(socket_directory: Path, database: str) -> str:
    return make_conninfo(
        host=str(socket_directory),
        port=str(cluster_settings.PORT),
        user=cluster_settings.OWNER,
        dbname=database,
        connect_timeout="10",
    )


def _initialise(place: ClusterPlace, binaries: PostgresBinaries, *, sync: bool) -> None:
    scratch = place.home / "cluster.new"
    if scratch.exists():  # an earlier attempt was killed
        shutil.rmtree(scratch)
    place.make_private(scratch)
    answer = place.user.run(
        binaries.initdb,
        f"--pgdata={scratch}",
        f"--username={cluster_settings.SUPERUSER}",
        "--encoding=UTF8",
        "--locale=C",
        "--auth-local=peer",
        "--auth-host=reject",
        "--data-checksums",
        "--no-instructions",
        *([] if sync else ["--no-sync"]),
    )
    if answer.returncode != 0:
        shutil.rmtree(scratch)
        raise EmbeddedPostgresError(f"PostgreSQL's initdb failed in {place.home}: {answer.stderr.strip()}")
    scratch.rename(place.cluster)
    handle = os.open(place.home, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _launch(place: ClusterPlace, command: list[str]) -> _Running:
    """Start the postmaster and its guard, in a session of their own: a ctrl-C is for the server alone."""
    log = _open_log(place)
    user = place.user
    try:
        postmaster = subprocess.Popen(  # noqa: S603  # programs and arguments are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=postgres_binaries.ENVIRONMENT,
            umask=0o077,
            start_new_session=True,
            user=user.become_uid,
            group=user.become_gid,
            extra_groups=user.become_groups,
        )
    finally:
        os.close(log)
    guard = subprocess.Popen(  # noqa: S603  # a shell with a fixed script
        ["/bin/sh", "-c", _GUARD, "hearth-postgresql-guard", str(postmaster.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=postgres_binaries.ENVIRONMENT,
        start_new_session=True,
        user=user.become_uid,
        group=user.become_gid,
        extra_groups=user.become_groups,
    )
    assert guard.stdin is not None
    return _Running(postmaster, guard, guard.stdin)


def _open_log(place: ClusterPlace) -> int:
    path = place.log_file
    if path.exists() and path.stat().st_size > _LARGEST_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if place.user.switch:
        os.fchown(handle, place.user.uid, place.user.gid)
    return handle


def _wait_until_ready(place: ClusterPlace, postmaster: subprocess.Popen[bytes]) -> None:
    began = told = time.monotonic()
    while (status := cluster_processes.read_status(place.cluster, postmaster.pid)) != "ready":
        now = time.monotonic()
        if postmaster.poll() is not None:
            raise EmbeddedPostgresError(f"PostgreSQL does not start. It says:\n{_last_lines(place.log_file)}")
        if now - began > _READY_SECONDS:
            raise EmbeddedPostgresError(f"PostgreSQL is not ready after {_READY_SECONDS:.0f} s; see {place.log_file}.")
        if now - told > _TELL_SECONDS:
            told = now
            logger.warning("PostgreSQL is not ready after %.0f s (%s); see %s", now - began, status, place.log_file)
        time.sleep(0.01)


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])

"""Our own PostgreSQL: who owns it, and what is left after a kill of anybody."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from storage import cluster_processes, postgres_binaries
from storage.cluster_settings import SUPERUSER
from storage.embedded import EmbeddedPostgres
from storage.postgres_binaries import EmbeddedPostgresError

OWNER_SCRIPT = """
import sys, time
from pathlib import Path
from storage.embedded import EmbeddedPostgres

postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.start()
postgres.create_database()
print(postgres.postmaster_pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def data_directory() -> Iterator[Path]:
    # Below /tmp itself: pytest's own directories are closed to the user that PostgreSQL runs as for root.
    directory = Path(tempfile.mkdtemp(prefix="hearth-embedded-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def start_owner(data_directory: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Start another process that owns the cluster; gives it and its postmaster's process ID."""
    owners: list[tuple[subprocess.Popen[str], int]] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER_SCRIPT, str(data_directory)], stdout=subprocess.PIPE, text=True
        )
        assert owner.stdout is not None
        owners.append((owner, int(owner.stdout.readline())))
        return owners[-1]

    yield start
    for owner, postmaster in owners:
        owner.kill()
        owner.communicate()
        wait_for(functools.partial(is_dead, postmaster))


def execute(conninfo: str, *statements: LiteralString) -> list[tuple[Any, ...]]:
    """Run them; the rows of the last one."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        *first, last = statements
        for statement in first:
            connection.execute(statement)
        cursor = connection.execute(last)
        return cursor.fetchall() if cursor.description else []


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_dead(pid: int) -> bool:
    return not is_alive(pid)


def guard_of(postmaster_pid: int) -> int:
    suffix = f"hearth-postgresql-guard\0{postmaster_pid}\0".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().endswith(suffix):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("the postmaster has no guard")


def test_a_new_cluster_is_durable_and_private(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        conninfo = postgres.create_database()
        settings = dict(execute(conninfo, "SELECT name, setting FROM pg_settings"))
        database = (
            "SELECT datcollate, datctype, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'hearth'"
        )

        assert execute(conninfo, database) == [("C", "C", "UTF8")]
        assert [settings[name] for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["on", "on", "on"]
        assert settings["listen_addresses"] == ""
        assert settings["data_checksums"] == "on"
        assert execute(conninfo, "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user") == [
            (False, True)
        ]
        socket_directory = Path(str(conninfo_to_dict(conninfo)["host"]))
        assert socket_directory.stat().st_mode & 0o077 == 0


def test_what_was_committed_is_there_after_a_restart(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        execute(postgres.create_database(), "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
        pid = postgres.postmaster_pid
    assert not is_alive(pid)

    with EmbeddedPostgres(data_directory) as postgres:
        assert execute(postgres.create_database(), "SELECT x FROM t") == [(1,)]


def test_a_killed_postmaster_is_started_again(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        conninfo = postgres.create_database()
        execute(conninfo, "CREATE TABLE t (x int)")
        for number in range(3):
            execute(conninfo, "INSERT INTO t VALUES (1)")
            killed = postgres.postmaster_pid
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: not is_alive(killed) and answers(conninfo))  # noqa: B023  # it is called in here

            assert execute(conninfo, "SELECT count(*) FROM t") == [(number + 1,)]


def answers(conninfo: str) -> bool:
    try:
        return execute(conninfo, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


def test_a_killed_backend_costs_nothing_but_connections(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        conninfo = postgres.create_database()
        [(backend,)] = execute(
            conninfo, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)", "SELECT pg_backend_pid()"
        )
        with psycopg.connect(conninfo) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        wait_for(lambda: answers(conninfo))

        assert execute(conninfo, "SELECT x FROM t") == [(1,)]
        assert backend != postgres.postmaster_pid


def test_postgresql_ends_when_its_owner_is_killed(
    data_directory: Path, start_owner: Callable[[], tuple[subprocess.Popen[str], int]]
) -> None:
    owner, postmaster = start_owner()

    owner.kill()

    wait_for(lambda: not is_alive(postmaster))
    with EmbeddedPostgres(data_directory) as postgres:
        assert answers(postgres.conninfo())


def test_an_orphan_is_ended_before_the_next_start(
    data_directory: Path, start_owner: Callable[[], tuple[subprocess.Popen[str], int]]
) -> None:
    owner, postmaster = start_owner()
    os.kill(guard_of(postmaster), signal.SIGKILL)
    owner.kill()
    owner.wait()
    time.sleep(0.3)
    assert is_alive(postmaster)

    with EmbeddedPostgres(data_directory) as postgres:
        assert not is_alive(postmaster)
        assert answers(postgres.conninfo())


def test_backends_without_a_postmaster_do_not_stop_the_next_start(
    data_directory: Path, start_owner: Callable[[], tuple[subprocess.Popen[str], int]]
) -> None:
    owner, postmaster = start_owner()
    os.kill(guard_of(postmaster), signal.SIGKILL)
    owner.kill()
    owner.wait()
    os.kill(postmaster, signal.SIGKILL)

    with EmbeddedPostgres(data_directory) as postgres:
        assert answers(postgres.conninfo())


def test_a_second_owner_is_refused_and_harms_nothing(
    data_directory: Path, start_owner: Callable[[], tuple[subprocess.Popen[str], int]]
) -> None:
    owner, postmaster = start_owner()

    with pytest.raises(EmbeddedPostgresError, match=f"pid {owner.pid}"):
        EmbeddedPostgres(data_directory).start()

    assert is_alive(postmaster)


def test_a_failed_start_gives_the_cluster_up(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory):
        pass
    version = data_directory / "postgresql" / "cluster" / "PG_VERSION"
    original = version.read_text(encoding="ascii")
    version.write_text("17\n", encoding="ascii")
    refused = EmbeddedPostgres(data_directory)
    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL 17.*database\.binaries"):
        refused.start()

    version.write_text(original, encoding="ascii")
    with refused:
        assert answers(refused.conninfo("postgres"))


def test_a_cluster_of_the_wheels_older_postgresql_runs_on_that(data_directory: Path) -> None:
    user = postgres_binaries.find_system_user(data_directory / "none")
    older = postgres_binaries.find_binaries(None, 16, user)
    with EmbeddedPostgres(data_directory, binaries=older.directory):
        pass

    with EmbeddedPostgres(data_directory) as postgres:
        [(version,)] = execute(postgres.conninfo("postgres"), "SHOW server_version")
        assert version.startswith("16.")


def test_installed_programs_of_another_version_are_refused(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory):
        pass
    user = postgres_binaries.find_system_user(data_directory / "none")
    older = postgres_binaries.find_binaries(None, 16, user)

    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 18, and .* has 16"):
        EmbeddedPostgres(data_directory, binaries=older.directory).start()


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo 'postgres (PostgreSQL) 14.9'", "has PostgreSQL 14; Hearth needs 15"),
        ("echo hello", "holds no PostgreSQL"),
        ("exit 1", "holds no PostgreSQL"),
    ],
)
def test_unsuitable_programs_are_refused(data_directory: Path, script: str, complaint: str) -> None:
    program = data_directory / "postgres"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    program.chmod(0o755)

    with pytest.raises(EmbeddedPostgresError, match=complaint):
        EmbeddedPostgres(data_directory / "data", binaries=data_directory).start()


def test_a_pid_file_that_names_somebody_elses_process_is_stale(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        postgres.create_database()
    cluster = data_directory / "postgresql" / "cluster"
    sleeper = subprocess.Popen(["/bin/sleep", "60"], user=cluster.stat().st_uid if os.geteuid() == 0 else None)
    try:
        (cluster / "postmaster.pid").write_text(f"{sleeper.pid}\n{cluster}\n1\n5432\n", encoding="ascii")

        with EmbeddedPostgres(data_directory) as postgres:
            assert answers(postgres.conninfo())
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_first_start_that_was_killed_is_repeated(data_directory: Path) -> None:
    half_made = data_directory / "postgresql" / "cluster.new"
    half_made.mkdir(parents=True)
    half_made.parent.chmod(0o711)
    (half_made / "PG_VERSION").touch()

    with EmbeddedPostgres(data_directory) as postgres:
        assert answers(postgres.create_database())


def test_a_deep_data_directory_gets_a_short_socket(data_directory: Path) -> None:
    deep = data_directory / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for directory in (deep, deep.parent):
        directory.chmod(0o711)
    with EmbeddedPostgres(deep) as postgres:
        assert answers(postgres.create_database())
        socket_directory = Path(str(conninfo_to_dict(postgres.conninfo())["host"]))
    socket_directory.rmdir()


def test_settings_of_an_operator_come_last(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory):
        pass
    (data_directory / "postgresql" / "local.conf").write_text("work_mem = '3MB'\n", encoding="ascii")

    with EmbeddedPostgres(data_directory) as postgres:
        assert execute(postgres.conninfo("postgres"), "SHOW work_mem") == [("3MB",)]


def test_what_postgresql_says_is_in_the_error(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory):
        pass
    (data_directory / "postgresql" / "local.conf").write_text("no_such_setting = 1\n", encoding="ascii")

    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        EmbeddedPostgres(data_directory).start()


def test_making_a_database_twice_is_harmless(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        assert postgres.create_database("twice") == postgres.create_database("twice")


def test_nothing_is_left_running(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        guard = guard_of(postgres.postmaster_pid)
        [(name,)] = execute(postgres.conninfo("postgres"), "SHOW cluster_name")
        cluster = data_directory / "postgresql" / "cluster"
        uid = cluster.stat().st_uid
        assert len(cluster_processes.find_processes(cluster, str(name), uid)) > 3

    assert cluster_processes.find_processes(cluster, str(name), uid) == []
    assert not is_alive(guard)


def test_a_cluster_whose_link_leads_nowhere_is_not_made_anew(data_directory: Path) -> None:
    (data_directory / "postgresql").symlink_to(data_directory / "gone")

    with pytest.raises(EmbeddedPostgresError, match=r"gone.*Restore it"):
        EmbeddedPostgres(data_directory).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_root_keeps_the_cluster_elsewhere_when_its_data_is_closed_to_others(
    data_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_binaries, "SYSTEM_DIRECTORY", data_directory / "system")
    closed = data_directory / "closed"
    closed.mkdir(mode=0o700)

    with EmbeddedPostgres(closed / "data") as postgres:
        execute(postgres.create_database(), "CREATE TABLE t (x int)")
    assert (closed / "data" / "postgresql").resolve().parent == data_directory / "system"
    assert closed.stat().st_mode & 0o077 == 0

    with EmbeddedPostgres(closed / "data") as postgres:
        assert execute(postgres.conninfo(), "SELECT count(*) FROM t") == [(0,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_root_copies_programs_that_the_other_user_cannot_reach(
    data_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = data_directory / "system"
    monkeypatch.setattr(postgres_binaries, "SYSTEM_DIRECTORY", system)
    closed = data_directory / "closed"
    closed.mkdir(mode=0o700)
    user = postgres_binaries.find_system_user(closed)
    wheel = postgres_binaries.find_wheel_directory()
    shutil.copytree(wheel / "pginstall", closed / wheel.name / "pginstall")
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), closed / f"{wheel.name}.libs")
    monkeypatch.setattr(postgres_binaries, "find_wheel_directory", lambda: closed / wheel.name)

    with EmbeddedPostgres(
        data_directory / "data", binaries=postgres_binaries.find_binaries(None, 16, user).directory
    ) as postgres:
        assert answers(postgres.conninfo("postgres"))
    assert len(list(system.glob("postgresql-16-*"))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users_of_the_machine_cannot_connect(data_directory: Path) -> None:
    with EmbeddedPostgres(data_directory) as postgres:
        conninfo = f"{postgres.conninfo('postgres')} user={SUPERUSER}"
        Path(str(conninfo_to_dict(conninfo)["host"])).chmod(0o755)
        socket = Path(str(conninfo_to_dict(conninfo)["host"])) / ".s.PGSQL.5432"
        socket.chmod(0o777)
        user = postgres_binaries.find_system_user(data_directory / "postgresql" / "cluster")
        psql = postgres_binaries.find_binaries(None, 18, user).directory / "psql"

        answer = user.run(psql, conninfo, "-c", "SELECT 1")

        assert answer.returncode != 0
        assert "Peer authentication failed" in answer.stderr

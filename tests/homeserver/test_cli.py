"""The command line, run as an operator runs it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from homeserver import signing_keys, startup
from homeserver.config import Config
from storage.embedded import EmbeddedPostgres

Hearth = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="hearth-cli-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def prepared_data() -> Iterator[Path]:
    """The data directory of a server that has run, to be copied: a first run waits for the disk again and again."""
    data = Path(tempfile.mkdtemp(prefix="hearth-cli-"))
    data.chmod(0o711)
    with startup.prepare(Config("localhost", data_directory=data)):
        pass
    (data / "postgresql" / "local.conf").write_text("fsync = off\n", encoding="ascii")
    yield data
    shutil.rmtree(data)


@pytest.fixture
def data(directory: Path, prepared_data: Path) -> Path:
    """The same as the data directory of this test's server."""
    subprocess.run(["/bin/cp", "-a", prepared_data, directory / "data"], check=True)
    return directory / "data"


@pytest.fixture
def hearth(directory: Path) -> Hearth:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "homeserver", *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_an_account_is_made_on_a_new_server(hearth: Hearth, directory: Path) -> None:
    answer = hearth("user", "create", "alice", "--admin", "--password-stdin", stdin="correct horse\n")

    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "@alice:localhost can log in now and administers the server.\n"
    signing_keys.load(directory / "data" / "signing.key")
    with EmbeddedPostgres(directory / "data") as postgres, psycopg.connect(postgres.conninfo()) as connection:
        rows = connection.execute("SELECT user_id, is_admin, password_hash FROM users").fetchall()
        assert [row[:2] for row in rows] == [("@alice:localhost", True)]
        assert rows[0][2].startswith("$argon2id$")


def test_accounts_are_made_while_the_server_has_the_database(hearth: Hearth, data: Path) -> None:
    with EmbeddedPostgres(data):
        first = hearth("user", "create", "bob", "--password-stdin", stdin="correct horse\n")
        second = hearth("user", "create", "bob", "--password-stdin", stdin="correct horse\n")
        assert hearth("check").returncode == 0
        assert "Another process" in hearth("migrate").stderr

    assert (first.returncode, second.returncode) == (0, 1)
    assert second.stderr == "hearth: There is an account @bob:localhost already, or there was one.\n"


@pytest.mark.parametrize(
    ("name", "password", "complaint"),
    [
        ("alice", "short", "at least 8 characters"),
        ("Alice Smith", "correct horse", ""),
        ("alice", "", "at least 8 characters"),
    ],
)
def test_an_impossible_account_is_refused_before_anything_starts(
    hearth: Hearth, directory: Path, name: str, password: str, complaint: str
) -> None:
    answer = hearth("user", "create", name, "--password-stdin", stdin=f"{password}\n")

    assert answer.returncode == 1
    assert complaint in answer.stderr
    assert not (directory / "data").exists()


def test_a_password_is_not_asked_for_without_a_terminal(hearth: Hearth) -> None:
    answer = hearth("user", "create", "alice")
    assert (answer.returncode, answer.stderr) == (
        1,
        "hearth: There is no terminal to ask for a password: use --password-stdin.\n",
    )


def test_check_finds_nothing_wrong_before_and_after_the_first_run(hearth: Hearth, directory: Path) -> None:
    before = hearth("check")
    assert not (directory / "data").exists()
    assert hearth("migrate").stdout.startswith("The database has the newest schema")
    after = hearth("check")

    assert [before.returncode, after.returncode] == [0, 0]
    assert after.stdout == "Nothing is wrong with the server localhost.\n"


def test_check_tells_every_mistake_of_the_configuration(hearth: Hearth, directory: Path) -> None:
    (directory / "config.yaml").write_text("server_nam: a\npresence: maybe\n", encoding="ascii")

    answer = hearth("check")

    assert answer.returncode == 2
    assert answer.stderr.splitlines() == [
        "hearth: config.yaml:1: server_nam: unknown setting: did you mean server_name?",
        "hearth: config.yaml:1: server_name: missing: add server_name: VALUE",
        "hearth: config.yaml:2: presence: 'maybe' is not a switch: write true or false",
    ]


def test_check_tells_of_a_lost_key_and_an_old_schema_together(hearth: Hearth, data: Path) -> None:
    (data / "signing.key").unlink()
    with EmbeddedPostgres(data) as postgres, psycopg.connect(postgres.conninfo()) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")

    answer = hearth("check")

    assert answer.returncode == 2
    assert "schema 0000: run `hearth migrate`" in answer.stderr
    assert "signing.key is missing, and this server has run before" in answer.stderr


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_a_lost_key_is_not_replaced(hearth: Hearth, data: Path, command: str) -> None:
    (data / "signing.key").unlink()

    answer = hearth(command)

    assert answer.returncode == 2
    assert "is missing, and this server has run before" in answer.stderr
    assert not (data / "signing.key").exists()


def test_a_key_is_rotated(hearth: Hearth, data: Path) -> None:
    old = signing_keys.load(data / "signing.key")

    answer = hearth("rotate-key")

    new = signing_keys.load(data / "signing.key")
    assert answer.returncode == 0, answer.stderr
    assert new.key_id != old.key_id
    assert f"The new signing key is {new.key_id}." in answer.stdout
    assert "restart it" in answer.stdout
    assert hearth("check").returncode == 0


def test_a_key_that_is_not_there_is_not_rotated(hearth: Hearth, directory: Path) -> None:
    answer = hearth("rotate-key")

    assert answer.returncode == 1
    assert "is missing" in answer.stderr
    assert not (directory / "data" / "signing.key").exists()


@pytest.mark.usefixtures("data")
def test_dead_letters_are_listed(hearth: Hearth) -> None:
    answer = hearth("federation", "dead-letters")
    assert (answer.returncode, answer.stdout) == (0, "Every event that other servers sent was processed.\n")
    answer = hearth("federation", "dead-letters", "--retry")
    assert (answer.returncode, answer.stdout) == (0, "0 events are tried again by the server, as soon as it runs.\n")


def test_a_database_that_cannot_be_reached_is_named(hearth: Hearth, directory: Path) -> None:
    (directory / "config.yaml").write_text(
        "server_name: a.example\ndatabase: postgresql://u:hush@127.0.0.1:1/x\n", encoding="ascii"
    )

    answer = hearth("check")

    assert answer.returncode == 2
    assert "cannot be reached" in answer.stderr
    assert "hush" not in answer.stderr


def test_a_database_with_another_collation_is_refused(hearth: Hearth, directory: Path) -> None:
    with EmbeddedPostgres(directory / "other") as postgres:
        with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE odd ENCODING 'SQL_ASCII' TEMPLATE template0")
        socket = postgres.conninfo("odd").split("host=")[1].split()[0].replace("/", "%2F")
        (directory / "config.yaml").write_text(
            f"server_name: a.example\ndatabase: postgresql://hearth@{socket}/odd\n", encoding="ascii"
        )

        answer = hearth("check")

    assert answer.returncode == 2
    assert "must have the encoding UTF8 and the collation C" in answer.stderr


def test_a_configuration_that_is_asked_for_must_be_there(hearth: Hearth) -> None:
    answer = hearth("check", "--config", "none.yaml")
    assert answer.returncode == 2
    assert "none.yaml: cannot be read" in answer.stderr


def test_federation_commands_work_without_a_server(hearth: Hearth, data: Path) -> None:
    status, retry = hearth("federation", "status"), hearth("federation", "retry")
    assert status.returncode == retry.returncode == 0, status.stderr + retry.stderr
    assert status.stdout == "No process sends at the moment.\nEvery server has everything.\n"
    assert retry.stdout == "No server is left alone, and nothing waits.\n"
    one = hearth("federation", "retry", "elsewhere.test")
    assert (one.returncode, one.stderr) == (
        1,
        "hearth: Nothing waits for elsewhere.test, and it is not left alone.\n",
    )


def test_media_stays_where_there_is_no_store_to_move_it_to(hearth: Hearth, data: Path) -> None:
    answer = hearth("media", "move")
    assert (answer.returncode, answer.stderr) == (1, "hearth: There is no store to move media to: set `media.s3`.\n")


def test_help_names_every_command(hearth: Hearth) -> None:
    answer = hearth("--help")
    assert answer.returncode == 0
    assert all(
        command in answer.stdout
        for command in ("serve", "check", "migrate", "rotate-key", "user", "media", "federation")
    )


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server from the command line, and what it printed until it said where it is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "homeserver", "serve"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline() + process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("data")
def test_a_server_runs_says_what_to_do_next_and_stops(hearth: Hearth, directory: Path) -> None:
    port = free_port()
    (directory / "config.yaml").write_text(f"server_name: a.example\nlisteners: [{{port: {port}}}]\n", encoding="ascii")
    with serving(directory) as (server, greeting):
        assert f"http://localhost:{port}" in greeting
        assert "hearth user create" in greeting
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert page.status == 200
        created = hearth("user", "create", "alice", "--password-stdin", stdin="correct horse\n")
        assert created.stdout == "@alice:a.example can log in now.\n"
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/_matrix/client/v3/login",
            data=json.dumps(login | {"password": "correct horse"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310  # our own server
            assert json.load(answer)["user_id"] == "@alice:a.example"

        second = hearth("serve")
        assert (second.returncode, "Another process" in second.stderr) == (2, True)

        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    assert hearth("check").returncode == 0


@pytest.mark.usefixtures("data")
def test_a_port_in_use_is_named(hearth: Hearth, directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (directory / "config.yaml").write_text(
            f"server_name: a.example\nlisteners: [{{port: {port}}}]\n", encoding="ascii"
        )

        answer = hearth("serve")

    assert answer.returncode == 1
    assert "The server cannot listen" in answer.stderr
    assert "Traceback" not in answer.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])

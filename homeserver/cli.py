"""The command line, `hearth`.

Exit codes: 0 it is done, 1 it could not be done, 2 the command, the configuration or the set-up is wrong.
"""

import argparse
import asyncio
import dataclasses
import errno
import getpass
import importlib
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from federation.protocol.errors import MatrixError
from federation.protocol.identifiers import check_localpart, check_server_name
from homeserver import config_loading, dead_letters, federation_commands, logs, signing_keys, startup
from homeserver.config import Config, RegistrationMode
from homeserver.config_loading import ConfigurationError
from homeserver.services.passwords import Passwords
from homeserver.signing_keys import SigningKeyError
from homeserver.startup import StartupError
from storage import accounts, migrate
from storage.accounts import Account
from storage.database import Database

Result = TypeVar("Result")


MAX_WORKERS = 256


class CommandError(Exception):
    """The command could not do what it was asked; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[Config, argparse.Namespace], int] = options.command
    try:
        return command(config_loading.find(options.config), options)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            _complain(mistake.describe(error.file))
        return 2
    except StartupError as error:
        for complaint in error.complaints:
            _complain(complaint)
        return 2
    except CommandError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hearth", description="A Matrix homeserver.")
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="settings (default: config.yaml if it is there, else a server named localhost in ./data)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", parents=[file], help="run the server")
    serve.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="answer with N processes, or with one a core (auto); SIGHUP replaces them one by one",
    )
    serve.set_defaults(command=_serve)

    check = commands.add_parser("check", parents=[file], help="say everything that is wrong, each with its repair")
    check.set_defaults(command=_check)

    upgrade = commands.add_parser("migrate", parents=[file], help="bring the database's schema up to date")
    upgrade.set_defaults(command=_migrate)

    rotate = commands.add_parser("rotate-key", parents=[file], help="replace the signing key by a new one")
    rotate.set_defaults(command=_rotate_key)

    user = commands.add_parser("user", help="accounts").add_subparsers(required=True, metavar="COMMAND")
    create = user.add_parser("create", parents=[file], help="make an account")
    create.add_argument("name", help="the part of the user ID before the colon, without @")
    create.add_argument("--admin", action="store_true", help="the account administers the server")
    create.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    create.set_defaults(command=_create_user)

    federation = commands.add_parser("federation", help="other servers").add_subparsers(
        required=True, metavar="COMMAND"
    )
    status = federation.add_parser(
        "status", parents=[file], help="which servers lack something, and why; joins under way"
    )
    status.set_defaults(command=_federation_status)
    retry = federation.add_parser("retry", parents=[file], help="try servers again that were left alone")
    retry.add_argument("server", nargs="?", help="this server only")
    retry.set_defaults(command=_federation_retry)
    letters = federation.add_parser(
        "dead-letters", parents=[file], help="list events of other servers that could not be processed"
    )
    letters.add_argument("--limit", type=int, default=50, metavar="N", help="the newest N of them (default: 50)")
    letters.add_argument("--retry", action="store_true", help="have all of them tried again")
    letters.set_defaults(command=_dead_letters)
    media = commands.add_parser("media", help="uploads").add_subparsers(required=True, metavar="COMMAND")
    move = media.add_parser(
        "move", parents=[file], help="bring media of this machine to the S3 store, also while it runs"
    )
    move.set_defaults(command=_move_media)
    return parser


def _serve(config: Config, options: argparse.Namespace) -> int:
    logs.set_up(config.log)
    greeting = greet(config)
    try:
        # Not imported above: the other commands need no web server, nor does the process that looks after others.
        if options.workers is None:
            importlib.import_module("homeserver.serving").serve(config, lambda: print(greeting, flush=True))
        else:
            supervisor = importlib.import_module("homeserver.supervisor")
            supervisor.supervise(config, options.config, options.workers, lambda: print(greeting, flush=True))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        raise CommandError(f"The server cannot listen: {error.strerror}. Correct `listeners`.") from error
    return 0


def greet(config: Config) -> str:
    """What to tell the person at the terminal of a server that answers."""
    lines = [f"Hearth serves {config.server_name} at {config.base_url}"]
    if config.registration.mode is RegistrationMode.CLOSED:
        program = sys.argv[0] if sys.argv[0].endswith("hearth") else "hearth"
        lines.append(
            f"Registration is closed. Make an account from a second terminal: {program} user create NAME --admin"
        )
        lines.append(f"Then log in with any Matrix client that takes {config.base_url} as its homeserver.")
    else:
        lines.append(f"Open a Matrix client, enter {config.base_url} as the homeserver, and register.")
    return "\n".join(lines)


def _workers(text: str) -> int:
    """A number of processes from the command line."""
    number = len(os.sched_getaffinity(0)) if text == "auto" else int(text)
    if not 1 <= number <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"not between 1 and {MAX_WORKERS}")
    return number


def _check(config: Config, _options: argparse.Namespace) -> int:
    complaints = startup.list_complaints(config)
    for complaint in complaints:
        _complain(complaint)
    if complaints:
        return 2
    print(f"Nothing is wrong with the server {config.server_name}.")
    return 0


def _migrate(config: Config, _options: argparse.Namespace) -> int:
    with startup.prepare(config):
        print(f"The database has the newest schema, {migrate.newest_revision()}.")
    return 0


def _rotate_key(config: Config, _options: argparse.Namespace) -> int:
    try:
        old, new = signing_keys.rotate(config.signing_key_path)
    except SigningKeyError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"The new key cannot be written: {error}.") from None
    print(f"The new signing key is {new.key_id}. A server that runs goes on with {old.key_id}: restart it.")
    print(f"From that start on {old.key_id} is published as an old key, which proves what was signed before.")
    return 0


def _create_user(config: Config, options: argparse.Namespace) -> int:
    try:
        user_id = check_localpart(options.name, check_server_name(config.server_name))
        password = _read_password(from_stdin=options.password_stdin)
        passwords = Passwords(**dataclasses.asdict(config.passwords))
        passwords.check_new(password)
    except MatrixError as error:
        raise CommandError(error.message) from None

    async def create(database: Database) -> bool:
        account = Account(
            user_id=user_id,
            password_hash=await passwords.hash(password),
            created_ts=time.time_ns() // 1_000_000,
            is_admin=options.admin,
        )
        async with database.transaction() as tx:
            return await accounts.insert(tx, account)

    with startup.join(config) as conninfo:
        if not asyncio.run(_with_database(conninfo, create)):
            raise CommandError(f"There is an account {user_id} already, or there was one.")
    print(f"{user_id} can log in now{' and administers the server' if options.admin else ''}.")
    return 0


def _federation_status(config: Config, _options: argparse.Namespace) -> int:
    with startup.join(config) as conninfo:
        asyncio.run(_with_database(conninfo, lambda database: federation_commands.status(database, print)))
    return 0


def _federation_retry(config: Config, options: argparse.Namespace) -> int:
    with startup.join(config) as conninfo:
        try:
            servers = asyncio.run(
                _with_database(conninfo, lambda database: federation_commands.retry(database, options.server))
            )
        except MatrixError as error:
            raise CommandError(error.message) from None
    for server in servers:
        print(f"{server} is tried again.")
    if not servers:
        print("No server is left alone, and nothing waits.")
    return 0


async def _with_database(conninfo: str, work: Callable[[Database], Awaitable[Result]]) -> Result:
    """What `work` returns with a connection of its own."""
    database = Database(conninfo, max_connections=1)
    await database.open()
    try:
        return await work(database)
    finally:
        await database.close()


def _dead_letters(config: Config, options: argparse.Namespace) -> int:
    with startup.join(config) as conninfo:
        if options.retry:
            print(asyncio.run(_with_database(conninfo, dead_letters.retry)))
        else:
            limit = max(options.limit, 0)
            lines = asyncio.run(_with_database(conninfo, lambda database: dead_letters.show(database, limit)))
            print("\n".join(lines))
    return 0


def _move_media(config: Config, _options: argparse.Namespace) -> int:
    commands = importlib.import_module("homeserver.media_commands")  # as above: it needs much that others do not
    try:
        print(commands.move(config))
    except commands.NotMovedError as error:
        raise CommandError(str(error)) from None
    return 0


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask for a password: use --password-stdin.")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise CommandError("The two passwords differ.")
    return password


def _complain(text: str) -> None:
    print(f"hearth: {text}", file=sys.stderr)

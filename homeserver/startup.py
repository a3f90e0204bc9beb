"""What must be there before a server runs: its database, with the newest schema, and its signing key."""

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from homeserver import signing_keys
from homeserver.config import Config
from homeserver.signing_keys import OwnKeys, SigningKeyError
from storage import migrate, requirements
from storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_running, has_cluster
from storage.migrate import DatabaseTooNewError


class StartupError(Exception):
    """The server cannot run; each complaint says why and what to do about it."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


class Prepared(Struct, frozen=True):
    """What a server needs besides its settings."""

    conninfo: str
    keys: OwnKeys


@contextlib.contextmanager
def prepare(config: Config) -> Iterator[Prepared]:
    """Own the database for as long as the block lasts: started, checked, migrated; with the signing key.

    The key is made on the first run, before the schema is, so that a database with a schema always had a key. Blocking.
    Raises StartupError; a second server on the same data directory is refused.
    """
    _allow_many_connections()
    _make_data_directory(config.data_directory)
    with _own_database(config) as conninfo:
        with _complaining():
            revision = migrate.find_revision(conninfo)
            keys = _load_or_create_keys(config.signing_key_path, may_create=revision is None)
            migrate.upgrade(conninfo)
        yield Prepared(conninfo, keys)


@contextlib.contextmanager
def join(config: Config) -> Iterator[str]:
    """The conninfo of the server's database, ready for use, whether or not the server runs. Raises StartupError."""
    with _complaining():
        running = _find_running(config)
        if running is not None and migrate.find_revision(running) != migrate.newest_revision():
            raise StartupError(["the server is just starting, or is another release: try again"])
    if running is not None:
        yield running
        return
    with prepare(config) as prepared:
        yield prepared.conninfo


def list_complaints(config: Config) -> list[str]:
    """Everything that would keep a server with these settings from running, each with its repair."""
    complaints: list[str] = []
    revision = None
    try:
        with _complaining(), _existing_database(config) as conninfo:
            if conninfo is not None:
                revision = migrate.find_revision(conninfo)
                if revision not in (None, migrate.newest_revision()):
                    complaints.append(f"the database has the schema {revision}: run `hearth migrate`")
    except StartupError as error:
        complaints += error.complaints
    if revision is not None or config.signing_key_path.exists():
        try:
            signing_keys.check(config.signing_key_path)
        except SigningKeyError as error:
            complaints.append(str(error))
    return complaints


@contextlib.contextmanager
def _existing_database(config: Config) -> Iterator[str | None]:
    """As it is, without making one; None if the first run will make it."""
    running = _find_running(config)
    if running is not None:
        yield running
    elif config.database.url is None and not has_cluster(config.data_directory):
        yield None
    else:
        with _own_database(config) as conninfo:
            yield conninfo


def _find_running(config: Config) -> str | None:
    return find_running(config.data_directory) if config.database.url is None else None


@contextlib.contextmanager
def _own_database(config: Config) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        with _complaining():
            if config.database.url is not None:
                conninfo = config.database.url.value
            else:
                postgres = EmbeddedPostgres(config.data_directory, binaries=config.database.binaries)
                stack.enter_context(postgres)
                conninfo = postgres.create_database()
        complaints = requirements.list_complaints(conninfo)
        if complaints:
            raise StartupError(complaints)
        yield conninfo


def _load_or_create_keys(path: Path, *, may_create: bool) -> OwnKeys:
    if may_create and not path.exists():
        with contextlib.suppress(FileExistsError):  # another process was faster
            return OwnKeys(signing_keys.create(path))
    return signing_keys.load_all(path, int(time.time() * 1000))


def _allow_many_connections() -> None:
    """As many as the system lets a process have open files, not just as many as it gives one that does not ask."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # "unlimited" may be more than the kernel takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _make_data_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError([f"the data directory cannot be made: {error}. Correct data_directory"]) from None


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except (EmbeddedPostgresError, SigningKeyError, DatabaseTooNewError) as error:
        raise StartupError([str(error)]) from error

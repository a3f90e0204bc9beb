"""Where our own PostgreSQL cluster lives, and who owns it at this moment.

It lives in `postgresql/` of the data directory. As root, PostgreSQL runs as another user, who has to reach it: where a
directory above is closed to others (a checkout below /root), `postgresql` is a symbolic link to a directory that we
make in /var/lib/hearth. Permissions of directories that are not ours are never widened.

    socket-directory    names the socket's directory, for commands that join a running server
    owner.lock          held (flock) by the process that owns the cluster
    cluster/            PostgreSQL's data; belongs to the user that PostgreSQL runs as
    socket/             the unix socket, unless the path is too long for one
    postgresql.conf, pg_hba.conf, pg_ident.conf, local.conf, postgresql.log
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Self

from msgspec import Struct

from storage import cluster_settings, postgres_binaries
from storage.postgres_binaries import EmbeddedPostgresError, SystemUser

DATA_LOCK = "postgresql.lock"
_SOCKET_FILE = "socket-directory"
_LONGEST_SOCKET_PATH = 107  # bytes; the kernel's limit less the closing zero


class ClusterInUseError(EmbeddedPostgresError):
    """Another process owns the cluster."""


class OwnerLock:
    """An exclusive lock on a file; the system lets it go when its last holder dies, however that happens."""

    def __init__(self, path: Path, *, patience_seconds: float = 1.0) -> None:
        """Take the lock; raises ClusterInUseError if another process keeps it for longer than a look takes."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + patience_seconds
        while not self._try():
            if time.monotonic() > deadline:
                owner = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(self._file)
                raise ClusterInUseError(
                    f"Another process (pid {owner}) runs on {path.parent}. Stop it, or use another data directory."
                )
            time.sleep(0.05)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        if os.geteuid() == 0:  # an ordinary user who owns the directory may run it next
            owner_of_directory = path.parent.stat()
            os.fchown(self._file, owner_of_directory.st_uid, owner_of_directory.st_gid)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let another process become the owner."""
        os.close(self._file)


class ClusterPlace(Struct, frozen=True):
    """The directories of a cluster, and the user that PostgreSQL runs as."""

    home: Path
    user: SystemUser

    @classmethod
    def find(cls, data_directory: Path) -> Self:
        """The cluster's place for this data directory, made if there is none. The caller holds the data's lock."""
        link = data_directory / "postgresql"
        if link.is_symlink() and not link.exists():
            raise EmbeddedPostgresError(
                f"The database of {data_directory} is missing: {link} points to {link.readlink()}, which is gone. "
                "Restore it, or remove the link to start with an empty database."
            )
        user = postgres_binaries.find_system_user(link / "cluster")
        home = link.resolve() if link.exists() else _make_home(link, user)
        if user.switch and not user.may_enter(home):
            raise EmbeddedPostgresError(
                f"PostgreSQL runs as user {user.name}, who cannot enter {home}. Allow it (chmod o+x) on each directory "
                "above, or run Hearth as an ordinary user."
            )
        return cls(home, user)

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data directory."""
        return self.home / "cluster"

    @property
    def log_file(self) -> Path:
        """What PostgreSQL says."""
        return self.home / "postgresql.log"

    def cluster_major(self) -> int | None:
        """The version of PostgreSQL that made the cluster; None if there is no cluster yet."""
        if not self.cluster.exists():
            return None
        if not self.user.switch and self.cluster.stat().st_uid != self.user.uid:
            raise EmbeddedPostgresError(
                f"{self.cluster} belongs to another user (id {self.cluster.stat().st_uid}). "
                f"Run Hearth as that user or as root, or give it to {self.user.name} with chown -R."
            )
        return int((self.cluster / "PG_VERSION").read_text(encoding="ascii").split(".")[0])

    def make_private(self, directory: Path) -> None:
        """Make a directory that PostgreSQL's user owns and nobody else may enter; it may be there already."""
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if self.user.switch:
                os.chown(directory, self.user.uid, self.user.gid, follow_symlinks=False)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != self.user.uid or status.st_mode & 0o077:
            raise EmbeddedPostgresError(f"{directory} is not a private directory of {self.user.name}; remove it.")

    def make_socket_directory(self) -> Path:
        """The directory for the socket: in the cluster's home, or a short one if that path is too long."""
        directory = self.home / "socket"
        if len(os.fsencode(directory / f".s.PGSQL.{cluster_settings.PORT}")) > _LONGEST_SOCKET_PATH:
            identity = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
            directory = _runtime_directory() / f"hearth-{identity}"
        self.make_private(directory)
        self.write_readable(_SOCKET_FILE, f"{directory}\n")
        return directory

    def write_readable(self, name: str, text: str) -> Path:
        """Write a file into the home, whole or not at all, for PostgreSQL to read."""
        handle, scratch = tempfile.mkstemp(dir=self.home)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
        except OSError:  # a full disk need not fill with what we began
            Path(scratch).unlink()
            raise
        return Path(scratch).replace(self.home / name)


def find_running_socket(data_directory: Path) -> Path | None:
    """The socket's directory if another process owns this data directory's cluster at the moment.

    Raises ClusterInUseError if that process has not come so far yet.
    """
    lock = data_directory / DATA_LOCK
    if not lock.exists():
        return None
    try:
        OwnerLock(lock, patience_seconds=0).release()
    except ClusterInUseError:
        try:
            return Path((data_directory / "postgresql" / _SOCKET_FILE).read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            raise ClusterInUseError(f"The server on {data_directory} is just starting. Try again.") from None
    return None


def _make_home(link: Path, user: SystemUser) -> Path:
    if not user.switch:
        link.mkdir(mode=0o700)
        return link.resolve()
    if user.may_enter(link.parent.parent):
        _admit(user, link.parent)
    if user.may_enter(link.parent):
        link.mkdir(mode=0o711)
        link.chmod(0o711)
        return link.resolve()
    postgres_binaries.make_system_directory()
    home = Path(tempfile.mkdtemp(prefix=f"{link.parent.name}-", dir=postgres_binaries.SYSTEM_DIRECTORY))
    try:
        home.chmod(0o711)
        (home / "belongs-to").write_text(f"{link.absolute()}\n", encoding="utf-8")
        link.symlink_to(home)
    except OSError:
        shutil.rmtree(home)
        raise
    return home


def _admit(user: SystemUser, data_directory: Path) -> None:
    """Let the user's group pass through the data directory itself, if it is root's own and closed to others."""
    status = data_directory.stat()
    if status.st_uid == 0 and status.st_gid == 0 and not status.st_mode & 0o011:
        os.chown(data_directory, 0, user.gid)
        data_directory.chmod(stat.S_IMODE(status.st_mode) | 0o010)


def _runtime_directory() -> Path:
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())

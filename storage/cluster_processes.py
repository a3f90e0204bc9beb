"""PostgreSQL processes that an owner left behind when it was killed: find and end them.

Only the holder of the cluster's lock calls this, so whatever still runs on the cluster belongs to nobody. Processes are
recognised by the user that they run as and by their command line, which everybody may read; other ways need rights
that root lacks in most containers.
"""

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_FAST_SHUTDOWN_SECONDS = 30.0
_IMMEDIATE_SHUTDOWN_SECONDS = 10.0


def find_processes(cluster: Path, cluster_name: str, uid: int) -> list[int]:
    """Processes of PostgreSQL on this cluster, the postmaster first if there is one."""
    postmasters, others = [], []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if entry.stat().st_uid != uid:
                continue
            command_line = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # ended in the meantime
        arguments = command_line.split(b"\0")
        if arguments[0].endswith(b"/postgres") and arguments[1:3] == [b"-D", os.fsencode(cluster)]:
            postmasters.append(int(entry.name))
        elif command_line.startswith(f"postgres: {cluster_name}: ".encode()):
            others.append(int(entry.name))
    return sorted(postmasters) + sorted(others)


def end_processes(cluster: Path, cluster_name: str, uid: int) -> None:
    """End all of them, gently if a postmaster is among them."""
    left = find_processes(cluster, cluster_name, uid)
    if not left:
        return
    logger.warning("ending %d PostgreSQL processes that a killed owner left behind", len(left))
    _signal(left[:1], signal.SIGINT)
    left = _wait_for_end(cluster, cluster_name, uid, _FAST_SHUTDOWN_SECONDS if _is_postmaster(left[0]) else 0.2)
    for number, seconds in ((signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_SECONDS), (signal.SIGKILL, _FAST_SHUTDOWN_SECONDS)):
        if left:
            logger.warning("%d of them do not end: they get %s", len(left), number.name)
            _signal(left, number)
            left = _wait_for_end(cluster, cluster_name, uid, seconds)


def remove_stale_lock_files(cluster: Path, socket_directory: Path) -> None:
    """Remove lock files whose process ID now means somebody else, or a dead process that nobody has waited for.

    Called when no process of the cluster is left; PostgreSQL would refuse to start. A postmaster.pid whose process is
    gone is left to PostgreSQL, which also checks the shared memory that it names.
    """
    pid_file = cluster / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(pid_file.read_text(encoding="ascii").splitlines()[0])
        if Path(f"/proc/{pid}").exists():
            pid_file.unlink()
    for lock in socket_directory.glob(".s.PGSQL.*.lock"):
        lock.unlink()


def read_status(cluster: Path, pid: int) -> str | None:
    """What this postmaster says of itself in postmaster.pid: "starting", "ready", "stopping"; None before that."""
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    if len(lines) < 8 or lines[0].strip() != str(pid):
        return None
    return lines[7].strip()


def _is_postmaster(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"postgres: ")
    except OSError:
        return False


def _wait_for_end(cluster: Path, cluster_name: str, uid: int, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while left := find_processes(cluster, cluster_name, uid):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

"""The configuration files of our own PostgreSQL cluster, written anew at each start.

An operator's own settings go into `local.conf` beside them, which is read last.
"""

import os
from pathlib import Path

from msgspec import Struct

SUPERUSER = "postgres"  # used to set the cluster up, never by the server
OWNER = "hearth"  # may make databases and owns them
PORT = 5432  # only names the socket; nothing listens on the network

_MEGABYTE = 1024 * 1024
_LARGE_SHARED_MEMORY = 256 * _MEGABYTE


class ClusterSettings(Struct, frozen=True):
    """What the server's configuration says about its own cluster."""

    durable: bool = True  # False is for tests: nothing is flushed, a crash of the machine destroys the cluster
    max_connections: int = 100
    shared_buffers_bytes: int | None = None  # None: an eighth of the memory, between 64 MB and 1 GB


def render_postgresql_conf(settings: ClusterSettings, socket_directory: Path, major: int) -> str:
    """The text of `postgresql.conf`."""
    memory = available_memory_bytes()
    shared_buffers = settings.shared_buffers_bytes or _between(memory // 8, 64, 1024)
    values: dict[str, str | int] = {
        "listen_addresses": "",
        "port": PORT,
        "unix_socket_directories": str(socket_directory),
        "unix_socket_permissions": "0700",
        "max_connections": settings.max_connections,
        # Memory. Many short statements, so little for each and most for the cache.
        "shared_buffers": _kilobytes(shared_buffers),
        "effective_cache_size": _kilobytes(max(memory // 2, shared_buffers)),
        "work_mem": "8MB",
        "maintenance_work_mem": _kilobytes(_between(memory // 32, 64, 512)),
        "dynamic_shared_memory_type": "posix" if _has_shared_memory() else "mmap",
        # Statements are short and arrive together: a second process or compiled code for one never pays.
        "max_parallel_workers_per_gather": 0,
        "jit": "off",
        "random_page_cost": "1.1",
        # Durability.
        "fsync": _switch(settings.durable),
        "synchronous_commit": _switch(settings.durable),
        "full_page_writes": _switch(settings.durable),
        "min_wal_size": "80MB",
        "max_wal_size": "1GB",
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        # Rows come and go all day (queues, receipts, typing): vacuum early, in small portions.
        "autovacuum": "on",
        "autovacuum_max_workers": 2,
        "autovacuum_naptime": "30s",
        "autovacuum_vacuum_scale_factor": "0.05",
        "autovacuum_vacuum_insert_scale_factor": "0.1",
        "autovacuum_analyze_scale_factor": "0.02",
        "autovacuum_vacuum_cost_limit": 1000,
        # A statement of a server that was killed must not go on holding its locks.
        "client_connection_check_interval": "5s",
        # Values of rows and statements are people's data and stay out of the log.
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_min_messages": "log",  # errors reach whoever made the statement
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
        "log_checkpoints": "off",
        "log_line_prefix": "%m [%p] ",
        "log_timezone": "UTC",
        "timezone": "UTC",
        "datestyle": "iso, ymd",
        "lc_messages": "C",
        "default_text_search_config": "pg_catalog.simple",
    }
    if major >= 18:
        values["io_method"] = "sync"  # workers of its own cost more than they bring for a database in memory
    lines = ["# Written by Hearth at each start. Put settings of your own into local.conf."]
    lines += [f"{name} = {_quote(str(value))}" for name, value in values.items()]
    lines.append("include = 'local.conf'")
    return "\n".join(lines) + "\n"


def render_pg_hba_conf() -> str:
    """The text of `pg_hba.conf`: the socket only, and the system says who is calling."""
    return "# Written by Hearth at each start.\nlocal all all peer map=hearth\n"


def render_pg_ident_conf(system_user: str) -> str:
    """The text of `pg_ident.conf`: the server's user, and nobody else, may be either role."""
    rows = [f'hearth "{system_user}" {role}' for role in (OWNER, SUPERUSER)]
    return "\n".join(["# Written by Hearth at each start.", *rows]) + "\n"


def available_memory_bytes() -> int:
    """The machine's memory, or what this process's control group leaves of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            memory = min(memory, int(limit))
    return memory


def _has_shared_memory() -> bool:
    # Containers often have none, or 64 MB, where PostgreSQL then fails in mid-flight.
    try:
        status = os.statvfs("/dev/shm")  # noqa: S108  # asked for its size
    except OSError:
        return False
    return os.access("/dev/shm", os.W_OK) and status.f_blocks * status.f_frsize >= _LARGE_SHARED_MEMORY  # noqa: S108  # asked


def _between(value: int, low_megabytes: int, high_megabytes: int) -> int:
    return min(max(value, low_megabytes * _MEGABYTE), high_megabytes * _MEGABYTE)


def _kilobytes(value: int) -> str:
    return f"{value // 1024}kB"


def _switch(value: bool) -> str:
    return "on" if value else "off"


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"

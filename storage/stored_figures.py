"""What is told of the whole server by its database: what waits, and for how long, whichever process is to see to it."""

from storage.database import Tx
from storage.figures import Figures

MOST = 100_000
"""Nothing is counted beyond."""

_NOW = "(extract(epoch from clock_timestamp()) * 1000)::bigint"


def _count(table: str, condition: str = "true") -> str:
    return f"(select count(*) from (select from {table} where {condition} limit {MOST}) counted)"


def _age(table: str, column: str, condition: str = "true") -> str:
    """How many seconds the oldest is old."""
    return f"(select greatest(coalesce({_NOW} - min({column}), 0), 0) / 1000.0 from {table} where {condition})::float8"


_PARTS = {
    "log_head": "(select position from log_head)",
    "federation_to_device_waiting": _count("outbox_messages"),
    # The oldest has the lowest number: found by its key, not by looking at all.
    "federation_to_device_oldest_seconds": f"(select coalesce((select greatest({_NOW} - created_ts, 0) / 1000.0"
    " from outbox_messages order by sequence limit 1), 0))::float8",
    "to_device_waiting": _count("to_device_messages"),
    "pushes_waiting": _count("pushes"),
    "pushes_oldest_seconds": _age("pushes", "created_ts"),
    "follower_position": "(select coalesce(min(position), (select position from log_head)) from followers)",
    "index_backlog": f"{_count('search_backlog')} + {_count('directory_backlog')}",
    "federation_servers_failing": _count("destinations", "failing_since_ts is not null"),
    "federation_undeliverable": _count("undeliverable"),
    "federation_shards_unheld": "(select count(*) from outbox_shards where not exists (select from outbox_processes"
    f" held where held.process = outbox_shards.process and held.expires_ts > {_NOW}))",
    "federation_senders": f"(select count(*) from outbox_processes where expires_ts > {_NOW})",
    "dead_letters_waiting": _count("dead_letters", "retry_ts is not null"),
    "dead_letters_given_up": _count("dead_letters", "retry_ts is null"),
    "remote_joins_waiting": _count("remote_joins"),
    "remote_join_oldest_seconds": _age("remote_joins", "started_ts"),
    "device_lists_stale": _count("remote_device_lists", "is_stale"),
    "device_lists_overdue_seconds": _age("remote_device_lists", "retry_ts", "is_stale and retry_ts > 0"),
    "device_lists_failing": _count("remote_device_lists", "is_stale and failures > 2"),
    "delayed_events_overdue_seconds": _age("delayed_events", "running_since_ts + delay_ms"),
    "mail_waiting": _count("outgoing_messages", "channel = 'mail'"),
    "mail_oldest_seconds": _age("outgoing_messages", "created_ts", "channel = 'mail'"),
    "sms_waiting": _count("outgoing_messages", "channel = 'sms'"),
    "sms_oldest_seconds": _age("outgoing_messages", "created_ts", "channel = 'sms'"),
    "database_notify_queue_ratio": "pg_notification_queue_usage()",
    "database_size_bytes": "pg_database_size(current_database())",
    "database_server_connections": "(select count(*) from pg_stat_activity where datname = current_database())",
    "database_server_connections_limit": "current_setting('max_connections')::int",
    "database_oldest_transaction_seconds": "(select coalesce(extract(epoch from clock_timestamp() - min(xact_start)),"
    " 0) from pg_stat_activity where datname = current_database() and backend_type = 'client backend')::float8",
}
_SQL = f"select {', '.join(_PARTS.values())}"


async def read(tx: Tx) -> Figures:
    """One statement, of which each part is bounded, whatever waits."""
    row = await tx.fetch_one(_SQL)
    return {} if row is None else dict(zip(_PARTS, row, strict=True))

"""Every figure that Prometheus is told, with what it means; `docs/operations/metrics.md` has the same for operators.

Names are without the prefix `hearth_`. Those that end in `_total` only grow; those with bounds are histograms; the rest
are states, of which `across` says how those of several processes become one.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from storage.figures import COUNTS, SECONDS

REQUEST_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0)
"""Few, as there are many endpoints."""


class Across(StrEnum):
    """What becomes of a state that several processes have; `prometheus_client` names them so."""

    SUM = "livesum"
    LARGEST = "livemax"
    SMALLEST = "livemin"
    NEWEST = "livemostrecent"
    """It is of the whole server: who read it last knows best."""


class Described(Struct, frozen=True):
    """One figure."""

    title: str
    labels: tuple[str, ...] = ()
    across: Across = Across.SUM
    bounds: Sequence[float] = ()

    @property
    def mode(self) -> Literal["livesum", "livemax", "livemin", "livemostrecent"]:
        """`across`, for `prometheus_client`."""
        return self.across.value

    @property
    def is_histogram(self) -> bool:
        """Whether it counts how often something is how large."""
        return bool(self.bounds)


def _state(title: str, *labels: str, across: Across = Across.SUM) -> Described:
    return Described(title, labels, across)


def _seconds(title: str, *labels: str, bounds: Sequence[float] = SECONDS) -> Described:
    return Described(title, labels, bounds=bounds)


_total = Described

_REQUESTS = {
    "request_seconds": _seconds(
        "Requests by endpoint and status, and how long they took; a sync may wait for long",
        *("method", "endpoint", "status"),
        bounds=REQUEST_SECONDS,
    ),
    "requests_in_progress": _state("Requests that are being answered, syncs that wait among them"),
    "rate_limited_total": _total("Requests refused because a budget was spent", ("budget",)),
    "syncs_waiting": _state("Users with a sync that waits for news"),
    "users_followed": _state("Users whose rooms and counts are kept in memory"),
}
_LOG = {
    "log_append_seconds": _seconds("Entries appended to the log, and how long each took until it was committed"),
    "log_batch_seconds": _seconds("Transactions that appended to the log, and how long they took"),
    "log_batch_entries": Described("Entries in each of these transactions", bounds=COUNTS),
    "log_lock_seconds": _seconds("How long these waited for the log's lock, the way to the database included"),
    "log_conflicts_total": _total("Entries refused because what they expected had changed; they are tried again"),
    "log_refused_total": _total("Entries refused for whatever reason, conflicts among them"),
    "log_failures_total": _total("Transactions that the database broke off"),
    "log_waiting": _state("Entries that wait to be appended"),
    "log_oldest_seconds": _state("For how long the oldest of these has waited", across=Across.LARGEST),
    "log_position": _state("Newest position of the log that every process has applied", across=Across.SMALLEST),
    "log_head": _state("Newest position of the log", across=Across.NEWEST),
    "tail_behind_seconds": _state(
        "How long ago a process last knew all that is committed; a few seconds if all is well", across=Across.LARGEST
    ),
    "tail_changes": _state("Changes of the log that are kept in memory"),
    "tail_changes_carried_total": _total("Changes of other processes that came by the bus"),
    "tail_changes_read_total": _total("Changes of other processes that were read from the database"),
    "bus_up": _state("Whether every process hears of the others by the bus", across=Across.SMALLEST),
    "bus_waiting": _state("Messages that wait to be sent by the bus"),
    "tail_bytes": _state("What those take that are large"),
    "followers_run": _state("Followers of the log that processes run: pushes, search, the user directory"),
    "follower_failures_total": _total("How often one of them could not act on what it was told"),
    "follower_position": _state("Up to where the slowest of them has acted on the log", across=Across.NEWEST),
    "index_backlog": _state("Parts of rooms that are yet to be indexed for searches", across=Across.NEWEST),
}
_DATABASE = {
    "database_up": _state("Whether the database answered when it was last asked", across=Across.NEWEST),
    "database_replica_reads_total": _total("Reads of rooms' history that a replica answered"),
    "database_connections": _state("Connections of the pools"),
    "database_connections_idle": _state("Connections of the pools that nobody uses"),
    "database_connections_limit": _state("Connections that the pools may have"),
    "database_waiting": _state("Requests that wait for a connection"),
    "database_requests_total": _total("How often a connection was asked for"),
    "database_wait_seconds_total": _total("Time spent waiting for connections"),
    "database_use_seconds_total": _total("Time for which connections were in use"),
    "database_refused_total": _total("How often no connection came in time"),
    "database_connects_total": _total("Connections that were tried to make"),
    "database_connect_failures_total": _total("Connections that could not be made"),
    "database_lost_total": _total("Connections that were found lost"),
    "database_notify_queue_ratio": _state(
        "How full PostgreSQL's queue of notifications is; at 1 no commit succeeds", across=Across.NEWEST
    ),
    "database_size_bytes": _state("Size of the database", across=Across.NEWEST),
    "database_server_connections": _state("Connections to the database, of whomever", across=Across.NEWEST),
    "database_server_connections_limit": _state("Connections that PostgreSQL takes", across=Across.NEWEST),
    "database_oldest_transaction_seconds": _state("Age of the oldest transaction", across=Across.NEWEST),
}
_CACHES = {
    "cache_entries": _state("Entries of a cache", "cache"),
    "cache_hits_total": _total("Lookups that a cache could answer", ("cache",)),
    "cache_misses_total": _total("Lookups that it could not", ("cache",)),
}
_SENDING = {
    "federation_destinations": _state("Servers that something waits for, as far as a process has it in memory"),
    "federation_destinations_behind": _state("Those of them for which it is read from the log"),
    "federation_waiting": _state(
        "What waits in memory by lane; for to-device messages, the servers that some wait for", "lane"
    ),
    "federation_undispatched": _state("Changes that are yet to be handed to the servers' queues"),
    "federation_position": _state("Up to where the log is handed to these queues", across=Across.SMALLEST),
    "federation_stalled_seconds": _state(
        "For how long nothing was tried for a server that something waits for, and that is not left alone",
        across=Across.LARGEST,
    ),
    "federation_sending": _state("Servers that something is being sent to"),
    "federation_sending_limit": _state("Transactions that may be under way at once"),
    "federation_send_seconds": _seconds("Transactions sent, and how long they took"),
    "federation_transactions_total": _total("Transactions by what became of them", ("result",)),
    "federation_sent_total": _total("Events and EDUs that other servers took", ("kind",)),
    "federation_set_aside_total": _total("Things that their server would never take, and that were set aside"),
    "federation_to_device_given_up_total": _total("To-device messages that their server did not take for too long"),
    "federation_back_offs": _state("Servers that are left alone because they do not answer", across=Across.LARGEST),
    "federation_shards": _state("Shards of servers that processes hold to send to; there are 32"),
    "federation_shards_unheld": _state("Shards that no process holds", across=Across.NEWEST),
    "federation_senders": _state("Processes that send, on all machines", across=Across.NEWEST),
    "federation_to_device_waiting": _state("To-device messages that wait for other servers", across=Across.NEWEST),
    "federation_to_device_oldest_seconds": _state("Age of the oldest of them", across=Across.NEWEST),
    "federation_servers_failing": _state("Servers that do not answer", across=Across.NEWEST),
    "federation_undeliverable": _state("Things on the list of what was set aside", across=Across.NEWEST),
}
_RECEIVING = {
    "federation_receiving": _state("Transactions of other servers that are at work"),
    "federation_receiving_limit": _state("How many may be"),
    "federation_receive_seconds": _seconds("Transactions received, and how long they took"),
    "federation_received_events_total": _total("Events in them by what became of them", ("result",)),
    "federation_received_edus_total": _total("EDUs in them"),
    "federation_repeated_transactions_total": _total("Transactions that came again and got their old answer"),
    "dead_letters_waiting": _state("Events that could not be processed and are tried again", across=Across.NEWEST),
    "dead_letters_given_up": _state("Those that are not tried again, and wait for an operator", across=Across.NEWEST),
    "dead_letters_kept_total": _total("Events that were set aside on this list"),
    "dead_letters_settled_total": _total("Events of this list that arrived after all, or were dropped"),
    "remote_joins": _state("Joins to rooms of other servers that are under way"),
    "remote_join_events": _state("Events of these rooms' state that have come"),
    "remote_joins_ended_total": _total("Joins to rooms of other servers that ended, by how", ("result",)),
    "remote_joins_waiting": _state("Joins that are under way or are to be tried again", across=Across.NEWEST),
    "remote_join_oldest_seconds": _state("Age of the oldest of them", across=Across.NEWEST),
    "device_lists_stale": _state("Device lists of other servers' users to be fetched", across=Across.NEWEST),
    "device_lists_failing": _state("Those of them that failed three times or more", across=Across.NEWEST),
    "device_lists_overdue_seconds": _state("For how long one should have been fetched", across=Across.NEWEST),
}
_PLACES = {
    "places_taken": _state("Work under way of which only so much may be done at once", "work"),
    "places_waiting": _state("What waits for its turn at it", "work"),
    "places_limit": _state("How much of it may be done at once", "work"),
}
_PUSH = {
    "pushes_total": _total("What gateways were told, or would not be told, by what became of it", ("result",)),
    "push_seconds": _seconds("How long gateways took to answer"),
    "pushes_held": _state("Pushes that wait in memory"),
    "push_gateways": _state("Gateways that something waits for"),
    "push_gateways_failing": _state("Those of them that do not answer"),
    "pushes_waiting": _state("Pushes that gateways have not been told", across=Across.NEWEST),
    "pushes_oldest_seconds": _state("Age of the oldest of them", across=Across.NEWEST),
}
_REST = {
    "to_device_waiting": _state("To-device messages that devices have not taken", across=Across.NEWEST),
    "to_device_dropped_total": _total("Other servers' messages to devices that did not ask for them: too many, or old"),
    "delayed_events_overdue_seconds": _state("For how long a delayed event should be sent", across=Across.NEWEST),
    "media_received_bytes_total": _total("Media taken from users, and from other servers", ("from",)),
    "media_uploads": _state("Uploads that are under way"),
    "media_fetches": _state("Media that is being fetched from other servers"),
    "media_fetches_limit": _state("How much may be at once"),
    "media_fetch_failures_total": _total("Media that could not be fetched"),
    "media_forgotten_bytes_total": _total("Media of other servers that is kept no longer, as it was too much"),
    "mail_total": _total("Mail by what became of it", ("result",)),
    "mail_waiting": _state("Mail that the mail server has not taken", across=Across.NEWEST),
    "mail_oldest_seconds": _state("Age of the oldest of it", across=Across.NEWEST),
    "sms_total": _total("SMS by what became of them", ("result",)),
    "sms_waiting": _state("SMS that the gateway has not taken", across=Across.NEWEST),
    "sms_oldest_seconds": _state("Age of the oldest of them", across=Across.NEWEST),
    "disk_free_bytes": _state("Free space where the data directory is", across=Across.NEWEST),
    "disk_size_bytes": _state("Size of that file system", across=Across.NEWEST),
    "background_tasks": _state("Processes in which a background task runs", "task"),
    "processes": _state("Processes of this machine that answer requests"),
    "cpu_seconds_total": _total("CPU time of the server's processes, without PostgreSQL"),
    "memory_bytes": _state("Resident memory of the server's processes"),
    "open_files": _state("Open files of the process that has most", across=Across.LARGEST),
    "open_files_limit": _state("Files that a process may open", across=Across.SMALLEST),
    "loop_lag_seconds": _state("How late an event loop got to a regular task, at most lately", across=Across.LARGEST),
    "start_seconds": _state("When the process began that runs longest, in Unix time", across=Across.SMALLEST),
    "build_info": _state("1, for the release that runs", "version", "python", across=Across.LARGEST),
}

FIGURES: Mapping[str, Described] = {
    **_REQUESTS,
    **_LOG,
    **_DATABASE,
    **_CACHES,
    **_SENDING,
    **_RECEIVING,
    **_PLACES,
    **_PUSH,
    **_REST,
}


def table() -> str:
    """The same in Markdown, for `docs/operations/metrics.md`, which a test holds to it."""
    lines = ["| name | kind | labels | across processes | what it is |", "|---|---|---|---|---|"]
    for name, each in FIGURES.items():
        kind = "histogram" if each.is_histogram else "counter" if name.endswith("_total") else "gauge"
        across = each.across.name.lower() if kind == "gauge" else "sum"
        lines.append(f"| `hearth_{name}` | {kind} | {', '.join(each.labels)} | {across} | {each.title} |")
    return "\n".join(lines)

"""What the appender counts of its work."""

import time

from storage.figures import COUNTS, Figures, Tally


class LogFigures:
    """Of one process's `Log`."""

    def __init__(self) -> None:
        self.append_seconds = Tally()
        """Of each entry, from when it is enqueued until it is committed."""
        self.batch_seconds = Tally()
        self.lock_seconds = Tally()
        """What of that is waiting for the log's lock, which includes the way to the database and back."""
        self.batch_entries = Tally(COUNTS)
        self.refused = 0
        self.conflicts = 0
        """Those of the refused that are tried again."""
        self.failures = 0
        """Batches whose connection was lost."""
        self.writing_since: float | None = None
        """When the oldest entry was enqueued of those that are being written."""

    def note_refused(self, *, is_conflict: bool) -> None:
        """An entry was not written."""
        self.refused += 1
        self.conflicts += is_conflict

    def read(self, waiting: int, waiting_since: float | None) -> Figures:
        """By name, with so many entries that wait, the first of them since then."""
        since = waiting_since if self.writing_since is None else self.writing_since
        return {
            "log_append_seconds": self.append_seconds,
            "log_batch_seconds": self.batch_seconds,
            "log_batch_entries": self.batch_entries,
            "log_lock_seconds": self.lock_seconds,
            "log_conflicts_total": self.conflicts,
            "log_refused_total": self.refused,
            "log_failures_total": self.failures,
            "log_waiting": waiting,
            "log_oldest_seconds": 0.0 if since is None else time.monotonic() - since,
        }

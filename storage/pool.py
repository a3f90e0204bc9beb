"""The connections that a process shares among its tasks."""

import time

from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from storage.statements import Connection


class Pool(AsyncConnectionPool[Connection]):
    """Hands out, of the connections that are free, the one that is there for longest: while there is little to do one
    or two do all of it, whose plans and caches are warm, and those that are not needed are given up.

    What psycopg's pool does with locks, and in a dozen functions, is left to it where somebody has to wait.
    """

    used_seconds = 0.0
    """For how long connections were in use, all together."""

    def take(self) -> Connection | None:
        """A connection that is free; None where one has to be waited for, by `getconn`."""
        if self._closed or not self._pool:
            return None
        connection = min(self._pool, key=_created_at) if len(self._pool) > 1 else self._pool[0]
        self._pool.remove(connection)
        self._nconns_min = min(self._nconns_min, len(self._pool))  # by which the pool sees how many are needed
        self._stats[self._REQUESTS_NUM] += 1
        connection._pool = self
        return connection

    async def give_back(self, connection: Connection, since: float) -> None:
        """Take a connection back that was in use since then; one that is lost, or in a transaction, is looked after."""
        now = time.monotonic()
        self.used_seconds += now - since
        if (
            self._closed
            or self._waiting
            or connection.pgconn.transaction_status != TransactionStatus.IDLE
            or not self._drained_at < connection._created_at
            or connection._expire_at <= now
        ):
            await self.putconn(connection)
        else:
            connection._pool = None
            self._pool.append(connection)


def _created_at(connection: Connection) -> float:
    return connection._created_at  # as the pool counts it

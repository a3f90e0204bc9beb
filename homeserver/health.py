"""Whether this process lives, and whether it should be given requests: every listener with the API `health` answers.

`/health` says that the process runs, and asks nothing: who watches it restarts what does not answer. `/ready` says
that requests are answered as they should be: who spreads them leaves a process alone that says otherwise, and why.
"""

import logging

from federation.protocol.errors import MatrixError, Unavailable
from federation.web import Answer, Call, Route
from homeserver.shared_answer import SharedAnswer
from storage.tail import POLL_SECONDS, Tail

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""How long the database may take to answer."""
REMEMBERED_SECONDS = 1.0
"""However many ask, the database is asked once in so long."""
UNFOLLOWED_SECONDS = 2 * POLL_SECONDS
"""For how long the log may not have been followed: what others write is seen that late."""


class Health:
    """The two answers."""

    def __init__(self, tail: Tail) -> None:
        self._is_ending = False
        self._tail = tail
        self._database = SharedAnswer(
            self._find_fault, remembered_seconds=REMEMBERED_SECONDS, patience_seconds=PATIENCE_SECONDS
        )

    def routes(self) -> list[Route]:
        """What a listener serves."""
        return [Route("GET", "/health", self._live), Route("GET", "/ready", self._ready)]

    async def close(self) -> None:
        """Ask no more."""
        await self._database.close()

    def note_end(self) -> None:
        """No more requests should come, although those that come are still answered."""
        self._is_ending = True

    async def find_obstacle(self) -> str | None:
        """Why this process should not be given requests, in words for an operator."""
        if self._is_ending or self._tail.is_closing:
            return "The server is shutting down"
        try:
            fault = await self._database.get()
        except TimeoutError:
            fault = f"The database has not answered for {self._database.patience_seconds:g} seconds"
        if fault is not None:
            return fault
        seconds = self._tail.seconds_unfollowed
        return f"The log has not been followed for {seconds:.0f} seconds" if seconds > UNFOLLOWED_SECONDS else None

    async def _find_fault(self) -> str | None:
        try:
            is_standby = await self._tail.is_on_standby()
        except Unavailable:  # logged where it arose
            return "The database cannot be reached"
        except Exception:
            logger.exception("the database cannot be asked whether it is well")
            return "The database is not as it should be: see the log"
        return "The database is a standby, and cannot be written" if is_standby else None

    async def _live(self, _call: Call) -> Answer:
        return {}

    async def _ready(self, _call: Call) -> Answer:
        obstacle = await self.find_obstacle()
        if obstacle is not None:
            raise MatrixError("M_UNKNOWN", obstacle, 503)
        return {}

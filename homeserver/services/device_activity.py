"""When and from where devices were last used: noted in memory, written in batches."""

import asyncio
import logging
import time

from federation.protocol.errors import Unavailable
from storage import devices
from storage.database import Database

logger = logging.getLogger(__name__)

_MAX_LENGTH = 256


class DeviceActivity:
    """What this process has seen and not yet written down."""

    def __init__(self, database: Database, *, interval_seconds: float = 30) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._seen: dict[int, devices.Seen] = {}

    def note(self, device: int, ip: str, user_agent: str) -> None:
        """A request of this device came."""
        self._seen[device] = devices.Seen(device, int(time.time() * 1000), _storable(ip), _storable(user_agent))

    async def run(self) -> None:
        """Write down what was seen, now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.flush()
            except Exception:
                logger.exception("when devices were last used could not be written down")

    async def flush(self) -> None:
        """Write down what was seen; when the database is away it is only noted later."""
        if not self._seen:
            return
        seen, self._seen = self._seen, {}
        try:
            async with self._database.transaction() as tx:
                await devices.note_seen(tx, list(seen.values()))
        except Unavailable:
            self._seen = {**seen, **self._seen}


def _storable(header: str) -> str:
    """A header's value as a column takes it: bytes that are no UTF-8 arrive as lone surrogates."""
    return header[:_MAX_LENGTH].replace("\x00", "").encode(errors="replace").decode()

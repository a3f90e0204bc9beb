"""When and from where devices were last used: noted in memory, written in batches."""

import asyncio
import logging
import time

from federation.protocol.errors import Unavailable
from storage import devices
from storage.database import Database

logger = logging.getLogger(__name__)

_MAX_USER_AGENT = 256


class DeviceActivity:
    """What this process has seen and not yet written down."""

    def __init__(self, database: Database, *, interval_seconds: float = 30) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._seen: dict[int, devices.Seen] = {}

    def note(self, device: int, ip: str, user_agent: str) -> None:
        """A request of this device came."""
        self._seen[device] = devices.Seen(device, int(time.time() * 1000), ip, user_agent)

    async def run(self) -> None:
        """Write down what was seen, now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.flush()

    async def flush(self) -> None:
        """Write down what was seen; when the database is away it is only noted later."""
        if not self._seen:
            return
        seen, self._seen = self._seen, {}
        rows = [
            devices.Seen(each.device, each.ts, each.ip, each.user_agent[:_MAX_USER_AGENT].replace("\x00", ""))
            for each in seen.values()
        ]
        try:
            async with self._database.transaction() as tx:
                await devices.note_seen(tx, rows)
        except Unavailable:
            self._seen = {**seen, **self._seen}

"""Deleting what devices and their messages leave behind, a little at a time and never under the log's lock."""

import time

from storage import device_lists, send_to_device
from storage.database import Database
from storage.tail import Tail

TRANSACTIONS_KEPT_MS = 24 * 3600 * 1000
"""For how long a repeated /sendToDevice is recognised."""
CHANGES_KEPT = 100_000
"""Positions for which every change of a device list is kept, for followers that are behind."""
ROWS_AT_ONCE = 2_000


class KeyUpkeep:
    """What is to be done every few minutes; several processes may do it at once."""

    def __init__(self, database: Database, tail: Tail) -> None:
        self._database = database
        self._tail = tail
        self._looked_at = 0

    async def run_once(self) -> None:
        """Delete inboxes of deleted devices, old transactions, and changes of device lists that later ones repeat."""
        await self._delete_inboxes()
        before_ts = int(time.time() * 1000) - TRANSACTIONS_KEPT_MS
        deleted = ROWS_AT_ONCE
        while deleted >= ROWS_AT_ONCE:
            async with self._database.transaction() as tx:
                deleted = await send_to_device.delete_old_transactions(tx, before_ts, ROWS_AT_ONCE)
        upto = self._tail.position - CHANGES_KEPT
        if upto > self._looked_at:
            async with self._database.transaction() as tx:
                await device_lists.delete_superseded(tx, self._looked_at, upto)
            self._looked_at = upto

    async def _delete_inboxes(self) -> None:
        async with self._database.read() as tx:
            devices = await send_to_device.abandoned_inboxes(tx)
        for device in devices:
            deleted = ROWS_AT_ONCE
            while deleted >= ROWS_AT_ONCE:
                async with self._database.transaction() as tx:
                    deleted = await send_to_device.delete_some(tx, device, ROWS_AT_ONCE)

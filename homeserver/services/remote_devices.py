"""Devices of other servers' users, as far as our clients follow them (Server-Server API, "Device Management").

A change concerns those of our users who share a room with its user; of others nothing is noted.
"""

import logging
from collections.abc import Sequence

from federation.protocol.edu import DeviceListUpdate, SigningKeyUpdate
from federation.protocol.types import DeviceID, UserID
from storage import device_lists
from storage.database import Tx
from storage.log import Entry, Log

logger = logging.getLogger(__name__)


class RemoteDevices:
    """Takes what other servers say of their users' devices."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def receive_update(self, update: DeviceListUpdate) -> None:
        """A device changed: our clients hear of it."""
        await self._note_change(update.user_id, [update.device_id])

    async def receive_signing_keys(self, update: SigningKeyUpdate) -> None:
        """Cross-signing keys changed: our clients hear of it."""
        await self._note_change(update.user_id, [])

    async def _note_change(self, user_id: UserID, device_ids: Sequence[DeviceID]) -> None:
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            change = await device_lists.of_user(tx, user_id, device_ids)
            entry.changes = [change] if change.changed_in else []

        entry.work = work
        await self._log.append(entry)

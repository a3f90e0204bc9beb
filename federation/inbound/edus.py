"""Ephemeral units of a transaction, each kind to who takes it (Server-Server API, "EDUs").

`protocol/edu.py` has left only what speaks for the sending server's own users. A room's EDUs count where the room's
access control list allows the server; that the user is in the room is for the receiver of the kind to check. One that
is malformed, or cannot be taken, harms no other.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from msgspec import Struct

from federation.protocol import edu
from federation.protocol.errors import MatrixError, Unavailable
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.doors import RoomDoors
from federation.rooms.receive import Receiver
from storage import memberships
from storage.database import Database
from storage.log_entries import Conflict

logger = logging.getLogger(__name__)

MAX_RECEIPTS = 2000
"""Receipts of one transaction that are looked at: each is written by itself, and one EDU may hold many thousands."""


class EDUReceivers(Struct, frozen=True, kw_only=True):
    """Who takes each kind."""

    typing: Callable[[edu.Typing], Awaitable[None]]
    presence: Callable[[edu.UserPresence], Awaitable[None]]
    receipt: Callable[[edu.Receipt], Awaitable[None]]
    to_device: Callable[[edu.DirectToDevice], Awaitable[None]]
    device_list: Callable[[edu.DeviceListUpdate], Awaitable[None]]
    signing_keys: Callable[[edu.SigningKeyUpdate], Awaitable[None]]


class EDUs:
    """Takes EDUs of other servers."""

    def __init__(self, *, database: Database, receiver: Receiver, doors: RoomDoors, receivers: EDUReceivers) -> None:
        self._database = database
        self._receiver = receiver
        self._doors = doors
        self._receivers = receivers

    async def receive_all(self, origin: ServerName, edus: Sequence[JsonObject]) -> None:
        """Take them in order. Raises only Unavailable and Conflict: then the server sends all of them again."""
        receipts_left = MAX_RECEIPTS
        for json in edus:
            try:
                unit = edu.parse(json, origin)
                if isinstance(unit, edu.Receipts):
                    await self._receive_receipts(origin, unit.receipts[:receipts_left])
                    receipts_left = max(0, receipts_left - len(unit.receipts))
                elif unit is not None:
                    await self._receive(origin, unit)
            except (Unavailable, Conflict):  # what is guaranteed to arrive is not dropped for what passes
                raise
            except MatrixError as error:
                logger.info("an EDU from %s was dropped: %s", origin, error.message)
            except Exception:  # it may fail, others may not
                logger.exception("an EDU from %s could not be taken", origin)

    async def _receive(self, origin: ServerName, unit: edu.EDU) -> None:
        match unit:
            case edu.Typing():
                if await self._is_open(unit.room_id, origin):
                    await self._receivers.typing(unit)
            case edu.Presence():
                await self._receive_presence(unit.updates)
            case edu.DirectToDevice():
                await self._receivers.to_device(unit)
            case edu.DeviceListUpdate():
                await self._receivers.device_list(unit)
            case edu.SigningKeyUpdate():
                await self._receivers.signing_keys(unit)

    async def _receive_receipts(self, origin: ServerName, receipts: Iterable[edu.Receipt]) -> None:
        is_open: dict[RoomID, bool] = {}
        for receipt in receipts:
            if receipt.room_id not in is_open:
                is_open[receipt.room_id] = await self._is_open(receipt.room_id, origin)
            if is_open[receipt.room_id]:
                await self._receivers.receipt(receipt)

    async def _receive_presence(self, updates: Sequence[edu.UserPresence]) -> None:
        """Only of users who are in some room here: nobody else's is kept in memory."""
        async with self._database.read() as tx:
            known = await memberships.joined_rooms_of_many(tx, {update.user_id for update in updates})
        for update in updates:
            if update.user_id in known:
                await self._receivers.presence(update)

    async def _is_open(self, room_id: RoomID, origin: ServerName) -> bool:
        try:
            await self._doors.check(await self._receiver.get_room(room_id), origin)
        except Unavailable:
            raise
        except MatrixError:
            return False
        return True

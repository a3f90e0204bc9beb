"""Receipts and the fully read marker (Client-Server API, "Receipts", "Read and unread markers")."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import orjson

from federation.protocol import edu
from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.identifiers import is_event_id
from federation.protocol.types import EventID, JsonObject, UserID
from homeserver.services.account_data import FULLY_READ
from storage import account_data, memberships, receipts, rooms
from storage.account_data import AccountDataChanged
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Entry
from storage.memberships import Membership
from storage.receipts import READ, READ_PRIVATE, Place, ReceiptBehind, ReceiptMoved

MAIN = "main"
TYPES = (READ, READ_PRIVATE, FULLY_READ)


class ReceiptService:
    """Who has read up to where."""

    def __init__(self, database: Database, log: Log) -> None:
        self._database = database
        self._log = log

    async def send(
        self, user_id: UserID, room_id: str, marks: Sequence[tuple[str, str]], *, thread: str = "", back: bool = False
    ) -> None:
        """Move a local user's receipts, and their fully read marker, to events: (type, event ID) each.

        What is at the event or beyond it stays; `back` lets the fully read marker move backwards (MSC4446). Raises
        Forbidden for who is not in the room, M_NOT_FOUND for an event that is not, InvalidInput for a wrong thread.
        """
        async with self._database.read() as tx:
            room = await self._joined_room(tx, user_id, room_id)
            places = {event_id: await _place(tx, room, event_id) for event_id in {event_id for _, event_id in marks}}
            for place_id, place in places.items():
                await _check_thread(tx, room, place_id, place, thread)
            marker = await _marker_position(tx, user_id, room)
        now_ts = time.time_ns() // 1_000_000
        waiting: list[asyncio.Future[object]] = []
        for kind, event_id in marks:
            position = places[event_id].position
            if kind != FULLY_READ:
                moved = ReceiptMoved(room, user_id, kind, thread, EventID(event_id), position, now_ts, is_local=True)
                waiting.append(asyncio.ensure_future(self._move(moved)))
            elif back or position > marker:
                content = orjson.dumps({"event_id": event_id})
                change = AccountDataChanged(user_id, room, FULLY_READ, content)
                waiting.append(asyncio.ensure_future(self._log.append(Entry([change]))))
        await asyncio.gather(*waiting)

    async def receive(self, receipt: edu.Receipt) -> None:
        """Take a receipt of another server's user, which that server sent; one of nobody in the room is dropped."""
        if receipt.receipt_type != READ:
            return
        async with self._database.read() as tx:
            room = await rooms.find(tx, receipt.room_id)
            if room is None:
                return
            if await memberships.membership_of(tx, room.number, receipt.user_id) is not Membership.JOIN:
                return
            place = await receipts.place_of(tx, room.number, receipt.event_id)
            thread = receipt.thread_id or ""
            if thread not in ("", MAIN) and await receipts.place_of(tx, room.number, thread) is None:
                return  # a row for each thread that somebody makes up would be without end
        position = 0 if place is None else place.position
        await self._move(
            ReceiptMoved(room.number, receipt.user_id, READ, thread, receipt.event_id, position, receipt.ts)
        )

    async def _move(self, moved: ReceiptMoved) -> None:
        with suppress(ReceiptBehind):
            await self._log.append(Entry([moved]))

    async def _joined_room(self, tx: Tx, user_id: UserID, room_id: str) -> int:
        room = await rooms.find(tx, room_id)
        if room is None or await memberships.membership_of(tx, room.number, user_id) is not Membership.JOIN:
            raise Forbidden("You are not in this room")
        return room.number


async def _place(tx: Tx, room: int, event_id: str) -> Place:
    place = await receipts.place_of(tx, room, event_id) if is_event_id(event_id) else None
    if place is None:
        raise NotFound("There is no such event in the room")
    return place


async def _marker_position(tx: Tx, user_id: UserID, room: int) -> int:
    content = await account_data.find(tx, user_id, room, FULLY_READ)
    if content is None:
        return 0
    place = await receipts.place_of(tx, room, orjson.loads(content)["event_id"])
    return 0 if place is None else place.position


async def _check_thread(tx: Tx, room: int, event_id: str, place: Place, thread: str) -> None:
    """What relates to something in a thread is in that thread, too; clients may take it for the main timeline's."""
    if not thread or thread in {place.thread or MAIN, event_id}:
        return
    if thread == MAIN and not await receipts.is_reply(tx, event_id):
        return
    if place.thread is not None or thread == MAIN or await receipts.related_thread(tx, room, event_id) != thread:
        raise InvalidInput("The event is not in this thread")


def receipt_events(moved: Iterable[ReceiptMoved]) -> list[JsonObject]:
    """The `m.receipt` events that tell a room's receipts, one a thread, since one event may be read in several."""
    by_thread: dict[str, JsonObject] = {}
    for receipt in moved:
        content = by_thread.setdefault(receipt.thread, {})
        data: JsonObject = {"ts": receipt.ts}
        if receipt.thread:
            data["thread_id"] = receipt.thread
        content.setdefault(receipt.event_id, {}).setdefault(receipt.receipt_type, {})[receipt.user_id] = data
    return [{"type": "m.receipt", "content": content} for content in by_thread.values()]

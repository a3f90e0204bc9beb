"""Threads that users follow (MSC4306), and how clients hear of it (MSC4308)."""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.relations import thread_of
from federation.protocol.types import EventID, JsonObject, UserID
from federation.rooms.aggregations import may_be_root
from federation.rooms.reader import Access, RoomReader
from homeserver.tokens import page_token
from storage import rooms, thread_subscriptions
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Entry
from storage.thread_subscriptions import SubscribedAlready, ThreadSubscription


class SubscriptionChanges(Struct, frozen=True):
    """What changed of a user's subscriptions, as clients are told it."""

    told: JsonObject
    """`subscribed` and `unsubscribed`, as far as there are any."""
    end: str | None
    """A token to go back from, where there is more."""


class ThreadSubscriptionService:
    """Subscribes users to threads."""

    def __init__(self, database: Database, log: Log, reader: RoomReader) -> None:
        self._database = database
        self._log = log
        self._reader = reader

    async def subscribe(self, user_id: UserID, room_id: str, root: str, cause: str | None) -> None:
        """Have a user follow a thread; automatically, because of the event `cause`, if one is named.

        Raises M_NOT_FOUND for a thread that they cannot see, M_NOT_IN_THREAD for a cause that is not in it, and
        M_CONFLICTING_UNSUBSCRIPTION where they unsubscribed after it came.
        """
        async with self._database.read() as tx:
            access, thread = await self._thread(tx, user_id, room_id, root)
            arrival = 0 if cause is None else await self._arrival(tx, access, thread, cause)
        change = ThreadSubscription(
            user_id, access.room.number, thread, is_subscribed=True, is_automatic=cause is not None, cause=arrival
        )
        try:
            await self._log.append(Entry([change]))
        except SubscribedAlready:
            return

    async def unsubscribe(self, user_id: UserID, room_id: str, root: str) -> None:
        """Have a user no longer follow a thread; noted even where they did not, against what clients do later."""
        async with self._database.read() as tx:
            access, thread = await self._thread(tx, user_id, room_id, root)
        await self._log.append(Entry([ThreadSubscription(user_id, access.room.number, thread, is_subscribed=False)]))

    async def is_automatic(self, user_id: UserID, room_id: str, root: str) -> bool:
        """Whether a user follows a thread automatically, or by their own will; raises M_NOT_FOUND if not at all."""
        async with self._database.read() as tx:
            access, thread = await self._thread(tx, user_id, room_id, root)
            found = await thread_subscriptions.find(tx, user_id, access.room.number, thread)
        if found is None or not found.is_subscribed:
            raise NotFound("You have not subscribed to this thread")
        return found.is_automatic

    async def _thread(self, tx: Tx, user_id: UserID, room_id: str, root: str) -> tuple[Access, EventID]:
        try:
            access = await self._reader.access(tx, room_id, user_id)
        except Forbidden as error:
            raise NotFound("There is no such thread") from error
        event = (await self._reader.event(tx, access, root)).event
        if not may_be_root(event):
            raise NotFound("There is no such thread")
        return access, event.event_id

    async def _arrival(self, tx: Tx, access: Access, thread: EventID, cause: str) -> int:
        """When the event came that a client subscribes for."""
        try:
            event = (await self._reader.event(tx, access, cause)).event
        except NotFound:
            event = None
        if event is None or thread_of(event.json) != thread:
            raise InvalidInput("The event is not in this thread", "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")
        return event.arrival

    async def changes(self, tx: Tx, user_id: UserID, after: int, upto: int, *, limit: int) -> SubscriptionChanges:
        """What changed after one place in the log and up to another: the newest of it."""
        found = await thread_subscriptions.newest(tx, user_id, after, upto, limit=limit + 1)
        shown = found[:limit]
        told = await _told(tx, shown)
        return SubscriptionChanges(told, page_token(shown[-1].position - 1) if len(found) > limit else None)


async def _told(tx: Tx, changes: Sequence[ThreadSubscription]) -> JsonObject:
    known = await rooms.get_many(tx, {change.room for change in changes}) if changes else {}
    told: JsonObject = {}
    for change in changes:
        entry: JsonObject = {"bump_stamp": change.position}
        if change.is_subscribed:
            entry["automatic"] = change.is_automatic
        part = told.setdefault("subscribed" if change.is_subscribed else "unsubscribed", {})
        part.setdefault(known[change.room].room_id, {})[change.thread] = entry
    return told

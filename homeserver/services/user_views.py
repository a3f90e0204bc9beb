"""What this process keeps in memory of each user who syncs: their rooms, unread counts, and what they were sent.

A view of the tail keeps it exact, so that a sync that finds nothing new asks the database nothing.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from federation.protocol.types import RoomID, UserID
from homeserver.services import unread_counts
from homeserver.services.unread_counts import Unread
from storage import outside_memberships, rooms
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.log_entries import Change
from storage.memberships import Member as Member
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership
from storage.receipts import ReceiptMoved
from storage.room_completeness import RoomCompleteness
from storage.rooms import Room
from storage.tail import Listener, Tail

KEPT_SECONDS = 1800
"""A user who has not synced for so long is forgotten."""
MAX_SENT = 2_000
"""Rooms of which is remembered whose member events a user's devices were sent (lazy loading)."""

LARGE_AT_ONCE = 2

K = TypeVar("K")

RoomsReader = Callable[[Tx, UserID], Awaitable[tuple[dict[int, Member], dict[RoomID, Member]]]]
"""As `outside_memberships.with_rooms`."""


def without_invites(rooms: Mapping[K, Member]) -> dict[K, Member]:
    """Those of these rooms to which the user is not merely invited."""
    return {room: member for room, member in rooms.items() if member.membership is not Membership.INVITE}


def joined_since(members: Mapping[int, Member], rooms: Iterable[int]) -> dict[int, int]:
    """From which version on a user is in those of these rooms in which they are, as far as that is known."""
    return {
        room: member.since
        for room in rooms
        if (member := members.get(room)) is not None
        and member.membership is Membership.JOIN
        and member.since is not None
    }


class UserView:
    """One user, as far as their syncs need it."""

    def __init__(self, user_id: UserID, listener: Listener) -> None:
        self.user_id = user_id
        self.listener = listener
        self.rooms: dict[int, Member] = {}
        """Rooms that the user is in, invited to, or knocks at; and those left while this view exists."""
        self.outside: dict[RoomID, Member] = {}
        """Invites to, and knocks at, rooms without our server, and what became of them; newer state hides them."""
        self.unread: dict[int, Unread] = {}
        self.ready: asyncio.Future[None] | None = None
        self.touched: dict[int, Member] | None = {}
        """Changes that came while the view was being loaded."""
        self.delivered: dict[int, int | None] = {}
        """By device: up to where to-device messages were handed out; None once all that were are deleted."""
        self.presence_from = -1
        """Up to this serial others' presence may have changed before this view was there to be told."""
        self.large_syncs = asyncio.Semaphore(LARGE_AT_ONCE)
        """Taken by syncs that are answered from the database: nobody keeps the server busy with many of them."""
        self._sent: OrderedDict[tuple[int, int], dict[UserID, int]] = OrderedDict()

    def joined(self) -> list[int]:
        """The rooms that the user is joined to."""
        return [room for room, member in self.rooms.items() if member.membership is Membership.JOIN]

    def sent_members(self, device: int, room: int) -> dict[UserID, int]:
        """Whose member events this device was sent, where it loads members lazily, and with which token.

        May be added to.
        """
        key = (device, room)
        found = self._sent.get(key)
        if found is None:
            found = self._sent[key] = {}
            if len(self._sent) > MAX_SENT:
                self._sent.popitem(last=False)
        return found

    def forget_sent(self, device: int, room: int | None = None) -> None:
        """The device begins anew, in one room or everywhere."""
        for key in [key for key in self._sent if key[0] == device and room in (None, key[1])]:
            del self._sent[key]


class UserViews:
    """The views of all users who sync here; itself a view of the tail."""

    def __init__(self, database: Database, tail: Tail) -> None:
        self._database = database
        self._tail = tail
        self._views: dict[UserID, UserView] = {}

    async def get(self, user_id: UserID, read: RoomsReader = outside_memberships.with_rooms) -> UserView:
        """The user's view, loaded if need be: by `read`, which may find out more at the same time."""
        view = self._views.get(user_id)
        if view is None:
            view = await self._load(user_id, read)
        elif view.ready is not None:
            await asyncio.shield(view.ready)
            return await self.get(user_id, read)
        view.listener.used_at = time.monotonic()
        return view

    async def _load(self, user_id: UserID, read: RoomsReader) -> UserView:
        listener = Listener(user_id, self._tail.position)
        view = self._views[user_id] = UserView(user_id, listener)
        view.ready = asyncio.get_running_loop().create_future()
        self._tail.register(listener)
        try:
            async with self._database.read() as tx:
                view_rooms, outside = await read(tx, user_id)
        except BaseException:
            self._drop(view)
            raise
        else:
            touched, view.touched = view.touched or {}, None
            view.rooms = view_rooms
            for room, member in touched.items():
                known = view.rooms.get(room)
                if known is None or known.position < member.position:
                    view.rooms[room] = member
            for room_id, member in outside.items():
                view.outside.setdefault(room_id, member)
            self._tail.enter_all(listener, view.joined())
            # What came while the rooms were not known told nobody: only from here on silence means that nothing came.
            listener.known_from = listener.concerned_at = self._tail.position
            return view
        finally:
            view.ready.set_result(None)
            view.ready = None

    def apply(self, position: int, change: Change) -> None:
        """Keep every view exact."""
        if isinstance(change, RoomEvents):
            self._apply_members(change)
            self._apply_counts(position, change)
        elif isinstance(change, RoomCompleteness):
            for own in change.own:
                self._apply_member(change.room, own.user_id, Member(own.membership, own.event))
        elif isinstance(change, OutsideMembership):
            view = self._views.get(change.user_id)
            if view is not None:
                view.outside[change.room_id] = Member(change.membership, position)
        elif isinstance(change, ReceiptMoved):
            view = self._views.get(change.user_id)
            if view is not None:
                view.unread.pop(change.room, None)

    def _apply_members(self, change: RoomEvents) -> None:
        for entry in change.trunk:
            if entry.type != "m.room.member":
                continue
            member = Member(entry.membership or Membership.LEAVE, entry.event or 0, entry.since)
            user_id = UserID(entry.state_key)
            self._apply_member(change.room.number, user_id, member)
            if user_id in self._views:
                self._views[user_id].outside.pop(change.room.room_id, None)

    def _apply_member(self, room: int, user_id: UserID, member: Member) -> None:
        view = self._views.get(user_id)
        if view is None:
            return
        if view.touched is not None:
            view.touched[room] = member
        else:
            view.rooms[room] = member
        if member.membership is Membership.JOIN:
            self._tail.enter(view.listener, room)
        else:
            self._tail.leave(view.listener, room)
            view.unread.pop(room, None)

    def _apply_counts(self, position: int, change: RoomEvents) -> None:
        room = change.room.number
        for listener in self._tail.listeners_in(room):
            view = self._views.get(listener.user_id)
            if view is not None and not unread_counts.move_along(view.unread, view.user_id, position, change):
                view.unread.pop(room, None)

    async def unread(self, view: UserView, wanted: Sequence[int]) -> dict[int, Unread]:
        """The user's unread counts in these rooms."""
        missing = [room for room in wanted if room not in view.unread]
        if missing:
            async with self._database.read() as tx:
                loaded = await unread_counts.load(tx, view.user_id, missing)
            self.keep_unread(view, loaded)
            return {
                room: view.unread.get(room) or loaded[room] for room in wanted if room in view.unread or room in loaded
            }
        return {room: view.unread[room] for room in wanted}

    def keep_unread(self, view: UserView, loaded: Mapping[int, Unread]) -> None:
        """Keep counts that have just been loaded."""
        # What the tail applies from here on moves these along; what came meanwhile is in them.
        for room, counts in loaded.items():
            if counts.upto >= self._tail.position:
                view.unread.setdefault(room, counts)

    async def rooms_by_number(self, numbers: Sequence[int]) -> dict[int, Room]:
        """Rooms by number, from memory where possible."""
        known = rooms.known_numbers(self._database.memory, numbers)
        if len(known) == len(numbers):
            return known
        async with self._database.read() as tx:
            return await rooms.get_many(tx, numbers)

    def drop_unused(self) -> None:
        """Forget users who have not synced for long."""
        oldest = time.monotonic() - KEPT_SECONDS
        for view in list(self._views.values()):
            if view.ready is None and view.listener.used_at < oldest:
                self._drop(view)

    def _drop(self, view: UserView) -> None:
        self._tail.unregister(view.listener)
        if self._views.get(view.user_id) is view:
            del self._views[view.user_id]

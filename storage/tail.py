"""Following the log: the newest entries in memory, coherent views, and who waits for what.

One `Tail` per process. Entries of this process reach it from the appender without a query. Of those of other processes
the bus brings announcements: with the entries, or with no more than their kinds, which are then read. Announcements
may be lost, come twice or out of order: each says which position it follows, what is missing is read, and a slow poll
is the net. Changes are applied in order of position, each to every view (a cache, the members of rooms, ...), before
anybody who waits is woken.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from federation.protocol.errors import Unavailable
from federation.protocol.types import UserID
from storage.announcements import Announcement, Carrier, parse
from storage.change_index import ChangeIndex, place
from storage.database import Database, Tx, wait_before_retry
from storage.figures import Figures
from storage.log_entries import Batch, Change
from storage.newest import Newest

logger = logging.getLogger(__name__)

WINDOW = 10_000
"""Changes kept in memory."""
WINDOW_BYTES = 64 * 1024 * 1024
"""What those may hold, as far as it is large (`held_bytes`): then fewer are kept."""
POLL_SECONDS = 5.0
"""How often to look for entries whose announcement was lost."""
ANNOUNCED_SECONDS = 0.02
"""How long an announcement may be on its way before it is looked for in the database, which costs more."""
MAX_AWAITED = 1000
"""Announcements kept for one that they follow and that has not come."""
MAX_AWAITED_BYTES = 16 * 1024 * 1024
"""What those may hold together."""

View = Callable[[int, Change], None]


class Listener:
    """What one local user may have to hear about: their rooms, and the newest position that concerned them.

    It exists while the user syncs. `concerned_at` counts from `known_from`: an older token proves nothing.
    """

    __slots__ = ("_waiting", "concerned_at", "known_from", "presence", "rooms", "used_at", "user_id")

    def __init__(self, user_id: UserID, known_from: int) -> None:
        self.user_id = user_id
        self.known_from = known_from
        self.concerned_at = known_from
        self.rooms: set[int] = set()
        self.presence: dict[UserID, int] = {}
        """Whose presence changed for this user to see, with its serial."""
        self.used_at = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Let those who wait look again: an entry came, or something that is not in the log (typing, presence)."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits: one of the user's clients has a sync in progress."""
        return bool(self._waiting)

    async def wait(self, timeout_seconds: float) -> None:
        """Return when something concerns this user, or when the time is up."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        timer = asyncio.get_running_loop().call_later(timeout_seconds, _expire, future)
        try:
            await future
        finally:
            timer.cancel()
            if future in self._waiting:
                self._waiting.remove(future)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Tail:
    """The newest part of the log, and everything in this process that must keep up with it."""

    def __init__(
        self,
        database: Database,
        kinds: Sequence[type[Change]],
        *,
        newest: Newest | None = None,
        carrier: Carrier | None = None,
        patience_seconds: float = 0.0,
    ) -> None:
        """`newest` is what the processes of this machine tell each other, `carrier` reads the entries that
        announcements bring; `patience_seconds` is the bus's."""
        self._database = database
        self._newest = newest or Newest()
        self._kinds = kinds
        self._carrier = carrier
        self._patience_seconds = patience_seconds
        self._announced: dict[int, Announcement] = {}
        """By the position that each follows."""
        self._heard = asyncio.Event()
        self._must_look = True
        self._gap_since: float | None = None
        self._views: list[tuple[View, tuple[type[Change], ...], bool]] = []
        self._views_of: tuple[dict[type[Change], list[View]], dict[type[Change], list[View]]] = ({}, {})
        """Those that are told of a kind of change; and those that are told of it where it is plain."""
        self._window: deque[tuple[int, Change]] = deque()
        self._sizes: deque[int] = deque()
        self._held_bytes = 0
        self._by_room: dict[int, ChangeIndex] = {}
        self._by_user: dict[UserID, ChangeIndex] = {}
        self._listeners: dict[UserID, Listener] = {}
        self._room_listeners: dict[int, set[Listener]] = {}
        self.reading = asyncio.Lock()
        self._moved: list[asyncio.Future[None]] = []
        self._carried = self._read_back = 0
        self._followed_at = time.monotonic()
        self.position = 0
        """The newest position that is applied here."""
        self.floor = 0
        """The window holds every change after this position."""
        self.is_closing = False
        """Whether who waits should stop waiting: the server shuts down."""

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        listeners = self._listeners.values()
        return {
            "log_position": self.position,
            "tail_behind_seconds": self.seconds_unfollowed,
            "tail_changes": len(self._window),
            "tail_bytes": self._held_bytes,
            "tail_changes_carried_total": self._carried,
            "tail_changes_read_total": self._read_back,
            "users_followed": len(listeners),
            "syncs_waiting": sum(listener.is_waited_for for listener in listeners),
        }

    def add_view(self, view: View, *kinds: type[Change], plain: bool = True) -> None:
        """Have `view` called with every change, in order, before anybody is woken by it.

        Where `kinds` are named, with changes of these alone, and unless `plain`, not with those that are (`is_plain`):
        most of what happens is messages, of which few have to keep anything.
        """
        self._views.append((view, kinds, plain))
        for told in self._views_of:
            told.clear()

    async def start(self) -> None:
        """Begin at the log's present end."""
        async with self._database.read() as tx:
            self.position = self.floor = await _head(tx)
        self._followed_at = time.monotonic()

    async def run(self) -> None:
        """Follow other processes' entries until cancelled; goes on when the database was away."""
        attempt = 0
        while True:
            try:
                await self._follow()
                attempt = 0
            except Unavailable:  # logged where it arose
                self._must_look = True
                await self._database.drop_lost()
                await wait_before_retry(attempt)
                attempt += 1

    def hear(self, message: bytes) -> None:
        """What the bus brings of another process's batch."""
        announced = parse(message)
        if announced is None or self._awaits_too_much():
            self._announced.clear()
            self.look()
        elif announced.position > self.position:
            self._announced[announced.before] = announced
            self._heard.set()

    def _awaits_too_much(self) -> bool:
        held = sum(len(each.body) for each in self._announced.values())
        return len(self._announced) >= MAX_AWAITED or held >= MAX_AWAITED_BYTES

    def look(self) -> None:
        """Something may have been missed."""
        self._must_look = True
        self._heard.set()

    async def _follow(self) -> None:
        """Wait for news, and apply it."""
        if not self._must_look:
            try:
                async with asyncio.timeout(POLL_SECONDS if self._gap_since is None else self._patience_seconds):
                    await self._heard.wait()
            except TimeoutError:
                self._must_look = True
        self._heard.clear()
        async with self.reading:
            if not self._must_look:
                await self._take_announced()
            if self._gap_since is not None and time.monotonic() - self._gap_since >= self._patience_seconds:
                self._must_look = True  # it is lost
            if self._must_look:
                self._must_look = False
                expected = list(self._announced)
                await self._read(None)
                for before in expected:  # all that was announced is there now
                    self._announced.pop(before, None)
                self._gap_since = time.monotonic() if self._announced else None
            if self._gap_since is None:
                self._followed_at = time.monotonic()

    @property
    def seconds_unfollowed(self) -> float:
        """How long ago this process last knew of everything that is committed; a few seconds, if all is well."""
        return time.monotonic() - self._followed_at

    async def is_on_standby(self) -> bool:
        """Whether the database takes no writes, as after a failover; raises Unavailable."""
        async with self._database.read() as tx:
            row = await tx.fetch_one("select pg_is_in_recovery() from log_head")
        return row is None or bool(row[0])

    def close(self) -> None:
        """Let everybody who waits go, and nobody wait again."""
        self.is_closing = True
        for listener in self.all_listeners():
            listener.wake()

    # --- applying changes

    async def on_commit(self, batch: Batch) -> None:
        """Take this process's own batch, after what other processes appended before it. The caller holds `reading`."""
        if batch.before > self.position:
            await self._read(batch.before)
        if batch.position > self.position:
            self._apply(batch.changes, batch.position)

    async def catch_up(self, upto: int | None = None) -> bool:
        """Apply what is committed: all of it, or at least to `upto`; whether anything new was, meanwhile."""
        if upto is not None and upto <= self.position:
            return False
        before = self.position
        async with self.reading:
            if upto is not None:
                await self._take_announced()
            if upto is None or upto > self.position:  # else it was announced, or read while this waited
                await self._read(None)
        return self.position > before

    def is_behind(self) -> bool:
        """Whether a process of this machine has told of something that is not applied here."""
        return self._newest.position > self.position

    async def hear_neighbours(self) -> None:
        """Apply what any process of this machine has answered by now."""
        position = self._newest.position
        await self.wait_beyond(position - 1, ANNOUNCED_SECONDS)
        await self.catch_up(position)
        if self.position < position:
            logger.error("the log ends at %d: what followed up to %d is lost", self.position, position)
            self._newest.forget(self.position)

    async def _read(self, upto: int | None) -> None:
        """Apply what is committed, from what was announced as far as that goes: all of it, or at least to `upto`."""
        if upto is None:
            async with self._database.read() as tx:
                upto = await _head(tx)
            self._newest.tell(upto)  # who committed it may have died before
        await self._take_announced()
        if upto > self.position:
            await self._read_back_to(upto, -1)

    async def _take_announced(self) -> None:
        """Apply what was announced up to the first gap."""
        while self._announced:
            announced = self._announced.pop(self.position, None)
            if announced is None:
                break
            changes = self._brought_by(announced)
            if changes is not None:
                self._carried += len(changes)
                self._apply(changes, announced.position)
                continue
            upto, kinds = announced.position, announced.kinds
            while (following := self._announced.get(upto)) is not None and self._brought_by(following) is None:
                del self._announced[upto]
                upto, kinds = following.position, kinds | following.kinds
            await self._read_back_to(upto, kinds)
        if self._announced:
            self._announced = {at: each for at, each in self._announced.items() if each.position > self.position}
        if not self._announced:
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = time.monotonic()

    def _brought_by(self, announced: Announcement) -> Sequence[tuple[int, Change]] | None:
        return None if self._carrier is None else self._carrier.decode(announced.body, self._database.memory)

    async def _read_back_to(self, upto: int, kinds: int) -> None:
        """Apply what the database has of these kinds, which are all there are."""
        changes: list[tuple[int, Change]] = []
        async with self._database.read() as tx:
            for kind in self._kinds:
                if kinds & kind.kind:
                    read = getattr(kind, "read_stale", kind.read_range)
                    changes.extend(await read(tx, self.position, upto))
        changes.sort(key=lambda pair: pair[0])
        self._read_back += len(changes)
        self._apply(changes, upto)

    def _apply(self, changes: Sequence[tuple[int, Change]], position: int) -> None:
        for pair in changes:
            at, change = pair
            is_plain: bool = getattr(change, "is_plain", False)
            views = self._views_of[is_plain].get(type(change))
            if views is None:
                views = self._find_views(type(change), is_plain=is_plain)
            for view in views:
                view(at, change)
            self._remember(pair)
        self.position = position
        if self._listeners:
            self._wake(changes)
        for future in self._moved:
            if not future.done():
                future.set_result(None)
        self._moved.clear()

    def _find_views(self, kind: type[Change], *, is_plain: bool) -> list[View]:
        found = [
            view
            for view, kinds, takes_plain in self._views
            if (not kinds or kind in kinds) and (takes_plain or not is_plain)
        ]
        self._views_of[is_plain][kind] = found
        return found

    def _wake(self, changes: Sequence[tuple[int, Change]]) -> None:
        woken: set[Listener] = set()
        for at, change in changes:
            concerned = [listener for room in change.rooms for listener in self._room_listeners.get(room, ())]
            concerned.extend(self._listeners[user_id] for user_id in change.users if user_id in self._listeners)
            if concerned:
                last = at + change.width - 1
                for listener in concerned:
                    listener.concerned_at = last
                woken.update(concerned)
        for listener in woken:
            listener.wake()

    def _remember(self, pair: tuple[int, Change]) -> None:
        at, change = pair
        size: int = getattr(change, "held_bytes", 0)
        self._window.append(pair)
        self._sizes.append(size)
        self._held_bytes += size
        last = at + change.width - 1
        for room in change.rooms:
            place(self._by_room, room).append(pair, last)
        for user_id in change.users:
            place(self._by_user, user_id).append(pair, last)
        while len(self._window) > WINDOW or self._held_bytes > WINDOW_BYTES:
            oldest, gone = self._window.popleft()
            self._held_bytes -= self._sizes.popleft()
            self.floor = oldest + gone.width - 1
            for room in gone.rooms:
                if self._by_room[room].drop_first():
                    del self._by_room[room]
            for user_id in gone.users:
                if self._by_user[user_id].drop_first():
                    del self._by_user[user_id]

    # --- reading the window

    def in_room(self, room: int, after: int) -> Sequence[tuple[int, Change]]:
        """The window's changes in a room whose last position is above `after`, in order."""
        index = self._by_room.get(room)
        return () if index is None else index.after(after)

    def last_in_room(self, room: int) -> int:
        """The last position of the window's newest change in a room; 0 when there is none."""
        index = self._by_room.get(room)
        return 0 if index is None else index.lasts[-1]

    def for_user(self, user_id: UserID, after: int) -> Sequence[tuple[int, Change]]:
        """The window's changes that name this user, whose last position is above `after`, in order."""
        index = self._by_user.get(user_id)
        return () if index is None else index.after(after)

    def since(self, after: int) -> list[tuple[int, Change]]:
        """All of the window's changes above `after`, oldest first; it costs what it gives."""
        found: list[tuple[int, Change]] = []
        for at, change in reversed(self._window):
            if at + change.width - 1 <= after:
                break
            found.append((at, change))
        found.reverse()
        return found

    async def wait_beyond(self, position: int, timeout_seconds: float) -> bool:
        """Wait until something is applied after `position`; whether it was (for followers)."""
        if self.position > position:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved.append(future)
        timer = asyncio.get_running_loop().call_later(timeout_seconds, _expire, future)
        try:
            await future
        finally:
            timer.cancel()
        return self.position > position

    # --- who listens

    def listener(self, user_id: UserID) -> Listener | None:
        """The user's listener, if one is registered."""
        return self._listeners.get(user_id)

    def register(self, listener: Listener) -> None:
        """Keep `listener` told of what concerns its user."""
        self._listeners[listener.user_id] = listener
        self.enter_all(listener, listener.rooms)

    def unregister(self, listener: Listener) -> None:
        """Forget a listener that nobody uses any longer."""
        self._listeners.pop(listener.user_id, None)
        for room in list(listener.rooms):
            self.leave(listener, room)

    def enter(self, listener: Listener, room: int) -> None:
        """The listener's user is now concerned by what happens in the room."""
        self.enter_all(listener, (room,))

    def enter_all(self, listener: Listener, rooms: Collection[int]) -> None:
        """As `enter`, for many rooms."""
        listener.rooms.update(rooms)
        for room in rooms:
            listeners = self._room_listeners.get(room)
            if listeners is None:
                self._room_listeners[room] = {listener}
            else:
                listeners.add(listener)

    def leave(self, listener: Listener, room: int) -> None:
        """The listener's user is no longer concerned by the room."""
        listener.rooms.discard(room)
        listeners = self._room_listeners.get(room)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._room_listeners[room]

    def listeners_in(self, room: int) -> frozenset[Listener]:
        """The listeners of a room's local members, for what is not in the log (typing)."""
        return frozenset(self._room_listeners.get(room, ()))

    def all_listeners(self) -> list[Listener]:
        """Every registered listener."""
        return list(self._listeners.values())


async def _head(tx: Tx) -> int:
    row = await tx.fetch_one("select position from log_head")
    if row is None:
        raise RuntimeError("log_head is empty: the database was not migrated")
    position: int = row[0]
    return position

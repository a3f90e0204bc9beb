"""What is true only now: who is typing, who is online. In memory; shared with other processes by the bus.

Nothing here is in the log: changes have serial numbers, which make the short-lived part of a sync token. They follow
the clock of the process that is told of a change, and its number goes to the others with the news (`exchange.py`), so
that a token means the same in every process and after a restart, give or take a change told twice.
A process that starts knows of nobody typing, and of nobody online until they act again.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.types import UserID
from storage.database import Tx

MAX_TYPING_MS = 120_000
MAX_TYPING = 50
"""Who type in one room: all of them are told to everybody there whenever one begins or ends."""
MAX_KNOWN = 50_000
"""Users whose presence is known; of more, those of whom nothing was heard for longest are forgotten."""
IDLE_AFTER_MS = 5 * 60_000
"""Without activity for so long, who was online is unavailable."""
OFFLINE_AFTER_MS = 30_000
"""Without a sync in progress for so long, a user is offline."""
CURRENTLY_ACTIVE_MS = 60_000
FARTHEST_MS = 24 * 3600_000
"""How far ahead of this machine's clock a serial number may be."""
TOGETHER_SECONDS = 0.1
"""Changes of presence within so long wake those who see them once."""

PresenceState = Literal["online", "unavailable", "offline"]


def now_ms() -> int:
    """The time as the protocol has it."""
    return int(time.time() * 1000)


def _after(serial: int) -> int:
    """The next serial number."""
    return max(serial + 1, now_ms())


class Typing:
    """Who is typing in which room."""

    def __init__(self, wake: Callable[[int], None]) -> None:
        """`wake` is called with a room whenever somebody there starts or stops."""
        self._wake = wake
        self.observers: list[Callable[[int, UserID, bool], None]] = []
        """Called with who types, each time they say so, and with who no longer does."""
        self._rooms: dict[int, dict[UserID, asyncio.TimerHandle]] = {}
        self._changed: dict[int, int] = {}
        self.serial = 0
        """Grows with every change."""

    def start(self, room: int, user_id: UserID, timeout_ms: int, serial: int = 0) -> None:
        """Somebody types, until they stop or the time is up; not noticed where many others do. `serial` is that of the
        process that was told."""
        timeout_ms = max(1, min(timeout_ms, MAX_TYPING_MS))
        loop = asyncio.get_running_loop()
        users = self._rooms.setdefault(room, {})
        timer = users.get(user_id)
        if timer is None and len(users) >= MAX_TYPING:
            return
        if timer is not None:
            timer.cancel()
        users[user_id] = loop.call_later(timeout_ms / 1000, self._expire, room, user_id)
        for observe in self.observers:
            observe(room, user_id, True)
        if timer is None:
            self._change(room, serial)

    def stop(self, room: int, user_id: UserID, serial: int = 0) -> bool:
        """Somebody no longer types; whether they did, as another process knows that gives its `serial`."""
        users = self._rooms.get(room, {})
        timer = users.pop(user_id, None)
        if timer is None and not serial:
            return False
        if timer is not None:
            timer.cancel()
            if not users:
                del self._rooms[room]
        for observe in self.observers:
            observe(room, user_id, False)
        self._change(room, serial)
        return True

    def _expire(self, room: int, user_id: UserID) -> None:
        # In each process by itself: the same serial, as long as they know of the same changes.
        self.stop(room, user_id, self.serial + 1)

    def users_in(self, room: int) -> list[UserID]:
        """Who types in a room, in the order in which they began."""
        return list(self._rooms.get(room, ()))

    def changed_since(self, room: int, serial: int) -> bool:
        """Whether a client that has seen `serial` has to be told again who types there."""
        return self._changed.get(room, 0) > serial

    def rooms_changed_since(self, rooms: Collection[int], serial: int) -> list[int]:
        """Those rooms of which a client that has seen `serial` has to be told again who types there."""
        if serial >= self.serial:
            return []
        return [room for room in rooms if self._changed.get(room, 0) > serial]

    def lift(self, serial: int) -> None:
        """Another process has told of changes up to here: those from now on come after."""
        if self.serial < serial < now_ms() + FARTHEST_MS:
            self.serial = serial

    def close(self) -> None:
        """Forget everybody, and their timers."""
        for users in self._rooms.values():
            for timer in users.values():
                timer.cancel()
        self._rooms.clear()

    def _change(self, room: int, serial: int = 0) -> None:
        self.serial = self._changed[room] = serial if serial > self.serial else _after(self.serial)
        self._wake(room)


class UserPresence(Struct, frozen=True):
    """What is known of one user's presence."""

    user_id: UserID
    state: PresenceState
    last_active_ts: int
    status_msg: str | None = None

    def is_currently_active(self, now_ts: int) -> bool:
        """Whether the user acted just now, so that the last activity need not be told exactly."""
        return self.state == "online" and now_ts - self.last_active_ts < CURRENTLY_ACTIVE_MS


class PresenceBoard:
    """Who is online, as this server knows."""

    def __init__(self) -> None:
        self._news: dict[UserID, int] = {}
        self._has_news = asyncio.Event()
        self._users: dict[UserID, UserPresence] = {}
        self._changed: dict[UserID, int] = {}
        self._shared: dict[UserID, int] = {}
        """The last activity that all processes know of."""
        self.asked: dict[UserID, PresenceState] = {}
        """What a user's syncs ask for, until the user is offline."""
        self.synced_at: dict[UserID, int] = {}
        """When users last synced, in any process."""
        self.serial = 0
        """Grows with every change that others see."""
        self.told = 0
        """The serial up to which those who see the changes know of them: what a sync token may claim."""

    def find(self, user_id: UserID) -> UserPresence | None:
        """What is known of a user."""
        return self._users.get(user_id)

    def put(self, presence: UserPresence, serial: int = 0) -> bool:
        """Take what is now so; whether others see a change. `serial` is that of the process that was told."""
        before = self._users.pop(presence.user_id, None)
        self._users[presence.user_id] = presence
        if len(self._users) > MAX_KNOWN:
            forgotten = next(iter(self._users))
            del self._users[forgotten]
            self._changed.pop(forgotten, None)
        if before is not None and _looks_alike(before, presence):
            return False
        self.serial = serial if serial > self.serial else _after(self.serial)
        self._changed[presence.user_id] = self.serial
        self._news[presence.user_id] = self.serial
        self._has_news.set()
        return True

    def put_quietly(self, presence: UserPresence) -> None:
        """Take what is no news."""
        self._users[presence.user_id] = presence

    def lift(self, serial: int) -> None:
        """Another process has told of changes up to here: those from now on come after."""
        if self.serial < serial < now_ms() + FARTHEST_MS:
            self.serial = serial

    def share(self, presence: UserPresence) -> bool:
        """Note that all processes know this, or will; whether they did not know about as much."""
        before = self._shared.get(presence.user_id, 0)
        if presence.last_active_ts - before < CURRENTLY_ACTIVE_MS:
            return False
        self._shared[presence.user_id] = presence.last_active_ts
        return True

    async def wait_for_news(self) -> dict[UserID, int]:
        """Whose presence changed since this was last asked, with the serial: those who see them are to be told."""
        await self._has_news.wait()
        await asyncio.sleep(TOGETHER_SECONDS)
        self._has_news.clear()
        news, self._news = self._news, {}
        return news

    def changed_since(self, serial: int, users: Collection[UserID]) -> list[UserPresence]:
        """Those of `users` whose presence changed after `serial`; all who are known when it is 0."""
        if serial >= self.serial:
            return []
        if len(users) > len(self._changed):
            users = set(users)
            changed: Iterable[UserID] = (user_id for user_id in self._changed if user_id in users)
        else:
            changed = (user_id for user_id in users if user_id in self._changed)
        return [self._users[user_id] for user_id in changed if self._changed[user_id] > serial]

    def idle(self, now_ts: int) -> list[UserPresence]:
        """Those who are online and did nothing for long, as they are to be from now on."""
        return [
            replace(presence, state="unavailable")
            for presence in self._users.values()
            if presence.state == "online" and now_ts - presence.last_active_ts > IDLE_AFTER_MS
        ]


def _looks_alike(before: UserPresence, after: UserPresence) -> bool:
    """Whether clients need not hear of it: while a user is currently active, a later activity is no news."""
    return (
        before.state == after.state
        and before.status_msg == after.status_msg
        and (before.state != "online" or after.last_active_ts - before.last_active_ts < CURRENTLY_ACTIVE_MS)
    )


async def load_presence(tx: Tx, user_ids: Collection[UserID]) -> list[UserPresence]:
    """The presence that these users last had."""
    rows = await tx.fetch(
        "select user_id, state, last_active_ts, status_msg from presence where user_id = any(%s)", (list(user_ids),)
    )
    return [UserPresence(UserID(user_id), state, ts, message) for user_id, state, ts, message in rows]


async def store_presence(tx: Tx, presence: UserPresence) -> None:
    """Keep the presence of a local user, so that a restart does not lose their status."""
    await tx.execute(
        "insert into presence (user_id, state, last_active_ts, status_msg) values (%s, %s, %s, %s)"
        " on conflict (user_id) do update set state = excluded.state, last_active_ts = excluded.last_active_ts,"
        "  status_msg = excluded.status_msg",
        (
            presence.user_id,
            presence.state,
            presence.last_active_ts,
            (presence.status_msg or "").replace("\0", "") or None,
        ),
    )

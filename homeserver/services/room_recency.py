"""What sliding sync sorts and filters rooms by, kept in memory of the rooms of who uses it; a view of the tail."""

from collections.abc import Collection, Iterable, Mapping

from federation.rooms.timelines import Timelines
from homeserver.services.sliding_connections import RoomKey
from storage import rooms
from storage.append_events import RoomEvents
from storage.database import Database
from storage.log_entries import Change

MAX_ROOMS = 100_000

CREATE, ENCRYPTION, CHILD = "m.room.create", "m.room.encryption", "m.space.child"


class RoomSummary:
    """One room."""

    __slots__ = ("changes", "children", "is_encrypted", "is_loaded", "last_bump", "last_event", "room_type")

    def __init__(self) -> None:
        self.last_event = 0
        """The position of the newest event that is shown."""
        self.last_bump = 0
        """That of the newest that people sent."""
        self.is_loaded = False
        self.changes = 0
        """How often what is below may have changed."""
        self.is_encrypted: bool | None = None
        """None: it was not looked at."""
        self.room_type: str | bool | None = False
        """False: it was not looked at; None: the room has no type."""
        self.children: frozenset[str] | None = None
        """Of a space, the rooms that it names; None: it was not looked at."""


class RoomSummaries:
    """The rooms that were asked for."""

    def __init__(self, database: Database, timelines: Timelines) -> None:
        self._database = database
        self._timelines = timelines
        self._rooms: dict[int, RoomSummary] = {}

    def apply(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if not isinstance(change, RoomEvents):
            return
        summary = self._rooms.get(change.room.number)
        if summary is None:
            return
        for event in change.visible:
            summary.last_event = max(summary.last_event, event.position)
            if event.type in rooms.BUMPING:
                summary.last_bump = max(summary.last_bump, event.position)
        for entry in change.trunk:
            if entry.type == ENCRYPTION:
                summary.changes += 1
                summary.is_encrypted = None
            elif entry.type == CHILD:
                summary.changes += 1
                summary.children = None
            elif entry.type == CREATE:
                summary.changes += 1
                summary.room_type = False
        if change.redacted:
            summary.changes += 1
            summary.children = None

    async def load(self, numbers: Iterable[int]) -> dict[int, RoomSummary]:
        """These rooms, with their newest events."""
        known = self._rooms
        found = {number: known.get(number) or self._of(number) for number in numbers}
        missing = [number for number, summary in found.items() if not summary.is_loaded]
        if missing:
            async with self._database.read() as tx:
                newest = await rooms.newest_events(tx, missing)
            for number, (last_event, last_bump) in newest.items():
                summary = found[number]
                summary.last_event = max(summary.last_event, last_event)
                summary.last_bump = max(summary.last_bump, last_bump)
                summary.is_loaded = True
        return found

    def _of(self, number: int) -> RoomSummary:
        summary = self._rooms.get(number)
        if summary is None:
            if len(self._rooms) >= MAX_ROOMS:
                self._rooms.clear()
            summary = self._rooms[number] = RoomSummary()
        return summary

    async def load_encryption(self, found: Mapping[int, RoomSummary]) -> dict[RoomKey, bool]:
        """Which of these rooms are encrypted."""
        known: dict[RoomKey, bool] = {
            room: summary.is_encrypted for room, summary in found.items() if summary.is_encrypted is not None
        }
        missing = {room: found[room].changes for room in found if room not in known}
        if missing:
            async with self._database.read() as tx:
                encrypted = await self._timelines.which_have(tx, list(missing), (ENCRYPTION, ""))
            for room, changes in missing.items():
                known[room] = room in encrypted
                if found[room].changes == changes:  # else what was read may be older than the change
                    found[room].is_encrypted = known[room]
        return known

    async def load_types(self, found: Mapping[int, RoomSummary]) -> dict[RoomKey, str | None]:
        """The types of these rooms."""
        known: dict[RoomKey, str | None] = {
            room: summary.room_type for room, summary in found.items() if not isinstance(summary.room_type, bool)
        }
        missing = {room: found[room].changes for room in found if room not in known}
        if missing:
            async with self._database.read() as tx:
                created = await self._timelines.current_of_many(tx, list(missing), [(CREATE, "")])
            for room, changes in missing.items():
                value = created[room][0].content.get("type") if created[room] else None
                known[room] = value if isinstance(value, str) else None
                if found[room].changes == changes:
                    found[room].room_type = known[room]
        return known

    async def load_children(self, spaces: Collection[int]) -> frozenset[str]:
        """The rooms that these spaces name."""
        found = {number: self._of(number) for number in spaces}
        missing = {room: found[room].changes for room in found if found[room].children is None}
        children = [summary.children for summary in found.values() if summary.children is not None]
        if missing:
            async with self._database.read() as tx:
                named = await self._timelines.current_of_type(tx, list(missing), CHILD)
            for room, changes in missing.items():
                of_space = frozenset(
                    event.state_key or ""
                    for event in named.get(room, ())
                    if _is_child(event.redacted_by, event.content)
                )
                children.append(of_space)
                if found[room].changes == changes:
                    found[room].children = of_space
        return frozenset().union(*children)


def _is_child(redacted_by: int | None, content: dict[str, object]) -> bool:
    return redacted_by is None and isinstance(content.get("via"), list)

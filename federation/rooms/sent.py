"""What a writer asks of events that were sent before: transactions, relations ("Transaction identifiers")."""

from collections.abc import Collection

from msgspec import Struct

from federation.protocol.relations import related_event
from federation.protocol.types import EventID, JsonObject, UserID
from federation.rooms.append import PROTECTED_TYPES
from federation.rooms.reader import BEGINNING as BEGINNING
from storage import events, related_events, relations, strings
from storage.database import Database
from storage.related_events import Redactable
from storage.rooms import Room

AT_ONCE = 50
"""Events that are redacted by one entry of the log."""


class Annotation(Struct, frozen=True):
    """An annotation that somebody wants to send ("Event annotations and reactions")."""

    sender: UserID
    type: str
    parent: EventID
    key: str | None


class SentEvents:
    """Looks up events that were sent before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def scope_without_device(self, user_id: UserID) -> int | None:
        """What stands for the device of a user who has none: application services act so. None before any event."""
        number = strings.known(self._database.memory, user_id)
        if number is None:
            async with self._database.read() as tx:
                number = (await strings.find(tx, [user_id])).get(user_id)
        return None if number is None else -number

    async def find_transaction(self, room: Room, device: int, txn_id: str, event_type: str) -> EventID | None:
        """The event that the device made with this transaction ID, if it made one."""
        async with self._database.read() as tx:
            numbers = await strings.find(tx, [event_type])
            if event_type not in numbers:
                return None
            return await events.find_transaction(tx, device, txn_id, room.number, numbers[event_type])

    async def is_child(self, room: Room, event_id: EventID) -> bool:
        """Whether this event of the room itself relates to another by a `rel_type`."""
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [event_id])).get(event_id)
        if stored is None or stored.room != room.number:
            return False
        content: JsonObject = stored.content
        return related_event(content) is not None

    async def redactable(
        self, room: Room, parent: EventID, rel_types: Collection[str] | None, *, sender: UserID | None, after: int
    ) -> list[tuple[EventID, int]]:
        """Some of what relates to an event in these ways, in any if None, after a place: those that `sender` sent, or
        all, which may be redacted, with their places.
        """
        async with self._database.read() as tx:
            number = None if sender is None else (await strings.find(tx, [sender])).get(sender, 0)
            wanted = Redactable(
                room=room.number, parent=parent, types=rel_types, sender=number, not_types=PROTECTED_TYPES
            )
            return await related_events.redactable(tx, wanted, after=after, limit=AT_ONCE)

    async def is_by(self, room: Room, event_id: str, user_id: UserID) -> bool:
        """Whether the user has sent this event of the room."""
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [event_id])).get(EventID(event_id))
        return stored is not None and stored.room == room.number and stored.sender == user_id

    async def is_redacted(self, room: Room, event_id: EventID) -> bool:
        """Whether this event of the room was redacted."""
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [event_id])).get(event_id)
        return stored is not None and stored.room == room.number and stored.redacted_by is not None

    async def has_annotated(self, room: Room, annotation: Annotation) -> bool:
        """Whether the sender has made the same annotation before, and it still stands."""
        async with self._database.read() as tx:
            numbers = await strings.find(tx, [annotation.type, annotation.sender])
            if len(numbers) < 2:
                return False
            return await relations.has_annotated(
                tx,
                room.number,
                relations.AnnotationKey(
                    sender=numbers[annotation.sender],
                    type=numbers[annotation.type],
                    parent=annotation.parent,
                    key=annotation.key,
                ),
            )

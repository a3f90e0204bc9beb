"""Events that may have notified a user, in all of their rooms, newest first ("Listing Notifications").

Nothing is stored of who was notified of what: these are the events that were there for the user to be notified of.
"""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.types import UserID
from federation.rooms import notices
from federation.rooms.notices import RoomFacts
from federation.rooms.reader import RoomReader, Seen
from storage import event_pages, memberships, rooms
from storage.database import Tx
from storage.events import UNSEEN, Flag, StoredEvent
from storage.memberships import Membership
from storage.rooms import Room


class Candidate(Struct, frozen=True):
    """An event that the user sees, as a member or because it invites them."""

    seen: Seen
    room: Room
    facts: RoomFacts


class Candidates(Struct, frozen=True):
    """Some of them."""

    found: Sequence[Candidate]
    before: int | None
    """Where to go on; None where there are no more."""


async def read(tx: Tx, reader: RoomReader, user_id: UserID, before: int, limit: int) -> Candidates:
    """Those among the next events below a position, of which so many are looked at."""
    own = await memberships.rooms_of(tx, user_id, (Membership.JOIN, Membership.INVITE))
    stored = await event_pages.newest_in(tx, own, before, limit)
    known = await rooms.get_many(tx, {event.room for event in stored})
    by_room: dict[Room, list[StoredEvent]] = {}
    for event in stored:
        is_news = not event.flags & (UNSEEN | Flag.HISTORY) and event.redacted_by is None and event.is_readable
        if is_news and event.sender != user_id:
            by_room.setdefault(known[event.room], []).append(event)
    facts = await notices.facts_of(tx, [room.number for room in by_room]) if by_room else {}
    visible = await reader.visible_in(tx, user_id, by_room) if by_room else {}
    found = [
        Candidate(seen, room, facts.get(room.number, RoomFacts(0)))
        for room in by_room
        for seen in visible[room.number]
        if seen.membership == "join" or _invites(seen.event, user_id)
    ]
    found.sort(key=lambda candidate: -candidate.seen.event.position)
    return Candidates(found, stored[-1].position if len(stored) == limit else None)


def _invites(event: StoredEvent, user_id: UserID) -> bool:
    return event.type == "m.room.member" and event.state_key == user_id and event.content.get("membership") == "invite"

"""Who names a room that has no name (Client-Server API, "Calculating the display name for a room")."""

from collections.abc import Sequence

from federation.protocol.types import UserID
from storage import events, room_state
from storage.database import Tx
from storage.events import StoredEvent
from storage.memberships import Membership


async def heroes_of_many(tx: Tx, numbers: Sequence[int], user_id: UserID) -> dict[int, list[UserID]]:
    """Who names each room that has no name of its own: five members besides the reader, else five who left."""
    names = await room_state.current_of_many(tx, numbers, keys=(("m.room.name", ""), ("m.room.canonical_alias", "")))
    held = await events.by_positions(tx, {event for of_room in names.values() for event in of_room.values()})
    named = {event.room for event in held.values() if _is_name(event)}
    nameless = [room for room in numbers if room not in named]
    if not nameless:
        return {}
    present = (Membership.JOIN, Membership.INVITE)
    heroes = await room_state.first_members(tx, nameless, present, besides=user_id, limit=5)
    alone = [room for room in nameless if not heroes[room]]
    if alone:
        gone = (Membership.LEAVE, Membership.BAN)
        heroes |= await room_state.first_members(tx, alone, gone, besides=user_id, limit=5)
    return heroes


async def hero_events(tx: Tx, nameless: Sequence[int], user_id: UserID) -> dict[int, list[StoredEvent]]:
    """The member events of who names each of these rooms, which have no name."""
    present = (Membership.JOIN, Membership.INVITE)
    found = await room_state.first_member_events(tx, nameless, present, besides=user_id, limit=5)
    alone = [room for room in nameless if not found[room]]
    if alone:
        gone = (Membership.LEAVE, Membership.BAN)
        found |= await room_state.first_member_events(tx, alone, gone, besides=user_id, limit=5)
    held = await events.by_positions(tx, [position for of_room in found.values() for position in of_room])
    return {room: [held[position] for position in of_room if position in held] for room, of_room in found.items()}


def _is_name(event: StoredEvent) -> bool:
    """Whether an event names a room: one that is empty, or redacted, does not."""
    name = event.content.get("name" if event.type == "m.room.name" else "alias")
    return event.redacted_by is None and isinstance(name, str) and bool(name)

"""What push gateways are told of events, and what push rules ask of a room (Push Gateway API; "Conditions").

Who may be told of an event was decided before; this reads what stands in the room now.
"""

from collections.abc import Collection, Mapping

import orjson
from msgspec import Struct, field

from federation.protocol.errors import InvalidEvent
from federation.protocol.event_format import from_stored
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID
from federation.rooms.summaries import content_of
from storage import events, outside_memberships, room_state, rooms
from storage.database import Tx
from storage.events import UNSEEN, StoredEvent
from storage.outside_memberships import OutsideMembership
from storage.rooms import Room

_NAME: StateKey = ("m.room.name", "")
_ALIAS: StateKey = ("m.room.canonical_alias", "")
_LEVELS: StateKey = ("m.room.power_levels", "")
_CREATE: StateKey = ("m.room.create", "")
FACTS: tuple[StateKey, ...] = (_NAME, _ALIAS, _LEVELS, _CREATE)
MAX_TEXT = 1000
"""Of a name that a member chose, so much goes to gateways."""


class RoomFacts(Struct, frozen=True):
    """What push rules, and gateways, want to know of a room."""

    member_count: int
    name: str | None = None
    alias: str | None = None
    levels: PowerLevels | None = None

    def may_notify(self, sender: UserID, key: str) -> bool:
        """Whether somebody's power level suffices for notifications of a kind, such as `room`."""
        return self.levels is not None and self.levels.of_user(sender) >= self.levels.notification(key)


class Notice(Struct, frozen=True, kw_only=True):
    """An event as a gateway is told of it."""

    event_id: EventID
    room_id: RoomID
    type: str
    sender: UserID
    state_key: str | None = None
    content: JsonObject = field(default_factory=dict)
    sender_display_name: str | None = None
    room_name: str | None = None
    room_alias: str | None = None
    is_whole: bool = True
    """Whether all but the first four is here, too."""


async def facts_of(tx: Tx, numbers: Collection[int]) -> dict[int, RoomFacts]:
    """What stands in these rooms now: a fixed number of queries."""
    states = await room_state.current_of_many(tx, numbers, FACTS)
    stored = await events.by_positions(tx, {position for state in states.values() for position in state.values()})
    known = await rooms.get_many(tx, numbers)
    rows = await rooms.rows(tx, numbers)
    found: dict[int, RoomFacts] = {}
    for number, state in states.items():
        if number not in rows:
            continue
        held = {key: stored[position] for key, position in state.items() if position in stored}
        found[number] = RoomFacts(
            rows[number].joined_members,
            _text(held.get(_NAME), known[number], "name"),
            _text(held.get(_ALIAS), known[number], "alias"),
            _levels(held, known[number]),
        )
    return found


def _text(event: StoredEvent | None, room: Room, name: str) -> str | None:
    value = None if event is None or not event.is_readable else content_of(event, room).get(name)
    return value[:MAX_TEXT] if isinstance(value, str) and value else None


def _levels(held: Mapping[StateKey, StoredEvent], room: Room) -> PowerLevels | None:
    try:
        pdus = {
            key: from_stored(held[key].canonical, held[key].event_id, room.room_id, room.rules)
            for key in (_LEVELS, _CREATE)
            if key in held
        }
    except InvalidEvent:
        return None
    return PowerLevels.from_state(pdus.get(_LEVELS), pdus[_CREATE]) if _CREATE in pdus else None


async def notices_of(tx: Tx, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], Notice]:
    """The events at these places, each a room and a position, without those that are redacted, or not shown."""
    stored = {
        position: event
        for position, event in (await events.by_positions(tx, {position for _, position in wanted})).items()
        if not event.flags & UNSEEN and event.redacted_by is None and event.is_readable
    }
    numbers = {event.room for event in stored.values()}
    known, facts = await rooms.get_many(tx, numbers), await facts_of(tx, numbers)
    keys: list[StateKey] = [("m.room.member", sender) for sender in {event.sender for event in stored.values()}]
    members = await room_state.current_of_many(tx, numbers, keys)
    held = await events.by_positions(tx, {position for state in members.values() for position in state.values()})
    found: dict[tuple[int, int], Notice] = {}
    for event in stored.values():
        room, of_room = known[event.room], facts.get(event.room, RoomFacts(0))
        member = held.get(members[event.room].get(("m.room.member", event.sender), 0))
        found[event.room, event.position] = Notice(
            event_id=event.event_id,
            room_id=room.room_id,
            type=event.type,
            sender=event.sender,
            state_key=event.state_key,
            content=event.content,
            sender_display_name=_text(member, room, "displayname"),
            room_name=of_room.name,
            room_alias=of_room.alias,
        )
    return found


async def notice_of(tx: Tx, room: int, position: int) -> Notice | None:
    """The event of a room at this position; None for one that is redacted, or not shown."""
    return (await notices_of(tx, [(room, position)])).get((room, position))


async def notices_from_outside(tx: Tx, positions: Collection[int]) -> dict[int, Notice]:
    """The invites at these places in the log, to rooms that this server is not in, without those that no longer
    count."""
    found = await outside_memberships.at_positions(tx, positions)
    return {invite.position: _outside_notice(invite) for invite in found}


async def notice_from_outside(tx: Tx, position: int) -> Notice | None:
    """As `notices_from_outside`, for one."""
    return (await notices_from_outside(tx, [position])).get(position)


def _outside_notice(invite: OutsideMembership) -> Notice:
    event, told = orjson.loads(invite.json), orjson.loads(invite.stripped_state)
    state: dict[object, JsonObject] = {
        (each.get("type"), each.get("state_key")): each["content"]
        for each in told
        if isinstance(each, dict) and isinstance(each.get("content"), dict)
    }
    sender = event["sender"]
    return Notice(
        event_id=invite.event_id,
        room_id=invite.room_id,
        type=event["type"],
        sender=UserID(sender),
        state_key=event.get("state_key"),
        content=event["content"],
        sender_display_name=_member(state, ("m.room.member", sender), "displayname"),
        room_name=_member(state, _NAME, "name"),
        room_alias=_member(state, _ALIAS, "alias"),
    )


def _member(state: Mapping[object, JsonObject], key: StateKey, name: str) -> str | None:
    value = state.get(key, {}).get(name)
    return value[:MAX_TEXT] if isinstance(value, str) and value else None

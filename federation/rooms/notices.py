"""What push gateways are told of events, and what push rules ask of a room (Push Gateway API; "Conditions").

Who may be told of an event was decided before; this reads what stands in the room now.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import orjson

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


@dataclass(frozen=True, slots=True)
class RoomFacts:
    """What push rules, and gateways, want to know of a room."""

    member_count: int
    name: str | None = None
    alias: str | None = None
    levels: PowerLevels | None = None

    def may_notify(self, sender: UserID, key: str) -> bool:
        """Whether somebody's power level suffices for notifications of a kind, such as `room`."""
        return self.levels is not None and self.levels.of_user(sender) >= self.levels.notification(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
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


async def notice_of(tx: Tx, room: int, position: int) -> Notice | None:
    """The event of a room at this position; None for one that is redacted, or not shown."""
    event = (await events.by_position(tx, room, [position])).get(position)
    if event is None or event.flags & UNSEEN or event.redacted_by is not None or not event.is_readable:
        return None
    known = (await rooms.get_many(tx, [room]))[room]
    facts = (await facts_of(tx, [room])).get(room, RoomFacts(0))
    key: StateKey = ("m.room.member", event.sender)
    member = (await room_state.current_events(tx, room, [key])).get(key)
    return Notice(
        event_id=event.event_id,
        room_id=known.room_id,
        type=event.type,
        sender=event.sender,
        state_key=event.state_key,
        content=event.content,
        sender_display_name=_text(member, known, "displayname"),
        room_name=facts.name,
        room_alias=facts.alias,
    )


async def notice_from_outside(tx: Tx, position: int) -> Notice | None:
    """The invite at this place in the log, to a room that this server is not in; None once it no longer counts."""
    found = await outside_memberships.at_positions(tx, [position])
    return _outside_notice(found[0]) if found else None


def _outside_notice(invite: OutsideMembership) -> Notice | None:
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

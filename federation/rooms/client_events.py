"""What clients see of a stored event (Client-Server API, "Room event format", "Redactions").

The form is encoded once up to the inside of `unsigned`; what differs from reader to reader (age, their membership,
their transaction ID) is put behind it, so that delivering an event to many readers costs little more than copying.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import orjson

from federation.protocol.redaction import redact
from federation.protocol.types import JsonObject, StateKey
from storage import events, room_state, rooms, strings
from storage.append_events import RoomEvents
from storage.database import Tx
from storage.events import StoredEvent
from storage.log_entries import Change
from storage.rooms import Room
from storage.tail import Tail

_MEMBERSHIPS = {name: f',"membership":"{name}"'.encode() for name in ("join", "invite", "knock", "leave", "ban")}


async def prepare(tx: Tx, stored: Collection[StoredEvent], *, is_state: bool = False) -> None:
    """Encode those events that have no client form yet: at most four queries, however many there are.

    State that stands outside a timeline (`is_state`) does not say what it replaced.
    """
    fresh = [event for event in stored if event.client is None]
    if not fresh:
        return
    known = await rooms.get_many(tx, {event.room for event in fresh})
    with_state_key = [] if is_state else [event for event in fresh if event.state_key is not None]
    replaced = await _replaced_by(tx, with_state_key)
    redactions = (
        await events.by_positions(tx, {event.redacted_by for event in fresh if event.redacted_by is not None})
        if any(event.redacted_by is not None for event in fresh)
        else {}
    )
    for event in fresh:
        room = known[event.room]
        redaction = None if event.redacted_by is None else redactions.get(event.redacted_by)
        _encode(event, room, replaced.get(event.position), redaction)


def encode_plain(event: StoredEvent, room: Room) -> None:
    """Encode an event for which `is_plain`: needs no query."""
    if event.client is None:
        _encode(event, room, None, None)


def is_plain(event: StoredEvent, *, is_state: bool = False) -> bool:
    """Whether `encode_plain` is all that the event needs, in a timeline or as state that stands outside one."""
    return event.redacted_by is None and (is_state or event.state_key is None)


def finish(event: StoredEvent, *, membership: str | None, device: int | None, relations: bytes | None = None) -> bytes:
    """The whole client event for one reader, with what relates to it; `prepare` must have seen it."""
    if not event.client:
        raise ValueError("the event was not prepared, or cannot be read")
    age = b'"age":%d' % max(time.time_ns() // 1_000_000 - event.json["origin_server_ts"], 0)
    own = b""
    if event.txn_id is not None and device is not None and event.device == device:
        own = b',"transaction_id":' + orjson.dumps(event.txn_id)
    bundle = b"" if relations is None else b',"m.relations":' + relations
    return b"".join((event.client, age, _MEMBERSHIPS.get(membership or "", b""), own, bundle, b"}}"))


def finish_state(stored: Sequence[StoredEvent], *, device: int | None) -> list[bytes]:
    """The client events of state that stands outside a timeline, for one reader, without those that have none;
    `prepare` must have seen them."""
    now = time.time_ns() // 1_000_000
    return [
        b'%b"age":%d}}' % (event.client, max(now - event.json["origin_server_ts"], 0))
        if event.txn_id is None
        else finish(event, membership=None, device=device)
        for event in stored
        if event.client
    ]


def is_presentable(event: StoredEvent) -> bool:
    """Whether a prepared event has a client form: what was put into the database by somebody else may have none."""
    return bool(event.client)


def stripped(event: StoredEvent, room: Room) -> JsonObject:
    """Stripped state, as in invites ("Stripped state")."""
    json = redact(event.json, room.rules) if event.redacted_by is not None else event.json
    return {key: json[key] for key in ("content", "sender", "state_key", "type") if key in json}


def as_sent(event: StoredEvent, room: Room) -> JsonObject:
    """The event as servers exchange it, for clients that ask for that ("Filtering", `event_format`)."""
    return redact(event.json, room.rules) if event.redacted_by is not None else event.json


def forget_redacted(tail: Tail) -> Callable[[int, Change], None]:
    """A view of the tail: what the window holds of an event changes with its redaction."""

    def apply(_position: int, change: Change) -> None:
        if not isinstance(change, RoomEvents) or not change.redacted:
            return
        targets = dict(change.redacted)
        later: set[tuple[str, str | None]] = set()
        for _, earlier in tail.in_room(change.room.number, tail.floor):
            for event in earlier.stored if isinstance(earlier, RoomEvents) else ():
                key = (event.type, event.state_key)
                if event.event_id in targets:
                    event.redacted_by = targets[event.event_id]
                    event.client = None
                    later.add(key)
                elif event.state_key is not None and key in later:
                    event.client = None  # it may quote what it replaced

    return apply


def _encode(event: StoredEvent, room: Room, replaced: StoredEvent | None, redaction: StoredEvent | None) -> None:
    try:
        event.client = _encoded(event, room, replaced, redaction) if event.is_readable else b""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        event.client = b""  # malformed, or nested so deeply that it cannot be written


def _encoded(event: StoredEvent, room: Room, replaced: StoredEvent | None, redaction: StoredEvent | None) -> bytes:
    form = _form(event, room, is_redacted=event.redacted_by is not None)
    unsigned: JsonObject = {}
    if redaction is not None:
        unsigned["redacted_because"] = _form(redaction, room, is_redacted=False)
    elif replaced is not None:
        unsigned["prev_content"] = _content(replaced, room)
        unsigned["replaces_state"] = replaced.event_id
        unsigned["prev_sender"] = replaced.sender
    head = orjson.dumps(form)[:-1] + b',"unsigned":{'
    return head + (orjson.dumps(unsigned)[1:-1] + b"," if unsigned else b"")


def _form(event: StoredEvent, room: Room, *, is_redacted: bool) -> JsonObject:
    json = redact(event.json, room.rules) if is_redacted else event.json
    form: JsonObject = {
        "content": json["content"],
        "event_id": event.event_id,
        "origin_server_ts": json["origin_server_ts"],
        "room_id": room.room_id,
        "sender": json["sender"],
        "type": json["type"],
    }
    if "state_key" in json:
        form["state_key"] = json["state_key"]
    if json["type"] == "m.room.redaction" and not is_redacted:
        redacts = json["content"].get("redacts") if room.rules.updated_redaction else json.get("redacts")
        if isinstance(redacts, str):
            form["redacts"] = redacts  # for clients of either age, at both places
            form["content"] = {**json["content"], "redacts": redacts}
    return form


def _content(event: StoredEvent, room: Room) -> JsonObject:
    json = redact(event.json, room.rules) if event.redacted_by is not None else event.json
    content: JsonObject = json["content"]
    return content


async def _replaced_by(tx: Tx, state: Sequence[StoredEvent]) -> Mapping[int, StoredEvent]:
    """For each state event the one that stood before it under its key, by the later one's position."""
    if not state:
        return {}
    positions = await _positions_before(tx, [event for event in state if event.line == room_state.TRUNK])
    forked: dict[int, list[tuple[StoredEvent, StateKey]]] = {}
    for event in state:
        if event.line != room_state.TRUNK and event.state_key is not None:
            forked.setdefault(event.room, []).append((event, (event.type, event.state_key)))
    for room, pairs in forked.items():
        states = await room_state.at(
            tx, room, {(event.line, event.version) for event, _ in pairs}, {key for _, key in pairs}
        )
        for event, key in pairs:
            found = states[event.line, event.version].get(key)
            if found is not None:
                positions[event.position] = found
    loaded = await events.by_positions(tx, positions.values()) if positions else {}
    return {position: loaded[before] for position, before in positions.items() if before in loaded}


async def _positions_before(tx: Tx, state: Sequence[StoredEvent]) -> dict[int, int]:
    if not state:
        return {}
    numbers = await strings.find(tx, {text for event in state for text in (event.type, event.state_key or "")})
    asked = [event for event in state if event.version > 0 and event.type in numbers and event.state_key in numbers]
    rows = await tx.fetch(
        "select given.position, found.event from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[])"
        "  as given(position, room, type, state_key, version), lateral ("
        "  select event, until_version from room_state where room_state.room = given.room and line = 0"
        "  and room_state.type = given.type and room_state.state_key = given.state_key"
        "  and since_version <= given.version order by since_version desc limit 1) as found"
        " where found.event is not null and (found.until_version is null or found.until_version > given.version)",
        (
            [event.position for event in asked],
            [event.room for event in asked],
            [numbers[event.type] for event in asked],
            [numbers[event.state_key or ""] for event in asked],
            [event.version for event in asked],
        ),
    )
    return {position: event for position, event in rows}

"""Changes of the log as bytes, for other processes: they need not read what the bus brings (`announcements.py`).

What is decoded equals what `read_range` of its kind gives. What is rare or large does not travel, nor does a batch
that it is in. The form is JSON, a line with everything but the long texts, and then those.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from federation.protocol.errors import MatrixError
from federation.protocol.types import DeviceID, EventID, RoomID, ServerName, UserID
from storage import rooms
from storage.account_data import AccountDataChanged
from storage.append_events import AtEnd, RoomEvents, concerned_by
from storage.database import Memory
from storage.device_lists import DeviceListChanged
from storage.events import Flag, StoredEvent, TrunkChange
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change
from storage.memberships import Membership
from storage.outbox import EventRelayed, OutgoingMessage, OutgoingMessages
from storage.receipts import ReceiptMoved
from storage.send_to_device import KEPT_BYTES, ToDeviceMessage, ToDeviceMessages
from storage.unread import PersonalCount

logger = logging.getLogger(__name__)

FORM = 2
"""To be raised with every change of what is written here: processes of two releases may run beside each other."""

MAX_TRUNK = 100
"""More changes of a room's state are read from the database, such as those of a join to a large room."""

_NO_NEWS = int(Flag.OUTLIER | Flag.HISTORY)

Fields = list[Any]
Item = tuple[int, Fields, Sequence[bytes]]
"""Position, what goes into the line, long texts."""


class _StaysError(Exception):
    """A change that does not travel."""


def encode(changes: Sequence[tuple[int, Change]], limit: int) -> bytes:
    """These changes, or nothing where they do not travel, or not in so many bytes."""
    line: list[Any] = [FORM]
    texts: list[bytes] = []
    size = 0
    try:
        for position, change in changes:
            for at, fields, long in _WRITERS[type(change)](position, change):
                size += sum(map(len, long)) + 20
                if size > limit:
                    return b""
                line.append([change.kind, at, [len(text) for text in long], *fields])
                texts.extend(long)
    except (KeyError, _StaysError):
        return b""
    body = b"".join((orjson.dumps(line), b"\n", *texts))
    return body if len(body) <= limit else b""


def decode(body: bytes, memory: Memory) -> list[tuple[int, Change]] | None:
    """Changes with their positions; None where there are none to be had."""
    if not body:
        return None
    try:
        return _decode(body, memory)
    except (ValueError, LookupError, TypeError, AttributeError, MatrixError) as error:
        logger.warning("what the bus carried cannot be read, and is read from the database: %r", error)
        return None


def _decode(body: bytes, memory: Memory) -> list[tuple[int, Change]] | None:
    at = body.index(b"\n") + 1
    line = orjson.loads(body[:at])
    if line[0] != FORM:
        return None
    changes: list[tuple[int, Change]] = []
    for kind, position, lengths, *fields in line[1:]:
        texts = []
        for length in lengths:
            texts.append(body[at : at + length])
            at += length
        changes.append((position, _READERS[kind](position, fields, texts, memory)))
    return changes


# --- one pair a kind


def _write_event(_position: int, change: RoomEvents) -> Iterator[Item]:
    if change.follows_gap or change.redacted or change.ahead or len(change.trunk) > MAX_TRUNK:
        raise _StaysError
    room = change.room
    trunk = sorted(change.trunk, key=lambda entry: entry.since) if change.trunk else []
    for new, event in zip(change.new, change.stored, strict=True):
        if event.flags & _NO_NEWS:
            continue
        if event.is_a("m.room.redaction"):
            raise _StaysError
        told = [entry for entry in trunk if entry.since <= event.trunk_version]
        del trunk[: len(told)]
        personal = [each for at, each in change.personal if at == event.position]
        stands_so = new.is_local and not room.rules.references_carry_hashes
        fields = [
            [room.number, room.room_id, room.rules.version],
            event.event_id,
            event.flags,
            [event.line, event.version, event.trunk_version, event.after_line, event.after_version],
            [event.notify_total, event.highlight_total],
            event.redacted_by,
            event.thread,
            event.device,
            event.txn_id,
            [event.other_place, event.other_arrival],
            [[entry.type, entry.state_key, entry.event, entry.since, entry.membership] for entry in told],
            [[each.user_id, each.notify, each.highlight] for each in personal],
            concerned_by(event, told),
            [new.pdu.depth, *new.pdu.prev_event_ids] if stands_so else None,
        ]
        yield event.position, fields, (event.canonical,)


def _read_event(position: int, fields: Fields, texts: Sequence[bytes], memory: Memory) -> RoomEvents:
    room, event_id, flags, versions, totals, redacted_by, thread, device, txn_id, *more = fields
    others, trunk, personal, concerned, at_end = more
    line, version, trunk_version, after_line, after_version = versions
    stored = StoredEvent(
        position=position,
        room=room[0],
        event_id=EventID(event_id),
        flags=flags,
        line=line,
        version=version,
        trunk_version=trunk_version,
        after_line=after_line,
        after_version=after_version,
        notify_total=totals[0],
        highlight_total=totals[1],
        redacted_by=redacted_by,
        thread=thread,
        device=device,
        txn_id=txn_id,
        canonical=texts[0],
        other_place=others[0],
        other_arrival=others[1],
    )
    changed = trunk and [
        TrunkChange(
            type=type_,
            state_key=state_key,
            event=event,
            since=since,
            membership=None if membership is None else Membership(membership),
        )
        for type_, state_key, event, since, membership in trunk
    ]
    counts = personal and [
        (position, PersonalCount(user_id=UserID(user_id), notify=notify, highlight=highlight))
        for user_id, notify, highlight in personal
    ]
    known = rooms.remember(memory, room[0], RoomID(room[1]), room[2])
    change = RoomEvents.from_stored(known, stored, trunk=changed, personal=counts, concerned=tuple(concerned))
    if at_end is not None:
        change.at_end = AtEnd(at_end[0], at_end[1:])
    return change


def _write_receipt(position: int, change: ReceiptMoved) -> Iterator[Item]:
    fields = [
        change.room,
        change.user_id,
        change.receipt_type,
        change.thread,
        change.event_id,
        change.event,
        change.ts,
    ]
    yield position, fields, ()


def _read_receipt(_position: int, fields: Fields, _texts: Sequence[bytes], _memory: Memory) -> ReceiptMoved:
    return ReceiptMoved(*fields)


def _write_to_device(position: int, change: ToDeviceMessages) -> Iterator[Item]:
    texts = [message.json or b"" for message in change.messages]
    if sum(map(len, texts)) > KEPT_BYTES or b"" in texts:
        raise _StaysError
    yield position, [[each.user_id, each.device_id, each.device] for each in change.messages], texts


def _read_to_device(_position: int, fields: Fields, texts: Sequence[bytes], _memory: Memory) -> ToDeviceMessages:
    return ToDeviceMessages(
        tuple(
            ToDeviceMessage(UserID(user_id), DeviceID(device_id), device, json)
            for (user_id, device_id, device), json in zip(fields, texts, strict=True)
        )
    )


def _write_device_list(position: int, change: DeviceListChanged) -> Iterator[Item]:
    yield position, [change.user_id, list(change.rooms), list(change.device_ids), change.seen_by], ()


def _read_device_list(_position: int, fields: Fields, _texts: Sequence[bytes], _memory: Memory) -> DeviceListChanged:
    user_id, in_rooms, device_ids, seen_by = fields
    return DeviceListChanged(UserID(user_id), tuple(in_rooms), tuple(map(DeviceID, device_ids)), seen_by)


def _write_account_data(position: int, change: AccountDataChanged) -> Iterator[Item]:
    yield position, [change.user_id, change.room, change.type], (change.content,)


def _read_account_data(_position: int, fields: Fields, texts: Sequence[bytes], _memory: Memory) -> AccountDataChanged:
    user_id, room, name = fields
    return AccountDataChanged(UserID(user_id), room, name, texts[0])


def _write_invalidated(position: int, change: Invalidated) -> Iterator[Item]:
    yield position, [change.kind_of, change.user_id, change.detail], ()


def _read_invalidated(_position: int, fields: Fields, _texts: Sequence[bytes], _memory: Memory) -> Invalidated:
    return Invalidated(Kind(fields[0]), UserID(fields[1]), fields[2])


def _write_relayed(position: int, change: EventRelayed) -> Iterator[Item]:
    yield position, [change.event_id], ()


def _read_relayed(_position: int, fields: Fields, _texts: Sequence[bytes], _memory: Memory) -> EventRelayed:
    return EventRelayed(EventID(fields[0]))


def _write_outgoing(position: int, change: OutgoingMessages) -> Iterator[Item]:
    yield position, list(dict.fromkeys(message.destination for message in change.messages)), ()


def _read_outgoing(_position: int, fields: Fields, _texts: Sequence[bytes], _memory: Memory) -> OutgoingMessages:
    return OutgoingMessages([OutgoingMessage(ServerName(destination), b"") for destination in fields])


_WRITERS: dict[type, Callable[[int, Any], Iterator[Item]]] = {
    RoomEvents: _write_event,
    ReceiptMoved: _write_receipt,
    ToDeviceMessages: _write_to_device,
    DeviceListChanged: _write_device_list,
    AccountDataChanged: _write_account_data,
    Invalidated: _write_invalidated,
    EventRelayed: _write_relayed,
    OutgoingMessages: _write_outgoing,
}
_READERS: dict[int, Callable[[int, Fields, Sequence[bytes], Memory], Change]] = {
    RoomEvents.kind: _read_event,
    ReceiptMoved.kind: _read_receipt,
    ToDeviceMessages.kind: _read_to_device,
    DeviceListChanged.kind: _read_device_list,
    AccountDataChanged.kind: _read_account_data,
    Invalidated.kind: _read_invalidated,
    EventRelayed.kind: _read_relayed,
    OutgoingMessages.kind: _read_outgoing,
}

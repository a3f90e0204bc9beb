"""Writing outliers in bulk: events held without a place in their room's graph, of which nobody hears.

The state of a room that is being joined, and auth chains. They are no entries of the log, only take positions in it,
so that every event stands at a higher position than those that it cites. The reservation commits by itself and holds
the log's lock for two statements; the events follow in an ordinary transaction, however many they are. Where others
wrote one of them in between, it stands higher than the places that were reserved: the writer then takes new places.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID
from storage import strings
from storage.arrays import Byteas, Int2, Int4, Int8, Texts
from storage.database import Tx
from storage.event_bytes import pack
from storage.events import Flag
from storage.rooms import Room


class Overtaken(Exception):
    """Others wrote some of the events after the places were reserved: what cites those has to go higher. Nothing is to
    be committed."""


class Reserved(Struct, frozen=True):
    """Places for outliers of one room."""

    first: int
    trunk_version: int
    """The room's version there."""


async def reserve(tx: Tx, room: Room, count: int) -> Reserved:
    """Take `count` positions. Commit at once: until then nobody appends anything."""
    head = await tx.fetch_one("update log_head set position = position + %s returning position", (count,))
    row = await tx.fetch_one("select state_version from rooms where room = %s", (room.number,))
    if row is None or head is None:
        raise RuntimeError("the room or the log's head is gone")
    return Reserved(head[0] - count + 1, row[0])


async def insert(
    tx: Tx, room: Room, reserved: Reserved, pdus: Sequence[VerifiedPDU], rejected: Collection[EventID] = ()
) -> dict[str, int]:
    """Write these events of the room at the reserved positions, each after those that it cites.

    What is held already, in whatever way, stays as it is. `rejected` were refused by the authorisation rules. Answers
    the numbers of the strings used, which are final once this is committed. Raises Overtaken.
    """
    used = {text for pdu in pdus for text in (pdu.type, pdu.sender, pdu.state_key) if text is not None}
    numbers = await strings.intern(tx, used)
    outlier, refused = int(Flag.OUTLIER), int(Flag.OUTLIER | Flag.REJECTED)
    inserted = await tx.execute(
        "insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender, state_key,"
        " notify_total, highlight_total, flags, event_id, json)"
        " select position, origin_server_ts, %s, 0, 0, %s, type, sender, state_key, 0, 0, flags, event_id, json"
        " from unnest(%s::bigint[], %s::bigint[], %s::int[], %s::int[], %s::int[], %s::smallint[], %s::text[],"
        " %s::bytea[]) as given(position, origin_server_ts, type, sender, state_key, flags, event_id, json)"
        " on conflict do nothing",
        (
            room.number,
            reserved.trunk_version,
            Int8(range(reserved.first, reserved.first + len(pdus))),
            Int8(pdu.origin_server_ts for pdu in pdus),
            Int4(numbers[pdu.type] for pdu in pdus),
            Int4(numbers[pdu.sender] for pdu in pdus),
            Int4(None if pdu.state_key is None else numbers[pdu.state_key] for pdu in pdus),
            Int2(refused if pdu.event_id in rejected else outlier for pdu in pdus),
            Texts(pdu.event_id for pdu in pdus),
            Byteas(pack(pdu.canonical) for pdu in pdus),
        ),
    )
    if inserted < len(pdus):
        await _check_not_overtaken(tx, reserved, pdus)
    return numbers


async def _check_not_overtaken(tx: Tx, reserved: Reserved, pdus: Sequence[VerifiedPDU]) -> None:
    row = await tx.fetch_one(
        "select 1 from events where event_id = any(%s::text[]) and position >= %s limit 1",
        ([pdu.event_id for pdu in pdus], reserved.first + len(pdus)),
    )
    if row is not None:
        raise Overtaken

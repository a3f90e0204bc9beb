"""Events that are held without a place in the graph: auth chains, and states that other servers gave.

Each is judged by the events that it cites (step 4 of "Checks performed on receipt of a PDU"), which must be here or
come with it, and stands at a higher position than all of them: resolution relies on that (`state.py`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID
from federation.rooms.heads import to_pdu
from federation.rooms.ordering import cited_by, in_order
from storage import events, outliers
from storage.database import Database
from storage.events import Flag
from storage.rooms import Room

MAX_CHUNK = 500
"""Events in one transaction."""


def judge(pdu: VerifiedPDU, known: Mapping[EventID, VerifiedPDU], rejected: Iterable[EventID]) -> None:
    """Step 4: raise AuthRuleViolated unless the events that it cites, which must be known, allow the event."""
    cited = {event_id: known[event_id] for event_id in pdu.auth_event_ids}
    auth_rules.check_auth_events(pdu, cited, set(rejected))
    by_key = {each.state_pair: each for each in cited.values() if each.state_key is not None}
    if pdu.type != "m.room.create" and not pdu.rules.create_in_auth_events:
        by_key[CREATE] = known[EventID("$" + pdu.room_id[1:])]
    auth_rules.check(pdu, by_key)


class OutlierAppender:
    """Holds events that have no place in the graph yet."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, room: Room, pdus: Sequence[VerifiedPDU]) -> set[EventID]:
        """Store those of these events of the room that are not here, if all that they cite is here or among them.

        Answers which of all the events given are held now and were not rejected.
        """
        wanted = {pdu.event_id: pdu for pdu in pdus if pdu.room_id == room.room_id}
        cited = {event_id for pdu in wanted.values() for event_id in cited_by(pdu)}
        async with self._database.read() as tx:
            found = await events.flags_of(tx, wanted.keys() | cited)
            held = {event_id: flags for event_id, (number, flags) in found.items() if number == room.number}
            fresh = in_order((pdu for event_id, pdu in wanted.items() if event_id not in found), cited_by, held)
            stored = await events.by_id(tx, {each for pdu in fresh for each in cited_by(pdu) if each in held})
        known = {event_id: to_pdu(event, room) for event_id, event in stored.items()}
        rejected = {event_id for event_id, flags in held.items() if flags & Flag.REJECTED}
        for pdu in fresh:
            try:
                judge(pdu, known, rejected)
            except AuthRuleViolated:
                rejected.add(pdu.event_id)
            known[pdu.event_id] = pdu
        for start in range(0, len(fresh), MAX_CHUNK):
            await self._hold(room, fresh[start : start + MAX_CHUNK], rejected)
        here = {event_id for event_id in wanted if event_id in held}.union(pdu.event_id for pdu in fresh)
        return here - rejected

    async def _hold(self, room: Room, pdus: Sequence[VerifiedPDU], rejected: Collection[EventID]) -> None:
        while True:  # as often as others write one of these events meanwhile
            async with self._database.transaction() as tx:
                reserved = await outliers.reserve(tx, room, len(pdus))
            with suppress(outliers.Overtaken):
                async with self._database.transaction() as tx:
                    await outliers.insert(tx, room, reserved, pdus, rejected)
                return

"""The state of a room as a resident server gives it to who joins: checked event by event, held in bounded memory.

Each event is parsed, its signatures and hash are verified, and it is judged by the events that it cites (steps 1 to 4
of "Checks performed on receipt of a PDU"); what fails is left out, or kept as rejected. Then all are stored as
outliers, each after those that it cites, in chunks that nobody has to wait for. A large state waits on disk.
"""

import asyncio
import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.outbound.keyring import Keyring
from federation.protocol import canonical_json, event_format
from federation.protocol.auth_events import CREATE
from federation.protocol.errors import AuthRuleViolated, InvalidInput, MatrixError
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, RoomID, StateKey
from federation.rooms.append_join import GivenEntry
from federation.rooms.heads import to_pdu
from federation.rooms.ordering import cited_by
from federation.rooms.outliers import judge
from storage import events, outliers
from storage.database import Database
from storage.events import Flag
from storage.rooms import Room
from storage.strings import remember_committed

logger = logging.getLogger(__name__)

MAX_EVENTS = 1_000_000
MAX_WORTHLESS = 1_000
"""Events more than good ones that may be repeated or dropped: the state is often repeated in its auth chain."""
MAX_BYTES_IN_MEMORY = 4 * 1024 * 1024
"""Of events as JSON; parsed they take some ten times as much."""
CHUNK = 500
"""Events that are verified, judged or stored at once."""
MAX_FOREIGN = 1_000
"""Events that are cited and did not come along, which we may hold already."""


class _Known(Struct, frozen=True):
    """What is kept in memory of an event, however many there are."""

    cited: tuple[EventID, ...]
    membership: object
    """The content's `membership`, of a member event."""
    offset: int
    length: int


class ReceivedState:
    """The events of one answer."""

    def __init__(self, room_id: RoomID, rules: RoomVersionRules, keyring: Keyring) -> None:
        self.room_id = room_id
        self.rules = rules
        self.dropped = 0
        """Events that were none of this room, or badly signed."""
        self._repeated = 0
        self._invalid: set[EventID] = set()
        """Events of the state that came, and whose signatures do not hold, or cannot be told to."""
        self._unreadable = 0
        """Events of the state that came, and are none of the room's version: their IDs are not known."""
        self._keyring = keyring
        self._known: dict[EventID, _Known] = {}
        self._pdus: dict[EventID, VerifiedPDU] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._bytes = 0
        self._in_memory = 0
        self._state: dict[StateKey, EventID] = {}
        self._foreign: dict[EventID, VerifiedPDU] = {}
        self.rejected: set[EventID] = set()

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._known)

    async def add(self, found: Sequence[tuple[str, bytes]]) -> None:
        """Take more events, each with the name of its array; raises InvalidInput when they are too many.

        What is worth nothing costs as much to look at as what is: more of that than of events ends it, too.
        """
        pdus = await asyncio.to_thread(self._parse, found)
        verified = await self._keyring.verify_events([pdu for _, pdu in pdus])
        for (array, parsed), pdu in zip(pdus, verified, strict=True):
            if isinstance(pdu, MatrixError):
                self.dropped += 1
                logger.debug("an event of the state of %s is dropped: %s", self.room_id, pdu)
                if array == "state":
                    self._invalid.add(parsed.event_id)
                continue
            self._keep(pdu)
            if array == "state":
                self._note_state(pdu)
        if self.dropped + self._repeated > MAX_WORTHLESS + len(self._known):
            raise InvalidInput("The room's state is mostly repeated or invalid", "M_BAD_JSON")
        if len(self._known) > MAX_EVENTS:
            raise InvalidInput("The room's state has too many events", "M_TOO_LARGE")

    def _parse(self, found: Sequence[tuple[str, bytes]]) -> list[tuple[str, PDU]]:
        pdus = []
        for array, raw in found:
            try:
                pdu = event_format.parse(canonical_json.loads_object(raw, max_depth=None), self.rules)
            except InvalidInput:
                self.dropped += 1
                self._unreadable += array == "state"
                continue
            if pdu.room_id != self.room_id:
                self.dropped += 1
                continue
            pdus.append((array, pdu))
        return pdus

    def _keep(self, pdu: VerifiedPDU) -> None:
        if pdu.event_id in self._known:
            self._repeated += 1
            return
        cited = tuple(cited_by(pdu))
        membership = pdu.membership if pdu.type == "m.room.member" else None
        self._known[pdu.event_id] = _Known(cited, membership, self._bytes, len(pdu.canonical))
        self._file.write(pdu.canonical)
        self._bytes += len(pdu.canonical)
        if self._in_memory < MAX_BYTES_IN_MEMORY:
            self._in_memory += len(pdu.canonical)
            self._pdus[pdu.event_id] = pdu

    def _note_state(self, pdu: VerifiedPDU) -> None:
        if pdu.state_key is None or self._state.setdefault(pdu.state_pair, pdu.event_id) != pdu.event_id:
            raise InvalidInput("The room's state has two events under one key, or one that is no state", "M_BAD_JSON")

    def extends(self, other: "ReceivedState") -> bool:
        """Whether the other one is the same, but for members that it lacks."""
        more = self._state.items() - other._state.items()
        return self._state.items() >= other._state.items() and all(key[0] == "m.room.member" for key, _ in more)

    def is_just(self, event_ids: Collection[EventID]) -> bool:
        """Whether the state that was given has these events and no others."""
        return set(self._state.values()) == set(event_ids)

    def is_all_valid_of(self, event_ids: Collection[EventID]) -> bool:
        """As `is_just`, but for events that came and were dropped: a server may hold what we cannot verify, or read."""
        given, wanted = set(self._state.values()), set(event_ids)
        return given <= wanted and len(wanted - given - self._invalid) <= self._unreadable

    def add_members(self, event_ids: Collection[EventID]) -> None:
        """Know the state's events by their IDs, of a state that was given without all members.

        Those members that came along, because they authorise something, are part of it then. Raises InvalidInput where
        the IDs are not of this state: it may lack members, nothing else.
        """
        if not set(event_ids).issuperset(self._state.values()):
            raise InvalidInput("The IDs of the room's state are of another one", "M_BAD_JSON")
        for event_id in set(event_ids).intersection(self._known).difference(self._state.values()):
            pdu = self.get(event_id)
            if pdu.type != "m.room.member":
                raise InvalidInput("The answer lacks more of the room's state than members", "M_BAD_JSON")
            self._note_state(pdu)

    def get(self, event_id: EventID) -> VerifiedPDU:
        """One of the events, or of those that we had."""
        pdu = self._pdus.get(event_id) or self._foreign.get(event_id)
        if pdu is None:
            known = self._known[event_id]
            self._file.seek(known.offset)
            pdu = event_format.from_stored(self._file.read(known.length), event_id, self.room_id, self.rules)
        return pdu

    @property
    def state(self) -> dict[StateKey, EventID]:
        """The state without what was dropped or rejected: complete once the events were judged."""
        return {
            key: event_id
            for key, event_id in self._state.items()
            if event_id not in self.rejected and event_id in self._known
        }

    # --- what the events are worth

    async def judge(self, database: Database, room: Room | None) -> None:
        """Judge every event by what it cites. What cites an event that is nowhere is left out.

        Raises InvalidInput where the state has no create event of this room and version: then all of it is worthless.
        """
        await self._look_up_foreign(database, room)
        ordered = await asyncio.to_thread(self._in_order)
        for event_id in self._known.keys() - set(ordered):
            self.dropped += 1
            del self._known[event_id]
        self._known = {event_id: self._known[event_id] for event_id in ordered}
        for start in range(0, len(ordered), CHUNK):
            await asyncio.to_thread(self._judge, ordered[start : start + CHUNK])
        create_id = self._state.get(CREATE)
        if create_id is None or create_id not in self._known or create_id in self.rejected:
            raise InvalidInput("The room's state has no create event", "M_BAD_JSON")
        version = self.get(create_id).content.get("room_version", "1")
        if version != self.rules.version:
            raise InvalidInput("The room has another version than its server said", "M_BAD_JSON")

    async def _look_up_foreign(self, database: Database, room: Room | None) -> None:
        """Events that are cited and did not come along may be here from another time."""
        wanted = {each for known in self._known.values() for each in known.cited if each not in self._known}
        if room is None or not wanted or len(wanted) > MAX_FOREIGN:
            return
        async with database.read() as tx:
            found = await events.by_id(tx, wanted)
        for event_id, stored in found.items():
            if stored.room == room.number:
                self._foreign[event_id] = to_pdu(stored, room)
                if stored.flags & Flag.REJECTED:
                    self.rejected.add(event_id)

    def _in_order(self) -> list[EventID]:
        """The events, each after all that it cites; without those of which that cannot be."""
        citing: dict[EventID, list[EventID]] = {}
        still_open: dict[EventID, int] = {}
        ordered: list[EventID] = []
        for event_id, known in self._known.items():
            cited = [each for each in known.cited if each not in self._foreign]
            still_open[event_id] = len(cited)
            for each in cited:
                citing.setdefault(each, []).append(event_id)
            if not cited:
                ordered.append(event_id)
        for event_id in ordered:  # grows on the way
            for each in citing.get(event_id, ()):
                still_open[each] -= 1
                if not still_open[each]:
                    ordered.append(each)
        return ordered

    def _judge(self, event_ids: Iterable[EventID]) -> None:
        for event_id in event_ids:
            try:
                self.check(self.get(event_id))
            except AuthRuleViolated as error:
                logger.info("the event %s of the state of %s is rejected: %s", event_id, self.room_id, error)
                self.rejected.add(event_id)

    def check(self, pdu: VerifiedPDU) -> None:
        """Raise AuthRuleViolated unless the events that it cites allow the event (step 4)."""
        cited = cited_by(pdu)
        judge(pdu, {event_id: self.get(event_id) for event_id in cited}, self.rejected.intersection(cited))

    def has_all(self, event_ids: Collection[EventID]) -> bool:
        """Whether these events came along, or were here."""
        return all(event_id in self._known or event_id in self._foreign for event_id in event_ids)

    def state_for(self, keys: Iterable[StateKey]) -> Mapping[StateKey, VerifiedPDU]:
        """These entries of the state."""
        state = self.state
        return {key: self.get(state[key]) for key in keys if key in state}

    # --- storing it

    async def store(self, database: Database, room: Room) -> list[GivenEntry]:
        """Hold all that was judged as outliers of the room; answers the state as it is held.

        What was here before stays as it is: an event that was rejected here is none of the state.
        """
        event_ids = list(self._known)
        async with database.transaction() as tx:
            places = await outliers.reserve(tx, room, len(event_ids))
        done = 0
        while done < len(event_ids):
            pdus = [self.get(event_id) for event_id in event_ids[done : done + CHUNK]]
            try:
                async with database.transaction() as tx:
                    numbers = await outliers.insert(tx, room, places, pdus, self.rejected)
            except outliers.Overtaken:  # by another join, or what comes from the room: the rest goes above that
                async with database.transaction() as tx:
                    places = await outliers.reserve(tx, room, len(event_ids) - done)
                continue
            remember_committed(database.memory, numbers)
            done += len(pdus)
            places = outliers.Reserved(places.first + len(pdus), places.trunk_version)
        state = self.state
        async with database.read() as tx:
            held = await events.positions_of(tx, room.number, state.values())
        return [
            GivenEntry(key, event_id, self._known[event_id].membership)
            for key, event_id in state.items()
            if event_id in held
        ]

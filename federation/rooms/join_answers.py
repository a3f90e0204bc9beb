"""The answer to `send_join`: the room's state before the join and what authorises it, streamed.

However large the room is, a thousand events at a time are read, each batch with one statement in a transaction of its
own, and their stored bytes are put into the answer as they are. What is remembered meanwhile is IDs and positions.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable

import orjson

from federation.protocol import canonical_json
from federation.protocol.redaction import redact
from federation.protocol.types import EventID, JsonObject, ServerName, UserID
from federation.rooms.heroes import heroes_of_many
from federation.rooms.resident import Entered
from storage import events, memberships, room_state
from storage.database import Database, Tx
from storage.events import StoredEvent
from storage.room_state import TRUNK

BATCH = 1_000
FIRST_ROUNDS = 4
"""Most chains of events that authorise each other end by then."""


class JoinAnswer:
    """One answer in the making."""

    def __init__(self, database: Database, server_name: ServerName, entered: Entered, *, omits_members: bool) -> None:
        self._database = database
        self._server_name = server_name
        self._room = entered.room
        self._event = entered.event
        self._omits_members = omits_members
        self._told: set[EventID] = set()
        """What stands in `state`."""
        self._cited: dict[EventID, None] = {}
        """What events of the answer are authorised by, so far as it was not followed yet."""
        self._followed: set[EventID] = set()
        self._rounds = 0
        self._ahead: dict[EventID, StoredEvent] = {}
        """What is likely to be cited next."""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer's JSON, piece by piece."""
        positions, servers = await self._begin()
        self._cite(self._event)
        head: JsonObject = {
            "event": orjson.Fragment(self._bytes(self._event)),
            "members_omitted": self._omits_members,
            "origin": self._server_name,
        }
        if servers is not None:
            head["servers_in_room"] = servers
        yield orjson.dumps(head)[:-1] + b',"state":['
        async for chunk in self._state(positions):
            yield chunk
        yield b'],"auth_chain":['
        async for chunk in self._auth_chain():
            yield chunk
        yield b"]}"

    async def _begin(self) -> tuple[list[int], list[ServerName] | None]:
        """Where the events of the state stand, and the servers in the room, where members are left out."""
        number, line, version = self._room.number, self._event.line, self._event.version
        async with self._database.read() as tx:
            members = await self._heroes(tx) if self._omits_members else None
            if line == TRUNK:
                state = (await room_state.at_versions(tx, {number: version}, members=members))[number]
            else:
                state = (await room_state.at(tx, number, [(line, version)]))[line, version]
            servers = None
            if members is not None:
                state = {key: place for key, place in state.items() if key[0] != "m.room.member" or key[1] in members}
                servers = await memberships.servers_of(tx, number, version=version if line == TRUNK else None)
        return sorted(state.values()), servers

    async def _heroes(self, tx: Tx) -> list[UserID]:
        """Whose member events are told all the same: those by whose names a room is shown that has none."""
        found = await heroes_of_many(tx, [self._room.number], UserID(self._event.json["state_key"]))
        return found.get(self._room.number, [])

    async def _state(self, positions: list[int]) -> AsyncIterator[bytes]:
        separator = b""
        for start in range(0, len(positions), BATCH):
            if chunk := await self._read_state(positions[start : start + BATCH]):
                yield separator + chunk
                separator = b","

    async def _read_state(self, positions: list[int]) -> bytes:
        """The events at these positions. Nothing but their bytes is kept while the peer reads them."""
        async with self._database.read() as tx:
            found = await events.by_position(tx, self._room.number, positions)
        self._told.update(event.event_id for event in found.values())
        return self._spliced(found[position] for position in positions if position in found)

    async def _auth_chain(self) -> AsyncIterator[bytes]:
        """All that authorises what was told, and what authorises that; without what was told, where that is allowed."""
        if self._omits_members:
            self._followed |= self._told
        separator = b""
        while wanted := self._next_cited():
            if chunk := await self._read_cited(wanted):
                yield separator + chunk
                separator = b","

    async def _read_cited(self, wanted: list[EventID]) -> bytes:
        """These events. Where one cites another, and so on, as changes of power levels do, many are read in advance."""
        found = {event_id: self._ahead.pop(event_id) for event_id in wanted if event_id in self._ahead}
        missing = [event_id for event_id in wanted if event_id not in found]
        if missing:
            self._rounds += 1
            async with self._database.read() as tx:
                found |= await events.by_id(tx, missing)
                if self._rounds > FIRST_ROUNDS and len(missing) < BATCH:
                    positions = [event.position for event in found.values()]
                    self._ahead = await events.stood_before(tx, self._room.number, positions, limit=BATCH)
        return self._spliced(event for event in found.values() if event.room == self._room.number)

    def _next_cited(self) -> list[EventID]:
        wanted: list[EventID] = []
        while self._cited and len(wanted) < BATCH:
            event_id, _ = self._cited.popitem()
            if event_id not in self._followed:
                self._followed.add(event_id)
                wanted.append(event_id)
        return wanted

    def _spliced(self, stored: Iterable[StoredEvent]) -> bytes:
        """These events side by side; what they cite is noted."""
        parts = []
        for event in stored:
            if event.is_readable:
                self._cite(event)
                parts.append(self._bytes(event))
        return b",".join(parts)

    def _cite(self, event: StoredEvent) -> None:
        references = event.json.get("auth_events")
        for reference in references if isinstance(references, list) else ():
            event_id = reference[0] if isinstance(reference, list) and reference else reference
            if isinstance(event_id, str) and event_id not in self._followed:
                self._cited[EventID(event_id)] = None

    def _bytes(self, event: StoredEvent) -> bytes:
        if event.redacted_by is None:
            return event.canonical
        return canonical_json.encode(redact(event.json, self._room.rules))

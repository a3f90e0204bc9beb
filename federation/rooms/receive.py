"""Events from other servers: the "Checks performed on receipt of a PDU" (Server-Server API v1.18), in order.

1. It is an event of its room's version (`event_format.parse`), else it is dropped.
2. Its signatures hold, else it is dropped;
3. and its content hash, else it is redacted (both: `Keyring.verify_events`).
4. Its auth events allow it, else it is rejected.
5. The state before it allows it, else it is rejected.
6. The current state allows it, else it is soft-failed.
7. The policy server that the room uses has signed it, or does when asked, else it is soft-failed (4 to 7:
   `append_remote.py`, `append_line.py`).

Of a room that a user of ours is just joining nothing can be judged yet: its events are for the dead-letter list, and
are tried again when the join is over. So are those of a room that lacks members still (`incomplete_rooms.py`), where
one of these has a say in it.

Between 3 and 4 what it refers to must be here: `missing_events.py` fetches it. Each event fails alone. Those of one
server in one room are taken in order; rooms do not wait for each other, nor for another server's gap.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct, field

from federation.outbound.keyring import VerifyEvents
from federation.protocol import event_format
from federation.protocol.errors import Forbidden, KeyNotKnown, MatrixError, NotFound
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName
from federation.rooms.append import Received, RoomWriter
from federation.rooms.doors import RoomDoors
from federation.rooms.incomplete_rooms import BeingJoined, IncompleteRooms, StateBefore
from federation.rooms.missing_events import MissingEventsFetcher
from federation.rooms.ordering import in_order, prev_of
from federation.rooms.questions import Allowance, TooMuch
from federation.rooms.state import MissingEvents
from storage.rooms import Room

logger = logging.getLogger(__name__)

MAX_STATES = 3
"""States that are fetched for what came before one event, besides its own."""
HOPELESS_SECONDS = 60
"""What could not be found is not looked for again so soon, however many events of its server refer to it."""
RESTED_SECONDS = 5
"""The same once a server that may have it is back; not at once, for servers may come and go with each request."""
MAX_HOPELESS = 10_000
MAX_TRIES = 4
"""Attempts to append one event, after each of which what it lacked was fetched."""
AT_ONCE = 50
"""Events in one append: a transaction's."""


FindJoin = Callable[[RoomID], Awaitable[RoomVersionRules | None]]
"""The version of a room that a user of ours is about to join by way of another server; None for any other room."""


class _Gap(Struct):
    """What may still be spent on what one event refers to."""

    allowance: Allowance = field(default_factory=Allowance)
    states: int = MAX_STATES
    may_ask_for_history: bool = True


class Receiver:
    """Takes events of other servers."""

    def __init__(
        self,
        *,
        writer: RoomWriter,
        verify: VerifyEvents,
        missing: MissingEventsFetcher,
        doors: RoomDoors,
        find_join: FindJoin,
        incomplete: IncompleteRooms,
    ) -> None:
        self._writer = writer
        self._verify = verify
        self._missing = missing
        self._doors = doors
        self._find_join = find_join
        self._incomplete = incomplete
        self._turns: dict[tuple[ServerName, int], _Turn] = {}
        self._hopeless: dict[tuple[ServerName, int, EventID], float] = {}
        """What was looked for in vain, and when."""
        self._back_at = -float(HOPELESS_SECONDS)

    async def receive(self, origin: ServerName, json: JsonObject) -> MatrixError | None:
        """One event as it came; answers why it is not here now, None for one that is, shown to clients or not."""
        try:
            room = await self.get_room(json.get("room_id"))
            pdu = event_format.parse(json, room.rules)
        except MatrixError as error:
            return error
        return (await self.receive_room(origin, room, [pdu])).get(pdu.event_id)

    async def get_room(self, room_id: object) -> Room:
        """The room of an event; raises NotFound for one that is not known here."""
        if not isinstance(room_id, str) or "\0" in room_id:
            raise NotFound("There is no such room")
        return await self._writer.get_room(room_id)

    async def get_expected_room(self, room_id: object) -> Room:
        """As `get_room`; also a room that is being joined, which has the number 0 while it has none."""
        try:
            return await self.get_room(room_id)
        except NotFound:
            rules = await self._find_join(RoomID(room_id)) if isinstance(room_id, str) and "\0" not in room_id else None
            if rules is None:
                raise
            return Room(0, RoomID(str(room_id)), rules)

    async def receive_room(
        self,
        origin: ServerName,
        room: Room,
        pdus: Sequence[PDU],
        results: dict[EventID, MatrixError | None] | None = None,
    ) -> dict[EventID, MatrixError | None]:
        """Events of one room that one server sent; answers as `receive` for each.

        `results` is filled as they are done: what is in it when this is cancelled needs not be done again.
        """
        results = {} if results is None else results
        try:
            await self._check_door(room, origin)
            verified = await self._verified(pdus, results)
        except MatrixError as error:
            results.update((pdu.event_id, error) for pdu in pdus if pdu.event_id not in results)
            return results
        async with self._turn(origin, room):
            await self._append_all(origin, room, in_order(verified, prev_of), results, None)
        for pdu in verified:
            results.setdefault(pdu.event_id, MissingEvents(prev=[pdu.event_id]))  # it follows itself
        return results

    async def _check_door(self, room: Room, origin: ServerName) -> None:
        """Raise Forbidden for who may not send events of the room, and BeingJoined where we are on the way in."""
        if room.number == 0:
            raise BeingJoined
        try:
            await self._doors.check(room, origin)
        except Forbidden:
            if not await self._doors.is_ours(room) and await self._find_join(room.room_id) is not None:
                raise BeingJoined from None
            raise

    async def accept(self, origin: ServerName, pdu: VerifiedPDU) -> Received:
        """Append a verified event, after what it refers to and is not here was fetched from the origin or others.

        Raises MissingEvents, TooMuch, or another server's failure, where that could not be done.
        """
        room = await self._writer.get_room(pdu.room_id)
        return await self._append(origin, room, pdu, None)

    async def _verified(self, pdus: Sequence[PDU], results: dict[EventID, MatrixError | None]) -> list[VerifiedPDU]:
        """Steps 2 and 3."""
        unique = list({pdu.event_id: pdu for pdu in pdus}.values())
        verified: list[VerifiedPDU] = []
        for pdu, result in zip(unique, await self._verify(unique), strict=True):
            if isinstance(result, VerifiedPDU):
                verified.append(result)
            else:
                results[pdu.event_id] = result
        return verified

    async def _append_all(
        self,
        origin: ServerName,
        room: Room,
        pdus: Sequence[VerifiedPDU],
        results: dict[EventID, MatrixError | None],
        gap: _Gap | None,
    ) -> None:
        """Steps 4 to 7, for events in order: as many at once as continue the room's end, the others one by one."""
        done = 0
        while done < len(pdus):
            line = await self._append_line(room, pdus[done : done + AT_ONCE])
            results.update((received.event_id, None) for received in line)
            done += len(line)
            if done < len(pdus) and len(line) < AT_ONCE:
                results[pdus[done].event_id] = await self._append_one(origin, room, pdus[done], gap)
                done += 1

    async def _append_line(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[Received]:
        """What became of the first of these events, as far as they were appended together."""
        try:
            return await self._writer.append_remote_line(room, pdus)
        except Exception as error:  # one of them is at fault, or none: each by itself will show
            logger.info("events of %s were not appended together: %s", room.room_id, error)
            return []

    async def _append_one(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, gap: _Gap | None
    ) -> MatrixError | None:
        try:
            await self._append(origin, room, pdu, gap)
        except MatrixError as error:
            logger.info("%s of %s from %s: %s", pdu.event_id, room.room_id, origin, error.message)
            return error
        except Exception:  # it may fail, others may not
            logger.exception("%s of %s from %s", pdu.event_id, room.room_id, origin)
            return MatrixError("M_UNKNOWN", "Internal server error", 500)
        return None

    async def _append(self, origin: ServerName, room: Room, pdu: VerifiedPDU, gap: _Gap | None) -> Received:
        """One event; what it lacks is fetched in between."""
        gap = gap or _Gap()
        may_ask_for_history = gap.may_ask_for_history
        state_before: StateBefore | None = None
        looked_for: frozenset[EventID] = frozenset()
        for _ in range(MAX_TRIES):
            try:
                return await self._writer.append_remote(pdu, state_before=state_before)
            except MissingEvents as missing:
                self._check_hope(origin, room, missing)
                if missing.auth and missing.auth == looked_for:  # nobody has it: asking again would only cost them
                    self._give_up(origin, room, missing)
                    raise
                looked_for = frozenset(missing.auth)
                try:
                    if missing.auth and await self._fetch_auth(origin, room, pdu, gap):
                        continue
                    looked_for = frozenset()
                    if may_ask_for_history:
                        may_ask_for_history = False
                        await self._fill(origin, room, pdu, gap)
                    else:
                        state_before = await self._state_before(origin, room, pdu, gap)
                except MatrixError as error:
                    self._give_up(origin, room, missing)
                    raise error from None
        return await self._last_try(origin, room, pdu, state_before)

    async def _fetch_auth(self, origin: ServerName, room: Room, pdu: VerifiedPDU, gap: _Gap) -> bool:
        """Bring in what authorises an event; False where that has to come with what the event follows, and its state:
        in a room that lacks members, what is no part of the state before the join."""
        try:
            await self._missing.fetch_auth(origin, room, pdu, gap.allowance)
        except BeingJoined:
            return False
        return True

    async def _last_try(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, state_before: StateBefore | None
    ) -> Received:
        try:
            return await self._writer.append_remote(pdu, state_before=state_before)
        except MissingEvents as missing:
            self._give_up(origin, room, missing)
            raise

    async def _fill(self, origin: ServerName, room: Room, pdu: VerifiedPDU, gap: _Gap) -> None:
        """Bring in what came before an event, as far as it is found."""
        history = await self._missing.history(origin, room, pdu, gap.allowance)
        gap.may_ask_for_history = False
        await self._append_all(origin, room, history, {}, gap)
        gap.states = max(gap.states, 1)  # its own

    async def _state_before(self, origin: ServerName, room: Room, pdu: VerifiedPDU, gap: _Gap) -> StateBefore:
        if gap.states <= 0:
            raise TooMuch("Too many states would have to be fetched")
        gap.states -= 1
        if self._incomplete.has(room.number):
            return await self._missing.state_difference(origin, room, pdu, gap.allowance)
        return await self._missing.state_before(origin, room, pdu, gap.allowance)

    # --- what could not be found

    def _check_hope(self, origin: ServerName, room: Room, missing: MissingEvents) -> None:
        """Raise `missing` where it was looked for in vain just now, for events of the same server: of others, one
        that withholds it proves nothing."""
        now = time.monotonic()
        for event_id in missing.prev | missing.auth:
            given_up = self._hopeless.get((origin, room.number, event_id))
            if given_up is None:
                continue
            if now < given_up + (HOPELESS_SECONDS if self._back_at < given_up else RESTED_SECONDS):
                raise missing

    def _give_up(self, origin: ServerName, room: Room, missing: MissingEvents) -> None:
        now = time.monotonic()
        if len(self._hopeless) > MAX_HOPELESS:
            self._hopeless.clear()
        self._hopeless.update(((origin, room.number, each), now) for each in missing.prev | missing.auth)

    def forget_hopeless(self, room: Room) -> None:
        """Look for everything in the room again: what was put aside is tried once more."""
        self._hopeless = {key: at for key, at in self._hopeless.items() if key[1] != room.number}

    def server_is_back(self, _server: ServerName) -> None:
        """It may have what could not be found while it was away: that is looked for again."""
        self._back_at = time.monotonic()

    # --- turns

    @asynccontextmanager
    async def _turn(self, origin: ServerName, room: Room) -> AsyncIterator[None]:
        """One transaction's events of a room at a time, for each server."""
        key = (origin, room.number)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                self._turns.pop(key, None)


class _Turn(Struct):
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def is_passing(error: MatrixError) -> bool:
    """Whether the event may be taken another time: something was missing, or did not work."""
    return isinstance(error, (MissingEvents, KeyNotKnown)) or error.http_status >= 500

"""Gaps: what an event refers to and is not here is fetched, within bounds ("Retrieving missing events").

What came before it is asked for first. Where that is too far from what we know, the state before the event is taken
from another server: as event IDs, of which the unknown ones are fetched. Everything that comes is verified like any
event, and what was not asked for is left out. A gap has an `Allowance`; who makes an endless one only spends that.
"""

import asyncio
import itertools
from collections.abc import Collection, Iterable, Sequence

from federation.outbound.keyring import VerifyEvents
from federation.protocol import canonical_json, event_format
from federation.protocol.auth_events import CREATE
from federation.protocol.errors import InvalidEvent, InvalidInput, MatrixError
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.types import EventID, JsonObject, ServerName, StateKey
from federation.rooms.append import RoomWriter
from federation.rooms.append_remote import keys_for
from federation.rooms.heads import to_pdu
from federation.rooms.incomplete_rooms import BeingJoined, StateDifference
from federation.rooms.learning import learn_members
from federation.rooms.ordering import cited_by, connected, in_order, prev_of
from federation.rooms.questions import Allowance, GivenStateIDs, Questions, TooMuch
from storage import events, memberships, remote_joins, room_state, rooms
from storage.database import Database
from storage.events import Flag
from storage.rooms import Room

MAX_HISTORY = 200
"""Events before one that came, fetched to connect it with what is here."""
MAX_ROUNDS = 8
"""Questions for more of them; each must have brought some."""
MAX_LATEST = 20
"""Events from which one question starts."""
MAX_AUTH_ROUNDS = 20
"""Steps down the auth chain, where a server does not give it whole."""
MAX_SINGLE_EVENTS = 300
"""Events of a state that are fetched one by one; for more of them the whole state is."""
MAX_STATE = 500_000
"""Events that a state, with what authorises it, may have."""
MAX_SERVERS = 4
"""Servers that are asked for the same thing, the origin first."""
CONCURRENT = 8
VERIFIED_AT_ONCE = 100


class MissingEventsFetcher:
    """Finds what is missing."""

    def __init__(
        self,
        *,
        database: Database,
        writer: RoomWriter,
        verify: VerifyEvents,
        questions: Questions,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._writer = writer
        self._verify = verify
        self._questions = questions
        self._server_name = server_name

    async def history(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, allowance: Allowance
    ) -> list[VerifiedPDU]:
        """What came before the event and is not here, oldest first, as far back as the bounds allow."""
        async with self._database.read() as tx:
            earliest = (await rooms.rows(tx, [room.number]))[room.number].extremities
        found: dict[EventID, VerifiedPDU] = {}
        for _ in range(MAX_ROUNDS):
            gaps = await self._gaps(room, [pdu, *found.values()])
            latest = [event_id for event_id, missing in gaps.items() if missing][:MAX_LATEST]
            if not latest or len(found) >= MAX_HISTORY:
                break
            allowance.take_request()
            try:
                answer = await self._questions.missing_events(
                    origin, room.room_id, earliest=earliest[:MAX_LATEST], latest=latest, limit=50
                )
            except MatrixError:
                break
            verified = await self.verified(room, answer)
            placed = await self._placed(room, {each.event_id for each in verified})
            # What comes before those that have a place is no business of this event, but of `backfill.py`.
            fresh = [each for each in verified if each.event_id not in placed]
            missing = itertools.chain.from_iterable(gaps.values())
            new = [each for each in connected(missing, fresh, prev_of) if each.event_id not in found]
            found.update((each.event_id, each) for each in new[: MAX_HISTORY - len(found)])
            if not new:
                break
        found.pop(pdu.event_id, None)
        return in_order(found.values(), prev_of)

    async def _gaps(self, room: Room, pdus: Sequence[VerifiedPDU]) -> dict[EventID, list[EventID]]:
        """For each of these events, what it follows and that is neither in the room's graph nor among them."""
        given = {pdu.event_id for pdu in pdus}
        wanted = {event_id for pdu in pdus for event_id in pdu.prev_event_ids}
        placed = await self._placed(room, wanted - given)
        return {
            pdu.event_id: [each for each in pdu.prev_event_ids if each not in placed and each not in given]
            for pdu in pdus
        }

    async def _placed(self, room: Room, event_ids: Collection[EventID]) -> set[EventID]:
        """Those of these events that are in the room's graph."""
        async with self._database.read() as tx:
            held = await events.flags_of(tx, event_ids)
        return {
            event_id for event_id, (number, flags) in held.items() if number == room.number and not flags & Flag.OUTLIER
        }

    async def fetch_auth(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, allowance: Allowance, *, is_old: bool = False
    ) -> None:
        """Bring in what authorises the event, as outliers; what nobody gives stays missing.

        Raises BeingJoined for what came after a join that left members out: it has to wait for them, and may not be
        held without having its place in the room. Not so of what authorises events that are `is_old`: history.
        """
        if not is_old:
            await self._check_not_later(room, pdu)
        fetched: dict[EventID, VerifiedPDU] = {}
        servers = [origin]
        for attempt in range(MAX_AUTH_ROUNDS):
            missing = await self._unknown_cited(room, pdu, fetched)
            if not missing:
                break
            if attempt == 0:
                new = await self._event_auth(origin, room, pdu, missing, allowance)
            else:
                servers = servers if len(servers) > 1 else await self.servers(room, origin)
                new = await self._fetch_each(servers, room, missing, allowance)
                if not new:
                    break
            fetched.update((each.event_id, each) for each in new)
        if fetched:
            await self._writer.append_outliers(room, list(fetched.values()))

    async def _check_not_later(self, room: Room, pdu: VerifiedPDU) -> None:
        async with self._database.read() as tx:
            held = await events.flags_of(tx, cited_by(pdu))
            if await remote_joins.is_later(tx, room.room_id, [each for each in cited_by(pdu) if each not in held]):
                raise BeingJoined

    async def learn_cited(self, room: Room, pdus: Iterable[VerifiedPDU]) -> None:
        """In a room that lacks members: know those whose member events these events cite and that are held."""
        async with self._database.read() as tx:
            cited = await events.by_id(tx, {event_id for pdu in pdus for event_id in cited_by(pdu)})
        await learn_members(self._database, self._server_name, room.room_id, cited.values())

    async def _event_auth(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, missing: Iterable[EventID], allowance: Allowance
    ) -> list[VerifiedPDU]:
        allowance.take_request()
        try:
            chain = await self._questions.event_auth(origin, room.room_id, pdu.event_id)
        except MatrixError:
            return []
        return connected(missing, await self.verified(room, chain), cited_by)

    async def _unknown_cited(self, room: Room, pdu: VerifiedPDU, fetched: dict[EventID, VerifiedPDU]) -> set[EventID]:
        """What the event and those fetched for it cite and is neither among them nor here."""
        cited = {event_id for each in (pdu, *fetched.values()) for event_id in cited_by(each)} - fetched.keys()
        async with self._database.read() as tx:
            return cited - (await events.flags_of(tx, cited)).keys()

    async def state_before(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, allowance: Allowance
    ) -> dict[StateKey, EventID]:
        """The whole state before the event, as another server gives it; its events, and what authorises them, are
        held then. What nobody has, or was rejected, is left out.

        Raises RemoteServerError, or what the origin's answer was, where nobody gives a state that can be one.
        """
        servers = await self.servers(room, origin)
        for index, server in enumerate(servers):
            allowance.take_request()
            try:
                given = await self._questions.state_ids(server, room.room_id, pdu.event_id)
                return await self._taken(server, servers, room, pdu, given, allowance)
            except TooMuch:
                raise
            except MatrixError:
                if index == len(servers) - 1:
                    raise
        raise TooMuch("No server is left that could give the state before the event")

    async def state_difference(
        self, origin: ServerName, room: Room, pdu: VerifiedPDU, allowance: Allowance
    ) -> StateDifference:
        """As `state_before`, for a room that lacks members: how the state that the origin gives differs from the one
        before the join, of which the IDs are known. The members in whom they differ are known then.

        Raises BeingJoined where that cannot be told, or is not enough to judge the event; nothing is held then that is
        no part of the state before the join, because it has to come by itself.
        """
        async with self._database.read() as tx:
            placed = await remote_joins.find_placed(tx, room.room_id)
        if placed is None:
            raise BeingJoined  # it is complete by now: the event comes again
        version, ours = placed
        allowance.take_request()
        given = await self._questions.state_ids(origin, room.room_id, pdu.event_id)
        added, removed = set(given.state) - ours, ours - set(given.state)
        if len(added) + len(removed) > MAX_SINGLE_EVENTS:
            raise BeingJoined
        cited = ours.intersection(cited_by(pdu))
        await self._hold(origin, room, await self._fetch_missing(origin, room, removed | cited, allowance), allowance)
        fetched = await self._fetch_missing(origin, room, added, allowance)
        async with self._database.read() as tx:
            held = await events.by_id(tx, added | removed | cited)
        pdus = {event_id: to_pdu(each, room) for event_id, each in held.items() if each.room == room.number}
        pdus.update((each.event_id, each) for each in fetched)
        rejected = {event_id for event_id, each in held.items() if each.flags & Flag.REJECTED}
        if not pdus.keys() >= added | removed | cited:
            raise BeingJoined
        await learn_members(self._database, self._server_name, room.room_id, [held[each] for each in removed | cited])
        changes = self._changes([pdus[each] for each in removed - rejected], [pdus[each] for each in added - rejected])
        await self._check_known(room, pdu, [key for key in changes if changes[key] is not None])
        await self._hold(origin, room, fetched, allowance)
        return StateDifference(version, changes)

    def _changes(self, removed: Sequence[VerifiedPDU], added: Sequence[VerifiedPDU]) -> dict[StateKey, EventID | None]:
        """What a state has that another one has not. Raises InvalidEvent for what is no state, BeingJoined where it
        cannot be told what the other one has."""
        changes: dict[StateKey, EventID | None] = {
            each.state_pair: None for each in removed if each.state_key is not None
        }
        before = set(changes)
        for each in added:
            if each.state_key is None or changes.get(each.state_pair) is not None:
                raise InvalidEvent("A state was given that has two events for the same, or one that is none of it")
            changes[each.state_pair] = each.event_id
        own = f":{self._server_name}"  # of whom nothing is written before all is
        if any(key[0] == "m.room.member" and key[1].endswith(own) for key in before):
            raise BeingJoined
        return changes

    async def _check_known(self, room: Room, pdu: VerifiedPDU, changed: Collection[StateKey]) -> None:
        """Raise BeingJoined unless all members are known now who have a say in the event, or whom it brings along."""
        keys = {key for key in (*keys_for(pdu), *changed) if key[0] == "m.room.member"}
        async with self._database.read() as tx:
            known = await room_state.current(tx, room.number, keys)
        if not known.keys() >= keys:
            raise BeingJoined

    async def _fetch_missing(
        self, origin: ServerName, room: Room, wanted: Collection[EventID], allowance: Allowance
    ) -> list[VerifiedPDU]:
        """Those of these events that are not here, from the origin."""
        async with self._database.read() as tx:
            missing = set(wanted) - (await events.flags_of(tx, wanted)).keys()
        return await self._fetch_each([origin], room, missing, allowance)

    async def _hold(self, origin: ServerName, room: Room, pdus: Iterable[VerifiedPDU], allowance: Allowance) -> None:
        """Hold these events, and what authorises them, as far as the origin gives that."""
        fetched = {pdu.event_id: pdu for pdu in pdus}
        new = list(fetched.values())
        for _ in range(MAX_AUTH_ROUNDS):
            cited = {event_id for each in new for event_id in cited_by(each)} - fetched.keys()
            new = await self._fetch_missing(origin, room, cited, allowance)
            if not new:
                break
            fetched.update((each.event_id, each) for each in new)
        if fetched:
            await self._writer.append_outliers(room, list(fetched.values()))

    async def _taken(  # one question's answer with all that it was asked with
        self,
        server: ServerName,
        servers: Sequence[ServerName],
        room: Room,
        pdu: VerifiedPDU,
        given: GivenStateIDs,
        allowance: Allowance,
    ) -> dict[StateKey, EventID]:
        """The state once its events are here."""
        wanted = set(given.state).union(given.auth_chain)
        if len(wanted) > MAX_STATE:
            raise TooMuch("The state before the event has too many events")
        async with self._database.read() as tx:
            missing = wanted - (await events.flags_of(tx, wanted)).keys()
        if len(missing) > MAX_SINGLE_EVENTS:
            allowance.take_request()
            state = await self._questions.state(server, room.room_id, pdu.event_id)
            fetched = await self.verified(room, state, missing)
        else:
            ordered = [server, *(each for each in servers if each != server)]
            fetched = await self._fetch_each(ordered, room, missing, allowance)
        await self._writer.append_outliers(room, fetched)
        async with self._database.read() as tx:
            pairs = await events.state_pairs_of(tx, room.number, given.state)
        state_before: dict[StateKey, EventID] = {}
        for event_id, pair in pairs.items():
            if state_before.setdefault(pair, event_id) != event_id:
                raise InvalidEvent("A state was given that has two events for the same")
        if CREATE not in state_before:
            raise InvalidEvent("A state was given without the room's creation")
        return state_before

    async def _fetch_each(
        self, servers: Sequence[ServerName], room: Room, event_ids: Iterable[EventID], allowance: Allowance
    ) -> list[VerifiedPDU]:
        """Events one by one, a few at a time, each from the first of the servers that has it."""
        limit = asyncio.Semaphore(CONCURRENT)
        silent: dict[ServerName, int] = {}

        async def fetch(event_id: EventID) -> JsonObject | None:
            async with limit:
                for server in servers:
                    if silent.get(server, 0) >= CONCURRENT:
                        continue
                    allowance.take_event()
                    try:
                        found = await self._questions.event(server, event_id)
                    except MatrixError as error:
                        silent[server] = silent.get(server, 0) + (error.http_status >= 500)
                        continue
                    if found:
                        return found[0]
            return None

        wanted = list(event_ids)
        answers = await asyncio.gather(*(fetch(event_id) for event_id in wanted), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        found = [answer for answer in answers if isinstance(answer, dict)]
        return await self.verified(room, found, set(wanted))

    async def verified(
        self,
        room: Room,
        jsons: Sequence[JsonObject | bytes],
        wanted: set[EventID] | None = None,
        *,
        is_old: bool = False,
    ) -> list[VerifiedPDU]:
        """Those that are events of this room, and wanted, and that hold (steps 1 to 3); each once."""
        verified: dict[EventID, VerifiedPDU] = {}
        for start in range(0, len(jsons), VERIFIED_AT_ONCE):
            pdus: dict[EventID, PDU] = {}
            for json in jsons[start : start + VERIFIED_AT_ONCE]:
                try:
                    read = canonical_json.loads_object(json, max_depth=None) if isinstance(json, bytes) else json
                    pdu = event_format.parse(read, room.rules, is_old=is_old)
                except InvalidInput:
                    continue
                is_new = pdu.event_id not in verified and (wanted is None or pdu.event_id in wanted)
                if is_new and pdu.room_id == room.room_id:
                    pdus[pdu.event_id] = pdu
            for result in await self._verify(list(pdus.values())):
                if isinstance(result, VerifiedPDU):
                    verified[result.event_id] = result
            await asyncio.sleep(0)  # others have their turn
        return list(verified.values())

    async def servers(self, room: Room, origin: ServerName) -> list[ServerName]:
        """Whom to ask: the origin, then other servers in the room."""
        async with self._database.read() as tx:
            others = await memberships.some_servers(tx, room.number, sample=1_000)
        return [origin, *(name for name in others if name not in (origin, self._server_name))][:MAX_SERVERS]

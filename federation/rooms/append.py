"""`RoomWriter`: the only writer of events, ours and theirs (Server-Server API, "PDUs", "Authorization rules").

A local event is built on the room's head in one step of the event loop, so the events of one process form a line
however many are in flight; the log then refuses those whose room moved on in a way that matters, and they are
authorised again. Where the room uses a policy server, an event waits for that server's signature in between; what
comes meanwhile does not wait for it, and the graph forks.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.auth_events import CREATE, POWER_LEVELS
from federation.protocol.errors import AuthRuleViolated, Forbidden, MatrixError, NotFound
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.policy_server import POLICY
from federation.protocol.power_levels import PowerLevels
from federation.protocol.relations import related_event, thread_of
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, StateKey, UserID
from federation.rooms.append_join import Awaited, GivenEntry, Guard, JoinAppender
from federation.rooms.append_line import LineAppender
from federation.rooms.append_remote import HELD, RemoteAppender
from federation.rooms.append_remote import Outcome as Outcome
from federation.rooms.append_remote import Received as Received
from federation.rooms.building import Builder, keys_of, newest, template
from federation.rooms.contention import Contention
from federation.rooms.counting import Counter
from federation.rooms.heads import RoomHead, RoomHeads
from federation.rooms.history import HistoryAppender
from federation.rooms.incomplete_rooms import BeingJoined, StateBefore
from federation.rooms.outliers import OutlierAppender
from federation.rooms.placing import Circumstances, Sending
from federation.rooms.policy_servers import PolicyServers, Unendorsed
from federation.rooms.state import MissingEvents
from storage import events, rooms
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.events import NewEvent, StateWrite
from storage.log import Log
from storage.log_entries import AlreadyWritten, Change, Conflict, Entry, Work
from storage.memberships import Membership
from storage.rooms import Room

MAX_SAME_ROOMS = 100
"""Rooms by the same user, alike to the last byte, in one millisecond."""

PROTECTED_TYPES = frozenset(("m.room.create", "m.room.server_acl"))
"""Without their content a room is broken, or shut to every server: nobody redacts them here."""

MAX_REFUSED = 5
"""Times that an entry of the state is looked up that is still to come."""
MAX_ASKED = 3
"""Times that a policy server is asked for one event: the room may change its key meanwhile."""

RoomWork = Callable[[Tx, Room], Awaitable[Any]]
"""What is written together with a new room's first events, such as its alias."""


class Sent(Struct, frozen=True):
    """Events that are in the log."""

    events: Sequence[VerifiedPDU]
    position: int
    """The last one's position."""


class RoomWriter:
    """Appends events to rooms."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        heads: RoomHeads,
        counter: Counter,
        policies: PolicyServers,
        signer: tuple[ServerName, SigningKey],
    ) -> None:
        self._database = database
        self._log = log
        self._heads = heads
        self._counter = counter
        server_name, _ = signer
        self._builder = Builder(*signer)
        self._policies = policies
        self._remote = RemoteAppender(
            database=database, log=log, counter=counter, policies=policies, server_name=server_name
        )
        self._line = LineAppender(database=database, log=log, heads=heads, counter=counter, policies=policies)
        self._outliers = OutlierAppender(database)
        self._history = HistoryAppender(database)
        self._joins = JoinAppender(database=database, log=log, server_name=server_name)

    async def get_room(self, room_id: str) -> Room:
        """The room with this ID; raises NotFound."""
        room = rooms.known(self._database.memory, room_id)
        if room is None:
            async with self._database.read() as tx:
                room = await rooms.find(tx, room_id)
            if room is None:
                raise NotFound("There is no such room")
        return room

    async def create_room(
        self, rules: RoomVersionRules, drafts: Sequence[Draft], *, room_id: RoomID | None, work: RoomWork | None = None
    ) -> tuple[Room, Sent]:
        """A new room from its first events, of which the first is `m.room.create`: all of them, or none.

        `room_id` is None where the create event's hash makes it; the drafts' own room IDs are not read. No policy
        server is asked: nobody has joined yet.
        """
        create, room = await self._create_room(rules, drafts[0], room_id)
        head = self._heads.add_new(room)
        change = RoomEvents(room=room, new=[], expected_version=0, new_version=0, head=head)
        try:
            self._add(change, head, create, None, None)
            for draft in drafts[1:]:
                self._add(
                    change, head, self._builder.authorised(head, replace(draft, room_id=room.room_id)), None, None
                )
            return room, await self._enqueue(change, head, None if work is None else lambda tx: work(tx, room))
        except MatrixError:
            self._heads.drop(head)
            async with self._database.transaction() as tx:
                await rooms.delete_empty(tx, room.number)
            raise

    async def _create_room(
        self, rules: RoomVersionRules, draft: Draft, room_id: RoomID | None
    ) -> tuple[VerifiedPDU, Room]:
        """The create event and the room. Where its hash makes the ID, the same twice in a millisecond needs another."""
        now_ts = time.time_ns() // 1_000_000
        for attempt in range(MAX_SAME_ROOMS):
            create = self._builder.build_create(rules, draft, room_id, now_ts + attempt)
            async with self._database.transaction() as tx:
                room = await rooms.create_new(tx, create.room_id, rules)
            if room is not None:
                return create, room
        raise Conflict("There are too many rooms like this")

    async def append(
        self,
        drafts: Sequence[Draft],
        *,
        device: int | None = None,
        txn_id: str | None = None,
        work: Work | None = None,
        decided_by: Mapping[StateKey, VerifiedPDU | None] | None = None,
    ) -> Sent:
        """Append events of our users to one room, in order: all of them, or none.

        Raises AuthRuleViolated when the room's state does not allow one of them, NotFound for an unknown room, and
        for a redaction Forbidden or NotFound for what its sender may not redact. Where the room uses a policy server
        that does not recommend one of them, raises what that said, and PeerFailed where it cannot be asked.
        `work` is committed with them. `device` and `txn_id` are those of the client's request; where
        they made an event before, raises AlreadyWritten. `decided_by` are entries of the state as the caller saw them:
        raises Conflict where they are others by now, or somebody changed the room meanwhile, which may settle what
        there is to do.
        """
        await self._counter.settle()
        room = await self.get_room(drafts[0].room_id)
        keys = [*keys_of(room, drafts), *(decided_by or ())]
        for draft in drafts:
            if draft.redacts is not None:
                await self._check_may_redact(room, draft.sender, draft.redacts)
        sending = Sending(device=device, txn_id=txn_id, work=work)
        contention, has_heard = Contention(), False
        while True:
            head = await self._head_with(room, keys)
            if decided_by is not None and any(not _is_same(head.state[key], decided_by[key]) for key in decided_by):
                raise Conflict("The room's state has changed meanwhile")
            try:
                built = self._builder.build_all(head, drafts)
            except AuthRuleViolated:  # by now it may be allowed
                if has_heard or not await self._log.catch_up():
                    raise
                has_heard = True
                continue
            try:
                if head.state.get(POLICY) is None:
                    return await self._append_built(head, built, sending)
                return await self._append_endorsed(head, built, sending)
            except Conflict as error:
                may_repeat = isinstance(error, AlreadyWritten) and (txn_id is not None or work is not None)
                if may_repeat or decided_by is not None:
                    raise
                await contention.give_way(error)

    async def _append_built(self, head: RoomHead, built: Sequence[VerifiedPDU], sending: Sending) -> Sent:
        """Append what was built on the head as it is now."""
        change = RoomEvents(room=head.room, new=[], expected_version=head.version, new_version=head.version, head=head)
        if any(pdu.state_key is not None for pdu in built):
            change.expected_extremities = frozenset(head.extremities)
        for pdu in built:
            self._add(change, head, pdu, sending.device, sending.txn_id)
        return await self._enqueue(change, head, sending.work)

    async def _append_endorsed(self, head: RoomHead, built: Sequence[VerifiedPDU], sending: Sending) -> Sent:
        """Append what was built on the head once the policy server has signed it.

        If others were faster meanwhile, a single event goes beside theirs: unless it is state and theirs was, too.
        """
        version, extremities = head.version, set(head.extremities)
        built = await self._policies.endorse_all(head.room, head.state[POLICY], built)
        is_at_end = self._heads.find(head.room) is head and head.version == version
        if is_at_end and head.extremities.keys() == extremities:
            return await self._append_built(head, built, sending)
        if len(built) > 1:
            raise Conflict("The room's graph has grown meanwhile")
        how = Circumstances(
            is_local=True,
            sending=sending,
            at_version=None if built[0].state_key is None else version,
        )
        try:
            received = await self._remote.append(built[0], how=how)
        except (MissingEvents, Unendorsed):
            raise Conflict("What the event was built on is no longer so") from None
        return Sent(built, received.position)

    async def catch_up(self) -> bool:
        """Hear of what other processes have done by now; whether there was anything.

        For whoever is about to answer that something is so already, or may not be: a user may have changed that a
        moment ago by way of another process.
        """
        return await self._log.catch_up()

    async def append_remote(
        self,
        pdu: VerifiedPDU,
        *,
        state_before: StateBefore | None = None,
        changes: Sequence[Change] = (),
    ) -> Received:
        """Append a verified event of another server where it belongs in its room's graph, accepted or not.

        Raises MissingEvents for events that it cites and that are not held, and, unless `state_before` is given, for
        previous events. `state_before` is the whole state before the event, or how it differs from one; its events, and
        what authorises them, must be held. An event that is here already is a duplicate, and nothing happens; one that
        is here as an outlier gets its place in the room's history, or at its end, where nothing that counts here has
        followed it. `changes` are committed with it, or after that.

        A policy server that the room uses, and that has not signed the event, is asked to, before anything is read or
        written; what it does not sign then, for whatever reason, is soft-failed.
        """
        received = await self._append_asking(pdu, state_before, Circumstances(changes=changes))
        if received.position == HELD:
            return await self._place_held(pdu, state_before, received, changes)
        return received

    async def append_signed(self, pdu: VerifiedPDU, *, state_before: StateBefore | None = None) -> Received:
        """As `append_remote`, for an event of our own user that another server had to see or sign first."""
        received = await self._append_asking(pdu, state_before, Circumstances(is_local=True))
        if received.position == HELD:
            return await self._place_held(pdu, state_before, received)
        return received

    async def _append_asking(self, pdu: VerifiedPDU, state_before: StateBefore | None, how: Circumstances) -> Received:
        """Append an event; where the policy server that the room uses has not signed it, that is asked before."""
        for _ in range(MAX_ASKED):
            try:
                return await self._remote.append(pdu, state_before, how)
            except Unendorsed as unendorsed:
                try:
                    pdu = await self._policies.endorse(unendorsed.policy, pdu)
                except MatrixError as error:
                    how = replace(how, refusal=error.message)
        return await self._remote.append(pdu, state_before, replace(how, refusal="The room changes its policy server"))

    async def _place_held(
        self,
        pdu: VerifiedPDU,
        state_before: StateBefore | None,
        received: Received,
        changes: Sequence[Change] = (),
    ) -> Received:
        """Give an outlier its place; one that is soft-failed stays as it is, since nobody may see it."""
        contention = Contention()
        room = await self.get_room(pdu.room_id)
        while received.outcome is not Outcome.SOFT_FAILED:
            try:
                await self._history.place_held(room, pdu, state_before)
                break
            except Conflict as error:
                await contention.give_way(error)
        if changes:
            await self._log.append(Entry(changes=list(changes)))
        return replace(received, position=0)

    async def append_join(
        self,
        pdu: VerifiedPDU,
        state_before: Sequence[GivenEntry],
        guard: Guard | None = None,
        awaited: Awaited | None = None,
    ) -> Received:
        """Append the join of our user to a room that nobody of ours is in, with the whole state before it.

        The state's events are held, and allow the join. What the room had here before becomes an older part of it.
        A large state is written in several transactions: `guard` raises in each once another process does the same.
        With `awaited` it is not the whole state: it lacks members, and the room has to be new here.
        """
        return await self._joins.append(pdu, state_before, guard, awaited)

    async def append_remote_line(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[Received]:
        """Append as many of the first of these events as simply continue the room's end, in one entry.

        Answers what became of those: each was accepted, or is a duplicate. `append_remote` takes the next one.
        """
        return await self._line.append(room, pdus)

    async def append_outliers(self, room: Room, pdus: Sequence[VerifiedPDU]) -> set[EventID]:
        """Hold verified events of the room without a place in its graph: auth chains, states given by others.

        What they cite must be here or among them; an event of which that is not so is left out. Answers which of
        them are held now and were not rejected.
        """
        return await self._outliers.append(room, pdus)

    async def state_for(self, room: Room, keys: Sequence[StateKey]) -> dict[StateKey, VerifiedPDU]:
        """The entries of the room's state that the next event would be built on. For decisions about writing only:
        readers go through `reader.py`."""
        head = await self._head_with(room, keys)
        return {key: pdu for key in keys if (pdu := head.state.get(key)) is not None}

    async def template(self, draft: Draft) -> JsonObject:
        """What a user of another server would send next, for their server to complete: neither hashed nor signed.

        Raises AuthRuleViolated when the room's state does not allow it. The signature of the server that lets the user
        in, where one does, is taken as given: it can only follow.
        """
        room = await self.get_room(draft.room_id)
        return template(await self._head_with(room, keys_of(room, [draft])), draft)

    async def build(self, draft: Draft) -> VerifiedPDU:
        """An event of our user that is authorised and signed, but not in the room: another server has to sign it
        first. Then `append_signed` takes it. Raises as `append`."""
        room = await self.get_room(draft.room_id)
        head = await self._head_with(room, keys_of(room, [draft]))
        pdu = self._builder.authorised(head, draft)
        (pdu,) = await self._policies.endorse_all(room, head.state.get(POLICY), [pdu])
        return pdu

    async def endorsed(self, room: Room, pdu: VerifiedPDU) -> VerifiedPDU:
        """What another server would have us write, signed by the policy server that the room uses, if it uses one.

        Raises what that refused with, and PeerFailed where it cannot be asked.
        """
        state = await self.state_for(room, [POLICY])
        return (await self._policies.endorse_all(room, state.get(POLICY), [pdu]))[0]

    async def newest_event_id(self, room: Room) -> EventID:
        """The event that the room's next one will refer to first."""
        head = await self._head_with(room, (CREATE,))
        return newest(head.extremities)[0]

    async def power_levels(self, room: Room) -> PowerLevels:
        """The room's power levels now."""
        state = await self.state_for(room, (CREATE, POWER_LEVELS))
        return PowerLevels.from_state(state.get(POWER_LEVELS), state[CREATE])

    async def _head_with(self, room: Room, keys: Sequence[StateKey]) -> RoomHead:
        """The room's head, once all of these entries are known: of a member who is not, when the room is complete."""
        head, refused = self._heads.find(room), 0
        while head is None or head.is_broken or any(key not in head.state for key in keys):
            try:
                await self._heads.load(room, keys)
            except BeingJoined:
                refused += 1
                if refused > MAX_REFUSED:
                    raise
                await self._heads.incomplete.wait(room.number, was_refused=True)
            head = self._heads.find(room)
        return head

    def _add(
        self, change: RoomEvents, head: RoomHead, pdu: VerifiedPDU, device: int | None, txn_id: str | None
    ) -> None:
        """Put an authorised event into the change and move the head past it."""
        power_levels = head.state.get(POWER_LEVELS)
        create = head.state.get(CREATE)
        levels = None if create is None else PowerLevels.from_state(power_levels, create)
        counted = self._counter.count(change.room, pdu, levels, head.joined)
        version = head.version
        head.advance(pdu)
        if pdu.state_key is not None:
            change.state.append(
                StateWrite(
                    line=0,
                    type=pdu.type,
                    state_key=pdu.state_key,
                    event_id=pdu.event_id,
                    since=head.version,
                    membership=Membership.of(pdu.membership) if pdu.type == "m.room.member" else None,
                )
            )
            if pdu.type == "m.room.member":
                change.concerned = (*change.concerned, UserID(pdu.state_key))
        change.new_version = head.version
        change.new.append(
            NewEvent(
                pdu=pdu,
                line=0,
                version=version,
                trunk_version=head.version,
                device=device,
                txn_id=txn_id,
                thread=thread_of(pdu.json),
                relation=related_event(pdu.content),
                notifies=counted.notifies,
                highlights=counted.highlights,
                personal=counted.personal,
                is_local=True,
                redacts=pdu.redacts if pdu.type == "m.room.redaction" else None,
            )
        )

    async def _enqueue(self, change: RoomEvents, head: RoomHead, work: Work | None) -> Sent:
        built = [event.pdu for event in change.new]
        entry = Entry(changes=[change], work=work, on_refused=lambda: self._heads.drop(head))
        appended = await self._log.append(entry)
        return Sent(built, appended.position)

    async def _check_may_redact(self, room: Room, sender: UserID, target: EventID) -> None:
        """A redaction counts when it comes from the event's server or with the level for it ("Redactions")."""
        async with self._database.read() as tx:
            stored = (await events.by_id(tx, [target])).get(target)
        if stored is None or stored.room != room.number:
            raise NotFound("There is no such event in this room")
        if stored.type in PROTECTED_TYPES:
            raise Forbidden(f"An event of type {stored.type} cannot be redacted")
        if stored.sender != sender:
            levels = await self.power_levels(room)
            if levels.of_user(sender) < levels.redact:
                raise Forbidden("You may not redact this event")


def content_of(pdu: VerifiedPDU | None) -> JsonObject:
    """The content of a state event that may be absent."""
    return {} if pdu is None else pdu.content


def _is_same(one: VerifiedPDU | None, other: VerifiedPDU | None) -> bool:
    return one is other or (one is not None and other is not None and one.event_id == other.event_id)

"""Joining rooms of other servers (Server-Server API, "Joining rooms", "Restricted rooms").

A join is a durable job, one a room: its row stands before the first server is asked, and the signed event stands in it
before it is sent. Who wants to join the same room meanwhile waits for the job. When the server dies on the way, the
next process sends the same event again, to which a resident server gives the same answer, or begins anew.

The answer is taken apart as it streams in (`join_requests.py`, `received_state.py`); what it holds becomes visible by
the join event alone.

A large room is usable before all of its state is here. Where the whole answer takes more than a moment, the same event
is sent again, and the server asked to leave the members out. What that gives is put into the room, and the user is in
it: it lacks members then (`incomplete_rooms.py`), until the whole state is here (`completing.py`), from that server or
any other that it named. That is tried until it succeeds, for as long as one of our users is in the room.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from federation.protocol import canonical_json, event_format
from federation.protocol.errors import (
    InvalidInput,
    MatrixError,
    PeerFailed,
    RemoteServerError,
    Unavailable,
)
from federation.protocol.member_template import Wish
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.room_versions import RoomVersionRules, get_rules
from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.append import Outcome, RoomWriter
from federation.rooms.completing import RoomCompletion
from federation.rooms.doors import RoomDoors
from federation.rooms.early_joins import EarlyJoins, Whole, check_join, countersigned
from federation.rooms.handshakes import Handshakes
from federation.rooms.join_requests import MAX_STATE_SERVERS, JoinRequest
from federation.rooms.peer_answers import Refusals, candidates
from federation.rooms.received_state import ReceivedState
from storage import background, dead_letters, remote_joins, rooms, state_ahead
from storage.database import Database
from storage.figures import Figures
from storage.log import Log
from storage.remote_joins import RemoteJoin, SignedJoin

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 900.0
LEASE_SECONDS = 3.0
"""After so long without a sign of life another process takes a join over: who has none looks twice in that time."""
MAX_ATTEMPTS = 8
"""How often a join that nobody waits for any longer is tried again."""
PATIENCE_SECONDS = 3.0
"""For how long the whole state alone is waited for."""
RETRY_SECONDS, MAX_RETRY_SECONDS = 15, 600
"""How soon members are asked for again that nobody gave, and how much later each time."""
_LOOK_AGAIN_SECONDS = 0.5


class RemoteJoins:
    """The joins by way of other servers that are under way."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        writer: RoomWriter,
        handshakes: Handshakes,
        doors: RoomDoors,
    ) -> None:
        self._database = database
        self._writer = writer
        self._handshakes = handshakes
        self._doors = doors
        self._server_name = handshakes.server_name
        self._lease_seconds = LEASE_SECONDS
        self.answer_seconds = ANSWER_SECONDS
        self.patience_seconds = PATIENCE_SECONDS
        self._early = EarlyJoins(database, writer, handshakes)
        self._completion = RoomCompletion(database, log, handshakes.server_name)
        self._tasks: dict[RoomID, asyncio.Task[None]] = {}
        self._received: dict[RoomID, int] = {}
        """Events of the state that have come."""
        self._results = dict.fromkeys(("joined", "failed", "put_off"), 0)
        self._placed: dict[RoomID, asyncio.Event] = {}
        """Of the tasks: set once the user is in the room, whatever is still to come."""
        self.observers: list[Callable[[], None]] = []
        """Called when events that came during a join are to be tried again."""

    async def join(self, wish: Wish, servers: Sequence[str]) -> bool:
        """Bring the user into the room by way of one of these servers; True once they are in it.

        Where somebody else's join of the room is under way, waits for its end and answers False: then it has to be
        looked at anew. Raises what a client is told when no server helped.
        """
        join = RemoteJoin(
            room_id=wish.room_id,
            user_id=wish.user_id,
            content=wish.content,
            servers=tuple(candidates(servers, besides=self._server_name)),
            started_ts=self._database.now_ms(),
        )
        async with self._database.transaction() as tx:
            is_first = bool(join.servers) and await remote_joins.insert(tx, join, leased_until_ts=self._lease_end())
            running = None if is_first else await remote_joins.find(tx, wish.room_id)
        if is_first:
            await self._until_placed(wish.room_id, self._start(join))
            return True
        if running is None and not join.servers:
            raise Refusals("").error
        if running is not None and running.placed is not None:
            async with self._database.read() as tx:
                room = await rooms.find(tx, wish.room_id)
            if room is not None and not await self._doors.is_ours(room):  # they have left since
                await self._completion.abandon(running)
            return False
        task = self._tasks.get(wish.room_id)
        if task is None:
            await self._wait_for_another_process(wish.room_id)
            return False
        if running is not None and running.user_id == wish.user_id:
            await self._until_placed(wish.room_id, task)
            return True
        with suppress(MatrixError):
            await self._until_placed(wish.room_id, task)
        return False

    async def _until_placed(self, room_id: RoomID, task: "asyncio.Task[None]") -> None:
        """Wait until who joins is in the room; raises why they are not."""
        placed = self._placed[room_id]
        waiting = asyncio.create_task(placed.wait())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not placed.is_set():
            await asyncio.shield(task)

    async def version_of(self, room_id: RoomID) -> RoomVersionRules | None:
        """The version of a room that is being joined, as the server says by way of which; None for any other."""
        async with self._database.read() as tx:
            join = await remote_joins.find(tx, room_id)
        return None if join is None or join.signed is None else get_rules(join.signed.room_version)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "remote_joins": len(self._tasks),
            "remote_join_events": sum(self._received.values()),
            "remote_joins_ended_total": self._results,
        }

    async def run(self) -> None:
        """Keep this process's joins leased, and take over those that nobody is at work on."""
        try:
            while True:
                with suppress(Unavailable):  # logged where it arose
                    await self._look_after()
                await asyncio.sleep(self._lease_seconds / (4 if self._tasks else 2))
        finally:
            tasks = dict(self._tasks)
            await background.end(tasks.values())
            if tasks:
                with suppress(Unavailable):
                    async with self._database.transaction() as tx:
                        await remote_joins.extend_leases(tx, dict.fromkeys(tasks, 0), leased_until_ts=0)

    async def note_progress(self) -> None:
        """Keep this process's joins leased, and note how far they are."""
        received = {room_id: self._received.get(room_id, 0) for room_id in self._tasks}
        if received:
            async with self._database.transaction() as tx:
                await remote_joins.extend_leases(tx, received, leased_until_ts=self._lease_end())

    async def _look_after(self) -> None:
        await self.note_progress()
        now_ts = self._database.now_ms()
        async with self._database.read() as tx:
            if not await remote_joins.are_any_left(tx, now_ts):
                return
        async with self._database.transaction() as tx:
            found = await remote_joins.take_over(tx, now_ts=now_ts, leased_until_ts=self._lease_end(), limit=5)
        for join in found:
            if join.room_id not in self._tasks:
                logger.info("going on with the join of %s to %s", join.user_id, join.room_id)
                self._start(join)

    def _start(self, join: RemoteJoin) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._run(join), name=f"join of {join.room_id}")
        self._tasks[join.room_id] = task
        self._placed[join.room_id] = asyncio.Event()
        task.add_done_callback(lambda done: self._forget(join.room_id, done))
        return task

    def _forget(self, room_id: RoomID, task: "asyncio.Task[None]") -> None:
        if self._tasks.get(room_id) is task:
            del self._tasks[room_id]
            self._received.pop(room_id, None)
            self._placed.pop(room_id, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MatrixError):
            logger.error("the join to %s broke off", room_id, exc_info=error)

    async def _wait_for_another_process(self, room_id: RoomID) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            async with self._database.read() as tx:
                found = await remote_joins.find(tx, room_id)
            if found is None or found.placed is not None:
                return
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    # --- one join

    async def _run(self, join: RemoteJoin) -> None:
        """Do it; the row goes when it is over, and stays when this process is stopped on the way."""
        try:
            await self._join(join)
        except remote_joins.TakenOver:
            raise
        except MatrixError as error:
            if not await self._goes_on(join, error):
                await self._fail(join, error)
            raise
        await self._end(join)

    async def _goes_on(self, join: RemoteJoin, error: MatrixError) -> bool:
        """Whether the join counts already: then its room's members are asked for again, sooner or later."""
        async with self._database.transaction() as tx:
            placed = await remote_joins.find(tx, join.room_id)
            if placed is None or placed.placed is None or placed.attempts != join.attempts:
                return False
            room = await rooms.find(tx, join.room_id)
            seconds = min(RETRY_SECONDS * join.attempts, MAX_RETRY_SECONDS)
            await remote_joins.put_off(tx, join, self._database.now_ms() + seconds * 1000)
        if room is not None and not await self._doors.is_ours(room):
            await self._completion.abandon(placed)
            return True
        logger.warning("the members of %s are asked for again in %d seconds: %s", join.room_id, seconds, error)
        return True

    async def _fail(self, join: RemoteJoin, error: MatrixError) -> None:
        """It did not come about: nothing is left of it, or it is tried again."""
        may_pass = isinstance(error, PeerFailed | RemoteServerError | Unavailable)
        if may_pass and 1 < join.attempts < MAX_ATTEMPTS:  # nobody waits for it: the servers may be back later
            later = self._database.now_ms() + 60_000 * join.attempts
            logger.info("the join of %s to %s is tried again later: %s", join.user_id, join.room_id, error)
            async with self._database.transaction() as tx:
                await remote_joins.put_off(tx, join, later)
            self._results["put_off"] += 1
            return
        await self._give_up(join)

    async def _end(self, join: RemoteJoin) -> None:
        self._results["joined"] += 1
        async with self._database.transaction() as tx:
            await remote_joins.delete(tx, join)
            waited = await dead_letters.retry_room(tx, join.room_id, self._database.now_ms())
        if waited:
            for observer in self.observers:
                observer()

    async def _give_up(self, join: RemoteJoin) -> None:
        self._results["failed"] += 1
        async with self._database.transaction() as tx:
            room = await rooms.find(tx, join.room_id)
            if await remote_joins.delete(tx, join) and room is not None:
                await state_ahead.discard(tx, room.number)

    async def _join(self, join: RemoteJoin) -> None:
        refusals = Refusals(f"joining {join.room_id} for {join.user_id}")
        wish = Wish(room_id=join.room_id, user_id=join.user_id, membership="join", content=join.content)
        if join.signed is not None and join.placed is not None:
            self._note_placed(join)
            pdu = _signed_before(join, join.signed)
            return await self._complete(join, self._request(join, pdu), None)
        if join.signed is not None:
            try:
                return await self._send(join, join.signed.destination, _signed_before(join, join.signed))
            except Unavailable:
                raise
            except MatrixError as error:
                refusals.note(join.signed.destination, error)
        for destination in join.servers:
            try:
                pdu = await self._handshakes.build(wish, destination)
                async with self._database.transaction() as tx:
                    await remote_joins.note_signed(tx, join.room_id, _signed(destination, pdu))
                return await self._send(join, destination, pdu)
            except Unavailable:
                raise
            except MatrixError as error:
                refusals.note(destination, error)
        raise refusals.error

    async def _send(self, join: RemoteJoin, destination: ServerName, pdu: VerifiedPDU) -> None:
        """Send the join event, take the state from the answer, and put both into the room."""
        started = time.monotonic()
        request = self._request(join, pdu)
        whole = asyncio.create_task(request.send(destination))
        try:
            placed = await self._early.place(join, request, whole, destination, patience=self.patience_seconds)
            if placed is not None:
                self._note_placed(join)
                join = replace(join, placed=placed, signed=_signed(destination, pdu))
                return await self._complete(join, request, whole)
            state, rest = await whole
            await self._take(join, state, pdu, rest)
        finally:
            await _discard(whole)
        logger.info(
            "joined %s for %s by way of %s: %d events, %d dropped, %d rejected, %.1f seconds",
            join.room_id,
            join.user_id,
            destination,
            len(state),
            state.dropped,
            len(state.rejected),
            time.monotonic() - started,
        )

    def _note_placed(self, join: RemoteJoin) -> None:
        self._placed[join.room_id].set()

    async def _complete(self, join: RemoteJoin, request: JoinRequest, whole: Whole | None) -> None:
        """Bring the members into a room that was joined without them: from what is on its way, or from any server that
        was said to be in the room. Raises Unavailable where none gives them."""
        placed = join.placed
        if placed is None or join.signed is None:
            raise RuntimeError("the join was not placed")
        async with self._database.read() as tx:
            ids = await remote_joins.state_ids(tx, join.room_id)
        if whole is not None:
            try:
                state, _ = await whole
                return await self._completion.complete(join, request.pdu, state, ids)
            except Unavailable:
                raise
            except MatrixError as error:
                logger.info("%s has not given the members of %s: %s", join.signed.destination, join.room_id, error)
        servers = dict.fromkeys((join.signed.destination, *placed.servers_in_room))
        first = (join.attempts - 1) * MAX_STATE_SERVERS % len(servers)  # others each time
        try:
            asked = [*servers, *servers][first : first + MAX_STATE_SERVERS]
            believed = asked if join.attempts > MAX_ATTEMPTS else [join.signed.destination]
            state = await request.whole_state(asked, ids, believed)
            try:
                await self._completion.complete(join, request.pdu, state, ids)
            finally:
                state.close()
        except Unavailable:
            raise
        except MatrixError as error:
            raise Unavailable(f"Nobody has given the members: {error.message}") from error

    def _request(self, join: RemoteJoin, pdu: VerifiedPDU) -> JoinRequest:
        note = partial(self._received.__setitem__, join.room_id)
        return JoinRequest(self._handshakes, pdu, answer_seconds=self.answer_seconds, note=note)

    async def _take(self, join: RemoteJoin, state: ReceivedState, pdu: VerifiedPDU, rest: JsonObject) -> None:
        """Put the join and the whole state before it into the room."""
        async with self._database.read() as tx:
            room = await rooms.find(tx, join.room_id)
        if room is not None and room.rules.version != pdu.rules.version:
            raise InvalidInput("The room has another version than it had before", "M_BAD_JSON")
        await state.judge(self._database, room)
        pdu = await countersigned(self._handshakes, pdu, rest)
        check_join(state, pdu)
        await self._place(join, state, pdu)

    async def _place(self, join: RemoteJoin, state: ReceivedState, pdu: VerifiedPDU) -> None:
        async with self._database.transaction() as tx:
            room = await rooms.create(tx, pdu.room_id, pdu.rules)
        entries = await state.store(self._database, room)
        if await self._doors.is_ours(room):  # somebody else's user had to let ours in
            given = {entry.key: entry.event_id for entry in entries}
            received = await self._writer.append_signed(pdu, state_before=given)
        else:
            guard = partial(remote_joins.check_held, join=join)
            received = await self._writer.append_join(pdu, entries, guard)
        if received.outcome not in (Outcome.ACCEPTED, Outcome.DUPLICATE):
            raise RemoteServerError(f"The join was not accepted: {received.reason}", is_transient=False)

    def _lease_end(self) -> int:
        return self._database.now_ms() + int(self._lease_seconds * 1000)


def _signed(destination: ServerName, pdu: VerifiedPDU) -> SignedJoin:
    return SignedJoin(destination=destination, room_version=pdu.rules.version, canonical=pdu.canonical)


async def _discard(whole: Whole) -> None:
    """End what brings the state; give the disk back."""
    whole.cancel()
    (result,) = await asyncio.gather(whole, return_exceptions=True)
    if not isinstance(result, BaseException):
        result[0].close()


def _signed_before(join: RemoteJoin, signed: SignedJoin) -> VerifiedPDU:
    """The event that was signed, and maybe sent, before this process took over."""
    rules = get_rules(signed.room_version)
    pdu = event_format.parse(canonical_json.loads_object(signed.canonical, max_depth=None), rules)
    return event_format.from_stored(signed.canonical, pdu.event_id, join.room_id, rules)

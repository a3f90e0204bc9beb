"""Sending to other servers what happens here: a follower of the log (Server-Server API, "PDUs", "EDUs").

A local event goes to the servers that had a joined member in its room before it or have one after it, unless the
room's ACL denies them; what ends the membership of somebody who was only invited goes to their server besides. Events
of other servers are theirs to send, but for those that we helped to make (`EventRelayed`). What makes our first user a
member goes by the server that helped us.

Several processes share the work: each sends to the shards of servers that it holds (`storage/outbox_leases.py`), every
process follows the log, and each keeps only what concerns its own. Nothing in memory is needed: what a server has is
known from the positions that are stored, and what it lacks is read from the log. So every event arrives, at least
once, whoever is killed when.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from federation.outbound.availability import Availability
from federation.outbound.delivery import Delivery, came_by_others, queued, takes_away
from federation.outbound.destinations import Destination
from federation.outbound.room_servers import RoomServers, StateChange
from federation.protocol.errors import MatrixError, PeerRefused, PeerUnreachable, Unavailable
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import memberships, outbox, outbox_leases, rooms
from storage.append_events import RoomEvents
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.log import Change
from storage.outbox import EventRelayed, OutgoingDeviceChange, OutgoingEvent, OutgoingMessages, OutgoingReceipt
from storage.receipts import ReceiptMoved
from storage.rooms import Room
from storage.tail import Tail

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MAX_SENDING = 100
"""Transactions under way at once, to servers that answered before."""
MAX_TRYING = 30
"""The same, to servers of which that is not known: who does not answer takes no place from who does."""
MAX_WAITING = 20_000
"""Changes that may wait to be looked at; beyond it they are read again from the log."""
SCANNED = 5_000
"""Positions of the log that are read at once."""
READ_AT_ONCE = 500
"""Events of these."""
MAX_ATTEMPTS = 3
"""To hand out an entry of the log that makes us fail."""
MAX_UNSAVED = 5_000
"""Positions by which what is stored may stay behind while nothing is sent."""
TYPING_SECONDS = 15.0
"""After which who still types is told of again: others forget it after 30."""
FORGET_SECONDS = 600.0
UNKNOWN = -1
MAX_KNOWN_GOOD = 50_000


@dataclass(frozen=True, slots=True)
class _Taken:
    """Shards that this process holds from now on."""

    positions: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Typing:
    room: int
    user_id: UserID
    is_typing: bool


@dataclass(frozen=True, slots=True)
class _Presence:
    user_id: UserID
    content: JsonObject


_Item = Change | _Taken | _Typing | _Presence


class Sender:
    """Follows the log, and sends."""

    def __init__(
        self,
        *,
        database: Database,
        tail: Tail,
        server_name: ServerName,
        delivery: Delivery,
        availability: Availability,
    ) -> None:
        self._database = database
        self._tail = tail
        self._server_name = server_name
        self._delivery = delivery
        self._availability = availability
        self._room_servers = RoomServers(database)
        self._process = secrets.token_urlsafe(9)
        self._waiting: deque[tuple[int, _Item]] = deque()
        self._has_waiting = asyncio.Event()
        self._was_lost = False
        self._seen = 0
        """The newest position of which the tail told."""
        self._position = 0
        """Up to here everything was handed to the destinations of the shards that are held."""
        self._saved = 0
        self._owned: set[int] = set()
        self._asked_for: set[int] = set()
        self._given: set[int] = set()
        """Those that are held and no longer wanted: others get them when nothing is under way to their servers."""
        self._lease_until = 0.0
        self._destinations: dict[ServerName, Destination] = {}
        self._refusals: dict[ServerName, int] = {}
        """Who answers, but took nothing so often, one time after the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._good: dict[ServerName, None] = {}
        self._sending = asyncio.Semaphore(MAX_SENDING)
        self._trying = asyncio.Semaphore(MAX_TRYING)
        self._typing_told: dict[tuple[int, UserID], float] = {}
        self._caught_up: set[ServerName] = set()
        self._has_dispatched = False
        self._forgot_at = time.monotonic()

    # --- what others tell

    def on_change(self, position: int, change: Change) -> None:
        """A view of the tail."""
        self._seen = position + change.width - 1
        if isinstance(change, RoomEvents):
            if not change.trunk and not any(self._is_ours(event.sender) for event in change.stored):
                return
        elif isinstance(change, DeviceListChanged):
            if change.seen_by is not None or not change.changed_in or not self._is_ours(change.user_id):
                return
        elif isinstance(change, ReceiptMoved):
            if change.is_private or not self._is_ours(change.user_id):
                return
        elif not isinstance(change, OutgoingMessages | EventRelayed):
            return
        self._put(self._seen, change)

    def typing(self, room: int, user_id: UserID, is_typing: bool) -> None:
        """A user types, or no longer does; those of other servers are passed over."""
        if not self._is_ours(user_id):
            return
        key, now = (room, user_id), time.monotonic()
        if not is_typing:
            self._typing_told.pop(key, None)
        elif now - self._typing_told.get(key, -TYPING_SECONDS) < TYPING_SECONDS:
            return
        else:
            self._typing_told[key] = now
        self._put(self._seen, _Typing(room, user_id, is_typing))

    def presence(self, user_id: UserID, content: JsonObject) -> None:
        """The presence of a user changed; of those of other servers nothing is told."""
        if self._is_ours(user_id):
            self._put(self._seen, _Presence(user_id, content))

    def wake(self, server: ServerName) -> None:
        """The server can be reached again, or should be tried."""
        destination = self._destinations.get(server)
        if destination is not None:
            self._start(destination)

    def _is_ours(self, user_id: str) -> bool:
        return user_id.endswith(self._server_name) and server_name_of(UserID(user_id)) == self._server_name

    def _put(self, last: int, item: _Item) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._was_lost = True
            self._forget_waiting()
        self._waiting.append((last, item))
        self._has_waiting.set()

    def _forget_waiting(self) -> None:
        self._waiting = deque(pair for pair in self._waiting if isinstance(pair[1], _Taken))

    # --- life

    async def start(self) -> None:
        """Begin at the tail's position; to be called before anything is appended."""
        self._position = self._saved = self._seen = self._tail.position
        async with self._database.transaction() as tx:
            await outbox_leases.prepare(tx)

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._dispatch_forever())
                tasks.create_task(self._tick_forever())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            try:
                await self._save()
                async with self._database.transaction() as tx:
                    await outbox_leases.resign(tx, self._process)
            except MatrixError:  # logged where it arose; who follows sends again what was not noted
                pass

    # --- handing out

    async def _dispatch_forever(self) -> None:
        attempts = 0
        while True:
            if not self._waiting and not self._was_lost:
                self._position = max(self._position, self._seen)
                self._has_waiting.clear()
                await self._has_waiting.wait()
            try:
                await self._dispatch_next()
                attempts = 0
            except Unavailable:  # logged where it arose
                await asyncio.sleep(TICK_SECONDS)
            except Exception:
                attempts += 1
                logger.exception("an entry of the log could not be handed out")
                await asyncio.sleep(0.1 * attempts)
                if attempts == MAX_ATTEMPTS:
                    self._was_lost = True  # by way of the database it may work
                elif attempts == 3 * MAX_ATTEMPTS:
                    logger.critical("other servers are not told of what is in the log up to %d", self._seen)
                    self._was_lost, self._position, attempts = False, self._seen, 0
                    self._forget_waiting()

    async def _dispatch_next(self) -> None:
        """Hand out the oldest change that waits; it stays until that is done."""
        if self._was_lost:
            self._forget_waiting()
            self._room_servers.forget_all()
            upto = self._seen
            await self._read_back(dict.fromkeys(self._owned, self._position), upto)
            self._was_lost, self._position = False, upto
            return
        last, item = self._waiting[0]
        await self._dispatch(last, item)
        if self._waiting and self._waiting[0][1] is item:
            self._waiting.popleft()
            self._position = max(self._position, last)

    async def _dispatch(self, last: int, item: _Item) -> None:
        match item:
            case RoomEvents():
                await self._dispatch_events(item)
            case EventRelayed():
                async with self._database.read() as tx:
                    event = await outbox.find_relayed(tx, last)
                if event is not None:
                    await self._hand_out(event, ())
            case DeviceListChanged():
                change = OutgoingDeviceChange(last, item.user_id, item.device_ids)
                for destination in self._wanted(await self._room_servers.now(item.changed_in)):
                    destination.add_device_change(change)
                    self._start(destination)
            case ReceiptMoved():
                receipt = OutgoingReceipt(last, item.room, item.user_id, item.thread, item.event_id, item.ts)
                for destination in self._wanted(await self._room_servers.now((item.room,))):
                    destination.add_receipt(receipt)
                    self._start(destination)
            case OutgoingMessages():
                for destination in self._wanted({message.destination for message in item.messages}):
                    destination.has_messages = True
                    self._start(destination)
            case _Taken():
                await self._begin(item.positions)
            case _Typing() | _Presence():
                await self._dispatch_short_lived(item)

    async def _dispatch_events(self, change: RoomEvents) -> None:
        room = change.room.number
        stored = [
            event for event in change.stored if event.flags == 0 and self._is_ours(event.sender) and event.is_readable
        ]
        if not stored:
            await self._room_servers.advance(room, change.trunk)
            return
        first, high = stored[0], max(event.trunk_version for event in stored)
        low = first.version if first.line == 0 else first.trunk_version
        before, servers = await self._room_servers.between(room, low, high, change.trunk)
        for event in stored:
            is_membership = event.type == "m.room.member" and event.state_key is not None
            outgoing = OutgoingEvent(
                position=event.position,
                room=room,
                event_id=event.event_id,
                low=low,
                high=high,
                sender=event.sender,
                target=UserID(event.state_key or "") if is_membership else None,
                canonical=event.canonical,
            )
            self._queue(outgoing, before, servers)

    async def _hand_out(self, event: OutgoingEvent, changes: Sequence[StateChange]) -> None:
        before, servers = await self._room_servers.between(event.room, event.low, event.high, changes)
        self._queue(event, before, servers)

    def _queue(self, event: OutgoingEvent, before: Collection[ServerName], servers: Collection[ServerName]) -> None:
        waiting = queued(event)
        for destination in self._wanted(self._recipients(event, before, servers)):
            destination.add_event(waiting)
            self._start(destination)

    def _recipients(
        self, event: OutgoingEvent, before: Collection[ServerName], servers: Collection[ServerName]
    ) -> set[ServerName]:
        if came_by_others(event, self._server_name) and self._server_name not in before:
            return set()
        recipients = set(servers)
        if event.target is not None and takes_away(event):
            recipients.add(server_name_of(event.target))
        recipients.discard(server_name_of(event.sender))
        return recipients

    async def _dispatch_short_lived(self, item: _Typing | _Presence) -> None:
        in_rooms: Collection[int] = ()
        if isinstance(item, _Typing):
            in_rooms = (item.room,)
        else:
            async with self._database.read() as tx:
                in_rooms = await memberships.joined_rooms(tx, item.user_id)
        servers = await self._room_servers.now(in_rooms)
        reached = self._wanted(server for server in servers if not self._availability.seconds_left(server))
        known: Mapping[int, Room] = {}
        if reached and isinstance(item, _Typing):
            async with self._database.read() as tx:
                known = await rooms.get_many(tx, in_rooms)
        for destination in reached:
            if destination.is_behind:
                continue
            if isinstance(item, _Presence):
                destination.presence[item.user_id] = {"user_id": item.user_id, **item.content}
            elif item.room in known:
                destination.typing[known[item.room].room_id, item.user_id] = item.is_typing
            self._start(destination)

    def _wanted(self, servers: Iterable[ServerName]) -> list[Destination]:
        """The destinations among these servers that this process sends to."""
        found = []
        for server in servers:
            if server != self._server_name and outbox_leases.shard_of(server) in self._owned:
                destination = self._destinations.get(server)
                if destination is None:
                    destination = self._destinations[server] = Destination(server, self._position)
                found.append(destination)
        self._has_dispatched = self._has_dispatched or bool(found)
        return found

    # --- taking over

    async def _begin(self, positions: Mapping[int, int]) -> None:
        """Hold these shards from now on, of which everybody has what the log holds up to a position."""
        async with self._database.read() as tx:
            behind = await outbox_leases.servers_behind(tx)
            messages = await outbox.awaiting_messages(tx)
        self._owned |= positions.keys()
        for server, cursor in behind.items():
            if outbox_leases.shard_of(server) in positions:
                (destination,) = self._wanted((server,)) or (None,)
                if destination is not None:
                    destination.resume(cursor, self._position)
                    destination.noted = cursor
        await self._read_back(positions, self._position)
        for destination in self._wanted(messages):
            destination.has_messages = True
            self._start(destination)

    async def _read_back(self, positions: Mapping[int, int], upto: int) -> None:
        """Have the servers of these shards sent what concerns them in the log after their positions, up to `upto`."""
        after = min(positions.values(), default=upto)
        while after < upto:
            end = min(after + SCANNED, upto)
            concerned, end = await self._concerned(after, end)
            for server, newest in concerned.items():
                known_upto = positions.get(outbox_leases.shard_of(server), upto)
                if newest > known_upto:
                    for destination in self._wanted((server,)):
                        destination.resume(known_upto, upto)
            after = end
        for destination in list(self._destinations.values()):
            if outbox_leases.shard_of(destination.server) in positions:
                self._start(destination)

    async def _concerned(self, after: int, upto: int) -> tuple[dict[ServerName, int], int]:
        """The servers that something in this part of the log concerns, with the newest; and how far that part goes."""
        newest: dict[ServerName, int] = {}
        async with self._database.read() as tx:
            events = await outbox.events_between(tx, self._server_name, after, upto, limit=READ_AT_ONCE)
            if len(events) == READ_AT_ONCE:
                upto = events[-1].position
            spans = {(event.room, event.low, event.high) for event in events}
            spans |= {(event.room, event.low, event.low) for event in events}
            servers = await outbox.servers_between(tx, spans)
            changes = await outbox.own_changes_between(tx, self._server_name, after, upto)
        for event in events:
            before = servers[event.room, event.low, event.low]
            for server in self._recipients(event, before, servers[event.room, event.low, event.high]):
                newest[server] = event.position
        for position, in_rooms in changes:
            for server in await self._room_servers.now(in_rooms):
                newest[server] = max(newest.get(server, 0), position)
        newest.pop(self._server_name, None)
        return newest, upto

    # --- every second

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self._tick()
            except Unavailable:  # logged where it arose
                pass
            except Exception:
                logger.exception("the leases could not be renewed; the next turn tries again")
            await asyncio.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        began = time.monotonic()
        async with self._database.transaction() as tx:
            processes = await outbox_leases.renew(tx, self._process)
        async with self._database.read() as tx:
            shards = await outbox_leases.shards(tx)
        held = {number for number, shard in shards.items() if shard.process == self._process}
        self._drop(self._owned - held)
        self._asked_for &= held
        self._lease_until = began + outbox_leases.LEASE_MS / 1000
        wanted = {number for number in shards if _owner(number, processes) == self._process}
        self._given = self._owned - wanted
        busy = {outbox_leases.shard_of(each.server) for each in self._destinations.values() if each.is_running}
        if surplus := self._given - busy:
            await self._save()
            self._drop(surplus)
            async with self._database.transaction() as tx:
                await outbox_leases.release(tx, self._process, surplus)
        missing = {
            number for number in wanted - self._owned - self._asked_for if number in held or not shards[number].is_held
        }
        if missing:
            async with self._database.transaction() as tx:
                taken = await outbox_leases.take(tx, self._process, missing)
            if taken:
                self._asked_for |= taken.keys()
                self._put(self._seen, _Taken(taken))
        if self._has_dispatched or self._position - self._saved > MAX_UNSAVED:
            await self._save()
        if began - self._forgot_at > FORGET_SECONDS:
            self._forgot_at = began
            async with self._database.transaction() as tx:
                await outbox_leases.forget_relayed(tx)
        for destination in list(self._destinations.values()):
            self._start(destination)

    def _drop(self, shards: Collection[int]) -> None:
        """Others send to these from now on."""
        if shards:
            self._owned -= set(shards)
            self._asked_for -= set(shards)
            self._given -= set(shards)
            for server in [each for each in self._destinations if outbox_leases.shard_of(each) in shards]:
                del self._destinations[server]

    async def _save(self) -> None:
        """Note how far everybody is."""
        position, self._has_dispatched = self._position, False
        positions = dict.fromkeys(self._owned, position)
        behind: dict[ServerName, int] = {}
        for destination in self._destinations.values():
            shard = outbox_leases.shard_of(destination.server)
            if destination.is_behind:
                if destination.noted != destination.cursor:
                    behind[destination.server] = destination.noted = destination.cursor
            else:
                confirmed = destination.confirmed
                if confirmed is not None:
                    positions[shard] = min(positions[shard], confirmed)
                    self._has_dispatched = True
                if destination.noted is not None:
                    destination.noted = None
                    self._caught_up.add(destination.server)
        caught_up, self._caught_up = self._caught_up - behind.keys(), set()
        try:
            async with self._database.transaction() as tx:
                await outbox_leases.save(tx, self._process, positions, behind, caught_up)
        except BaseException:
            for server in behind:
                if server in self._destinations:
                    self._destinations[server].noted = UNKNOWN
            self._caught_up |= caught_up
            self._has_dispatched = True
            raise
        self._saved = position

    # --- sending

    def _may_send(self, destination: Destination) -> bool:
        return (
            self._destinations.get(destination.server) is destination
            and time.monotonic() < self._lease_until
            and not (self._given and outbox_leases.shard_of(destination.server) in self._given)
            and not destination.is_idle
            and not self._availability.seconds_left(destination.server)
        )

    def _start(self, destination: Destination) -> None:
        if destination.is_running:
            return
        if self._may_send(destination):
            destination.is_running = True
            task = asyncio.get_running_loop().create_task(self._send(destination))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._availability.seconds_left(destination.server):
            destination.fall_behind()

    async def _send(self, destination: Destination) -> None:
        """Send to one server until it has everything, or fails."""
        server = destination.server
        try:
            while self._may_send(destination):
                async with self._sending if server in self._good else self._trying:
                    if self._may_send(destination) and not await self._is_delivered(destination):
                        break
        finally:
            destination.is_running = False
            self._has_dispatched = True
            if self._destinations.get(server) is destination and destination.is_idle:
                del self._destinations[server]
                if destination.noted is not None:
                    self._caught_up.add(server)

    async def _is_delivered(self, destination: Destination) -> bool:
        """Send one transaction; False where the server is to be left alone for a while."""
        server = destination.server
        try:
            await self._delivery.deliver(destination)
        except (PeerUnreachable, PeerRefused) as error:
            self._good.pop(server, None)
            if isinstance(error, PeerRefused) or not self._availability.seconds_left(server):
                self._leave_alone(server, error.message)
            logger.info("nothing can be sent to %s: %s", server, error.message)
        except Unavailable:
            pass  # logged where it arose; the next tick tries again
        except Exception:
            logger.exception("nothing can be sent to %s", server)
            self._leave_alone(server, "a mistake of this server: see its log")
        else:
            self._refusals.pop(server, None)
            self._good[server] = None
            if len(self._good) > MAX_KNOWN_GOOD:
                del self._good[next(iter(self._good))]
            return True
        destination.fall_behind()
        return False

    def _leave_alone(self, server: ServerName, reason: str) -> None:
        """It answers, but takes nothing."""
        failures = self._refusals[server] = self._refusals.get(server, 0) + 1
        self._availability.leave_alone(server, failures, reason)


def _owner(shard: int, processes: Sequence[str]) -> str:
    """Which of the processes is to hold a shard: they all agree, and few shards move when one comes or goes."""
    return max(processes, key=lambda process: sha256(f"{process} {shard}".encode()).digest())

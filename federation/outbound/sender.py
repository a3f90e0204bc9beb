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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from federation.outbound.availability import Availability
from federation.outbound.delivery import Delivery, came_by_others, queued, takes_away
from federation.outbound.destinations import Destination
from federation.outbound.queues import Queues
from federation.outbound.room_servers import RoomServers, StateChange
from federation.outbound.sender_items import Item, PresenceChanged, Taken, TypingChanged
from federation.protocol.errors import MatrixError, Unavailable
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import background, destinations, memberships, outbox, outbox_leases, rooms
from storage.append_events import RoomEvents
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.figures import Figures
from storage.log_entries import Change
from storage.memberships import Membership
from storage.outbox import EventRelayed, OutgoingDeviceChange, OutgoingEvent, OutgoingMessages, OutgoingReceipt
from storage.receipts import ReceiptMoved
from storage.room_completeness import RoomCompleteness
from storage.shares import share_of
from storage.tail import Tail

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MAX_WAITING = 20_000
"""Changes that may wait to be looked at; beyond it they are read again from the log."""
SCANNED = 5_000
"""Positions of the log that are read at once."""
READ_AT_ONCE = 500
"""Events of these."""
MAX_ATTEMPTS = 3
"""To hand out an entry of the log that makes us fail."""
MAX_UNSAVED = 1_000
"""Positions by which what is stored may stay behind while nothing is sent."""
TYPING_SECONDS = 15.0
"""After which who still types is told of again: others forget it after 30."""
FORGET_SECONDS = 600.0
UNTRIED_MS = 24 * 3600 * 1000
"""A server that fails and was not tried for so long is nobody's to wait for."""
FORGOTTEN_AT_ONCE = 10_000
MET_SECONDS = 5.0
"""After which a server that came into a room is told who is online there: who has just joined knows nobody yet."""
MAX_INTRODUCED = 500
"""Users whose presence is told to such a server."""
MAX_MET = 10_000

Presences = Callable[[Collection[UserID]], Mapping[UserID, JsonObject]]
"""`PresenceService.told`: what others are told of those of these users who are not offline."""


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
        presences: Presences | None,
    ) -> None:
        self._database = database
        self._tail = tail
        self._server_name = server_name
        self._availability = availability
        self._presences = presences
        self._met: deque[tuple[float, int, set[ServerName]]] = deque()
        self._delivery = delivery
        self._queues = Queues(server_name, delivery, availability)
        self._room_servers = RoomServers(database)
        self._process = secrets.token_urlsafe(9)
        self._waiting: deque[tuple[int, Item]] = deque()
        self._has_waiting = asyncio.Event()
        self._was_lost = False
        self._seen = 0
        """The newest position of which the tail told."""
        self._position = 0
        """Up to here everything was handed to the destinations of the shards that are held."""
        self._saved = 0
        self._asked_for: set[int] = set()
        """Shards that are taken, and not yet held."""
        self._typing_told: dict[tuple[int, UserID], float] = {}
        self._forgot_at = time.monotonic()

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            **self._queues.figures(),
            **self._room_servers.figures(),
            "federation_undispatched": len(self._waiting),
            "federation_position": self._position,
        }

    # --- what others tell

    def on_change(self, position: int, change: Change) -> None:
        """A view of the tail."""
        self._seen = position + change.width - 1
        if isinstance(change, RoomEvents):
            if not change.trunk and (
                self._stays_here(change) or not any(self._is_ours(event.sender) for event in change.stored)
            ):
                return
        elif isinstance(change, DeviceListChanged):
            if change.seen_by is not None or not change.changed_in or not self._is_ours(change.user_id):
                return
        elif isinstance(change, ReceiptMoved):
            if change.is_private or not self._is_ours(change.user_id):
                return
        elif not isinstance(change, OutgoingMessages | EventRelayed | RoomCompleteness):
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
        self._put(self._seen, TypingChanged(room, user_id, is_typing))

    def presence(self, user_id: UserID, content: JsonObject) -> None:
        """The presence of a user changed; of those of other servers nothing is told."""
        if self._is_ours(user_id):
            self._put(self._seen, PresenceChanged(user_id, content))

    def wake(self, server: ServerName) -> None:
        """The server can be reached again, or should be tried."""
        self._queues.wake(server)

    def _stays_here(self, change: RoomEvents) -> bool:
        """Whether these are messages in a room that no other server is in: on most servers most are, and to see that
        they need not be parsed."""
        version = 0
        for event in change.stored:
            version = max(version, event.trunk_version)
            is_at_end = event.line == event.flags == 0 and event.version == event.trunk_version
            if not is_at_end and b'"state_key":' in event.canonical:
                return False
        return self._room_servers.are_only(self._server_name, change.room.number, version)

    def _is_ours(self, user_id: str) -> bool:
        return user_id.endswith(self._server_name) and server_name_of(UserID(user_id)) == self._server_name

    def _put(self, last: int, item: Item) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._was_lost = True
            self._forget_waiting()
        self._waiting.append((last, item))
        self._has_waiting.set()

    def _forget_waiting(self) -> None:
        self._waiting = deque(pair for pair in self._waiting if isinstance(pair[1], Taken))

    # --- life

    async def start(self) -> None:
        """Begin at the tail's position; to be called before anything is appended."""
        self._position = self._saved = self._seen = self._tail.position
        async with self._database.transaction() as tx:
            await outbox_leases.prepare(tx)

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            await background.run_together(self._dispatch_forever(), self._tick_forever())
        finally:
            await self._queues.close()
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
            await self._read_back(dict.fromkeys(self._queues.owned, self._position), upto)
            self._was_lost, self._position = False, upto
            return
        last, item = self._waiting[0]
        await self._dispatch(last, item)
        if self._waiting and self._waiting[0][1] is item:
            self._waiting.popleft()
            self._position = max(self._position, last)

    async def _dispatch(self, last: int, item: Item) -> None:
        match item:
            case RoomEvents() | RoomCompleteness():
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
                    self._queues.start(destination)
            case ReceiptMoved():
                receipt = OutgoingReceipt(last, item.room, item.user_id, item.thread, item.event_id, item.ts)
                for destination in self._wanted(await self._room_servers.now((item.room,), denied=False)):
                    destination.add_receipt(receipt)
                    self._queues.start(destination)
            case OutgoingMessages():
                for destination in self._wanted({message.destination for message in item.messages}):
                    destination.has_messages = True
                    self._queues.start(destination)
            case Taken():
                await self._begin(item.positions)
            case TypingChanged() | PresenceChanged():
                await self._dispatch_short_lived(item)

    async def _dispatch_events(self, change: RoomEvents | RoomCompleteness) -> None:
        if isinstance(change, RoomCompleteness):
            self._room_servers.forget(change.room)
            return
        room = change.room.number
        stored = [
            event for event in change.stored if event.flags == 0 and self._is_ours(event.sender) and event.is_readable
        ]
        if not stored:
            await self._follow(room, change.trunk)
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
        self._note_met(room, before, servers)

    async def _follow(self, room: int, changes: Sequence[StateChange]) -> None:
        """The state of a room changed by others."""
        if self._presences is None or not any(each.membership is Membership.JOIN for each in changes):
            await self._room_servers.advance(room, changes)
            return
        versions = [each.since for each in changes]
        before, servers = await self._room_servers.between(room, min(versions) - 1, max(versions), changes)
        self._note_met(room, before, servers)

    def _note_met(self, room: int, before: Collection[ServerName], servers: Collection[ServerName]) -> None:
        """Servers share a room with our users from now on: they are to be told who of these is online."""
        if self._presences is not None and len(self._met) < MAX_MET:
            met = set(servers) - set(before) if self._server_name in before else set(servers)
            if met - {self._server_name}:
                self._met.append((time.monotonic() + MET_SECONDS, room, met))

    async def _introduce(self, presences: Presences) -> None:
        """Tell servers that our users met a while ago."""
        while self._met and self._met[0][0] <= time.monotonic():
            _, room, met = self._met.popleft()
            if not self._reached(met):
                continue
            async with self._database.read() as tx:
                users = await memberships.local_members(tx, room, self._server_name, limit=MAX_INTRODUCED)
            reached = self._reached(met)
            for user_id, content in presences(users).items():
                for destination in reached:
                    destination.presence[user_id] = {"user_id": user_id, **content}
            for destination in reached:
                self._queues.start(destination)

    async def _hand_out(self, event: OutgoingEvent, changes: Sequence[StateChange]) -> None:
        before, servers = await self._room_servers.between(event.room, event.low, event.high, changes)
        self._queue(event, before, servers)

    def _queue(self, event: OutgoingEvent, before: Collection[ServerName], servers: Collection[ServerName]) -> None:
        waiting = queued(event)
        for destination in self._wanted(self._recipients(event, before, servers)):
            destination.add_event(waiting)
            self._queues.start(destination)

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

    async def _dispatch_short_lived(self, item: TypingChanged | PresenceChanged) -> None:
        if isinstance(item, PresenceChanged):
            async with self._database.read() as tx:
                in_rooms = await memberships.joined_rooms(tx, item.user_id)
            for destination in self._reached(await self._room_servers.now(in_rooms)):
                destination.presence[item.user_id] = {"user_id": item.user_id, **item.content}
                self._queues.start(destination)
            return
        if servers := self._reached(await self._room_servers.now((item.room,), denied=False)):
            async with self._database.read() as tx:
                known = await rooms.get_many(tx, (item.room,))
            for destination in self._reached(each.server for each in servers if item.room in known):
                destination.typing[known[item.room].room_id, item.user_id] = item.is_typing
                self._queues.start(destination)

    def _wanted(self, servers: Iterable[ServerName]) -> list[Destination]:
        """Good until something else may run: who has got everything is forgotten."""
        return self._queues.of(servers, self._position)

    def _reached(self, servers: Iterable[ServerName]) -> list[Destination]:
        """Those that hear of what is only true now."""
        able = (server for server in servers if not self._availability.seconds_left(server))
        return [destination for destination in self._wanted(able) if not destination.is_behind]

    # --- taking over

    async def _begin(self, positions: Mapping[int, int]) -> None:
        """Hold these shards from now on, of which everybody has what the log holds up to a position."""
        async with self._database.read() as tx:
            behind = await outbox_leases.servers_behind(tx)
            messages = await outbox.awaiting_messages(tx)
        self._queues.hold(positions)
        for server, cursor in behind.items():
            if outbox_leases.shard_of(server) in positions:
                (destination,) = self._wanted((server,)) or (None,)
                if destination is not None:
                    destination.resume(cursor, self._position)
                    destination.noted = cursor
        await self._read_back(positions, self._position)
        self._queues.floors.clear()
        for destination in self._wanted(messages):
            destination.has_messages = True
            self._queues.start(destination)

    async def _read_back(self, positions: Mapping[int, int], upto: int) -> None:
        """Have the servers of these shards sent what concerns them in the log after their positions, up to `upto`."""
        after = min(positions.values(), default=upto)
        while after < upto:
            concerned, end = await self._concerned(after, upto)
            for server, newest in concerned.items():
                known_upto = positions.get(outbox_leases.shard_of(server), upto)
                if newest > known_upto:
                    for destination in self._wanted((server,)):
                        destination.resume(known_upto, upto)
            after = end
        self._queues.start_all()

    async def _concerned(self, after: int, upto: int) -> tuple[dict[ServerName, int], int]:
        """The servers that something in the next part of the log concerns, with the newest; and how far that goes."""
        newest: dict[ServerName, int] = {}
        async with self._database.read() as tx:
            after = await outbox.end_of_nothing(tx, after, upto)
            upto = min(after + SCANNED, upto)
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
        async with self._database.write() as tx:
            processes, shards = await outbox_leases.renew(tx, self._process)
        if self._queues.owned and began > self._queues.lease_until:
            logger.warning("the lease was not renewed in time: others may send what this process had begun to send")
        held = {number for number, shard in shards.items() if shard.process == self._process}
        self._queues.drop(self._queues.owned - held)
        self._asked_for &= held - self._queues.owned
        self._queues.lease_until = began + outbox_leases.LEASE_MS / 1000
        wanted = share_of(self._process, tuple(processes), tuple(sorted(shards)))
        if surplus := self._queues.to_release(self._queues.owned - wanted):
            await self._save()
            self._queues.drop(surplus)
            async with self._database.transaction() as tx:
                await outbox_leases.release(tx, self._process, surplus)
        missing = {
            number
            for number in wanted - self._queues.owned - self._asked_for
            if number in held or not shards[number].is_held
        }
        if missing:
            async with self._database.transaction() as tx:
                taken = await outbox_leases.take(tx, self._process, missing)
            if taken:
                self._asked_for |= taken.keys()
                self._put(self._seen, Taken(taken))
        if not self._waiting and not self._was_lost:
            self._position = max(self._position, self._seen)
        if self._queues.has_moved or self._position - self._saved > MAX_UNSAVED:
            await self._save()
        if began - self._forgot_at > FORGET_SECONDS:
            self._forgot_at = began
            async with self._database.transaction() as tx:
                await outbox_leases.forget_relayed(tx)
                before_ts = self._database.now_ms() - UNTRIED_MS
                await destinations.forget_untried(tx, before_ts, FORGOTTEN_AT_ONCE)
            await self._delivery.give_up_old()
        if self._presences is not None:
            await self._introduce(self._presences)
        self._queues.start_all()

    async def _save(self) -> None:
        """Note how far everybody is."""
        position = self._position
        progress = self._queues.progress(position)
        try:
            async with self._database.transaction() as tx:
                await outbox_leases.save(tx, self._process, progress.positions, progress.behind, progress.caught_up)
        except BaseException:
            self._queues.note_unsaved(progress)
            raise
        self._saved = position

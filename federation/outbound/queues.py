"""The servers to which there is something to send, and the tasks that send it.

A server has a task only while something is sent to it. Which shards are held, and until when, is for `sender.py` to
say; how far their servers are is asked for here.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from federation.outbound.availability import Availability
from federation.outbound.delivery import Delivery
from federation.outbound.destinations import LANES, Destination
from federation.protocol.errors import PeerRefused, PeerUnreachable, Unavailable
from federation.protocol.types import ServerName
from storage import background
from storage.figures import Figures, Tally
from storage.outbox_leases import shard_of

logger = logging.getLogger(__name__)

MAX_SENDING = 200
"""Transactions under way at once, to servers that answered before."""
MAX_TRYING = 100
"""The same, to servers of which that is not known: who does not answer takes no place from who does."""
MAX_KNOWN_GOOD = 50_000
LAST_SECONDS = 2.0
"""For which the end of this process waits for servers to answer: else another process would send to them again."""
MAX_GIVING_SECONDS = 10.0
"""That another process waits for a shard until nothing is under way to its servers: one that is slow holds up no other
for longer."""
UNKNOWN = -1
SCANNED_PER_SECOND = 2_000
"""Destinations that are looked at for the figures, about a microsecond each."""


class Progress(Struct, frozen=True):
    """How far everybody is."""

    positions: dict[int, int]
    """Shards."""
    behind: dict[ServerName, int]
    """Servers that are not as far as their shard, where that is not noted yet."""
    caught_up: set[ServerName]


class Queues:
    """Destinations of the shards that this process holds."""

    def __init__(self, server_name: ServerName, delivery: Delivery, availability: Availability) -> None:
        self._server_name = server_name
        self._delivery = delivery
        self._availability = availability
        self.owned: set[int] = set()
        """The shards that are held."""
        self.given: dict[int, float] = {}
        """Those of them that others shall have, and since when: nothing more is sent."""
        self.floors: dict[int, int] = {}
        """Up to where the servers of a shard have everything, while it is read back what they lack."""
        self.lease_until = 0.0
        self.has_moved = False
        """Whether there is progress to note."""
        self._destinations: dict[ServerName, Destination] = {}
        self._caught_up: set[ServerName] = set()
        self._refusals: dict[ServerName, int] = {}
        """Who answers, but took nothing so often, one time after the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._good: dict[ServerName, None] = {}
        self._seconds = Tally()
        self._scanned: Figures = {}
        self._scan_again_at = 0.0
        self._results = dict.fromkeys(("delivered", "refused", "unreachable", "failed"), 0)
        self._sending = asyncio.Semaphore(MAX_SENDING)
        self._trying = asyncio.Semaphore(MAX_TRYING)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        now = time.monotonic()
        if now >= self._scan_again_at:
            self._scanned = self._scan(now)
            self._scan_again_at = now + len(self._destinations) / SCANNED_PER_SECOND
        return {
            **self._scanned,
            "federation_destinations": len(self._destinations),
            "federation_sending": len(self._tasks),
            "federation_sending_limit": MAX_SENDING + MAX_TRYING,
            "federation_shards": len(self.owned),
            "federation_send_seconds": self._seconds,
            "federation_transactions_total": self._results,
            **self._delivery.figures(),
        }

    def _scan(self, now: float) -> Figures:
        """What only all destinations together tell."""
        lanes: dict[str, float] = dict.fromkeys(LANES, 0)
        behind, stalled = 0, 0.0
        for destination in self._destinations.values():
            if destination.is_behind:
                behind += 1
            else:
                for lane, waiting in zip(LANES, destination.waiting(), strict=True):
                    lanes[lane] += waiting
            if now - destination.moved_at > stalled:
                back_off = self._availability.find(destination.server)
                since = destination.moved_at if back_off is None else max(destination.moved_at, back_off.until)
                stalled = max(stalled, now - since)
        return {
            "federation_destinations_behind": behind,
            "federation_stalled_seconds": stalled,
            "federation_waiting": lanes,
        }

    # --- which there are

    def of(self, servers: Iterable[ServerName], position: int) -> list[Destination]:
        """The destinations among these servers, of which new ones have everything up to a position."""
        found = []
        for server in servers:
            if server != self._server_name and shard_of(server) in self.owned:
                destination = self._destinations.get(server)
                if destination is None:
                    destination = self._destinations[server] = Destination(server, position)
                found.append(destination)
        self.has_moved = self.has_moved or bool(found)
        return found

    def hold(self, positions: Mapping[int, int]) -> None:
        """Hold these shards, whose servers have everything up to a position; `floors` is cleared once that is so of
        what came after."""
        self.owned |= positions.keys()
        self.floors.update(positions)

    def drop(self, shards: Collection[int]) -> None:
        """Others send to these from now on."""
        if shards:
            self.owned -= set(shards)
            self.given = {shard: since for shard, since in self.given.items() if shard in self.owned}
            for server in [each for each in self._destinations if shard_of(each) in shards]:
                del self._destinations[server]

    def to_release(self, given: Collection[int]) -> set[int]:
        """Others shall have these shards: begin nothing more; those that they may have now."""
        now = time.monotonic()
        self.given = {shard: self.given.get(shard, now) for shard in given}
        if not given:
            return set()
        busy = {shard_of(each.server) for each in self._destinations.values() if each.is_running}
        return {shard for shard, since in self.given.items() if shard not in busy or now - since > MAX_GIVING_SECONDS}

    def wake(self, server: ServerName) -> None:
        """The server can be reached again, or should be tried."""
        destination = self._destinations.get(server)
        if destination is not None:
            self.start(destination)

    def start_all(self) -> None:
        """Send to whoever may be sent to."""
        for destination in list(self._destinations.values()):
            self.start(destination)

    async def close(self) -> None:
        """Begin no more, and end what is under way: after `LAST_SECONDS` it counts as not delivered."""
        self.to_release(self.owned)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
        await background.end(self._tasks)

    # --- how far they are

    def progress(self, position: int) -> Progress:
        """How far everybody is when everything up to a position was handed out; to be stored."""
        self.has_moved = False
        positions = {shard: min(position, self.floors.get(shard, position)) for shard in self.owned}
        behind: dict[ServerName, int] = {}
        for destination in self._destinations.values():
            shard = shard_of(destination.server)
            if destination.is_behind:
                if destination.noted != destination.cursor:
                    behind[destination.server] = destination.noted = destination.cursor
                continue
            confirmed = destination.confirmed
            if confirmed is not None:
                positions[shard] = min(positions[shard], confirmed)
                self.has_moved = True
            if destination.noted is not None:
                destination.noted = None
                self._caught_up.add(destination.server)
        caught_up, self._caught_up = self._caught_up - behind.keys(), set()
        return Progress(positions, behind, caught_up)

    def note_unsaved(self, progress: Progress) -> None:
        """It was not stored, or nobody knows."""
        for server in progress.behind:
            if server in self._destinations:
                self._destinations[server].noted = UNKNOWN
        self._caught_up |= progress.caught_up
        self.has_moved = True

    # --- sending

    def _may_send(self, destination: Destination) -> bool:
        return (
            self._destinations.get(destination.server) is destination
            and time.monotonic() < self.lease_until
            and not (self.given and shard_of(destination.server) in self.given)
            and not destination.is_idle
            and not self._availability.seconds_left(destination.server)
        )

    def start(self, destination: Destination) -> None:
        """Send to it, if it may be sent to; one that is left alone is behind."""
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
            self.has_moved = True
            if self._destinations.get(server) is destination and destination.is_idle:
                del self._destinations[server]
                if destination.noted is not None:
                    self._caught_up.add(server)

    async def _is_delivered(self, destination: Destination) -> bool:
        """Send one transaction; False where the server is to be left alone for a while."""
        server = destination.server
        began, result = time.monotonic(), "failed"
        try:
            await self._delivery.deliver(destination)
            result = "delivered"
        except (PeerUnreachable, PeerRefused) as error:
            self._good.pop(server, None)
            result = "refused" if isinstance(error, PeerRefused) else "unreachable"
            if isinstance(error, PeerRefused) or not self._availability.seconds_left(server):
                self._leave_alone(server, error.message)
            self._availability.note_awaited(server)
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
        finally:
            self._results[result] += 1
            destination.moved_at = time.monotonic()
            self._seconds.add(destination.moved_at - began)
        destination.fall_behind()
        return False

    def _leave_alone(self, server: ServerName, reason: str) -> None:
        """It answers, but takes nothing."""
        failures = self._refusals[server] = self._refusals.get(server, 0) + 1
        self._availability.leave_alone(server, failures, reason)

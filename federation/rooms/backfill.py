"""History from before what we hold, fetched from other servers when somebody pages back to it ("Backfilling").

One stretch of a gap is fetched at a time, whoever waits for it; what nobody gave is not asked for again for a while.
Nothing of an answer is believed: only verified events of the room count that are connected with what is missing.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.errors import MatrixError, PeerUnreachable
from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, ServerName, StateKey
from federation.rooms.history import HistoryAppender
from federation.rooms.incomplete_rooms import IncompleteRooms, StateBefore
from federation.rooms.missing_events import MissingEventsFetcher
from federation.rooms.ordering import cited_by, connected, in_order, prev_of
from federation.rooms.questions import Allowance, Questions
from federation.rooms.server_access import ServerAccess
from storage import event_pages, events, history, memberships, remote_joins, room_state
from storage.database import Database, Tx
from storage.events import Flag
from storage.history import Gap
from storage.log_entries import Conflict
from storage.places import Places
from storage.rooms import Room

logger = logging.getLogger(__name__)

STRETCH = 100
"""Events asked for at once."""
MAX_STRETCHES = 5
"""Fetched for one page."""
MAX_ASKED_FOR = 20
"""Event IDs that a request names."""
MAX_SERVERS = 5
MAX_STATES = 5
"""States that are fetched for one stretch: as many loose ends it may have."""
SECONDS = 25.0
"""For how long somebody waits for a stretch."""
FAILURE_SECONDS = 60.0
"""For how long a gap is left alone that nobody filled."""
AT_ONCE = 8
"""Stretches that are fetched at a time, of all rooms."""
MAX_REMEMBERED = 10_000
MIN_SPLIT = 10_000
"""Places that must be free around an event that is put into the middle of a gap."""

_CREATE: StateKey = ("m.room.create", "")
_POWER_LEVELS: StateKey = ("m.room.power_levels", "")


class Backfill:
    """Fills gaps in rooms' histories."""

    def __init__(
        self,
        *,
        database: Database,
        fetcher: MissingEventsFetcher,
        questions: Questions,
        access: ServerAccess,
        incomplete: IncompleteRooms,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._fetcher = fetcher
        self._questions = questions
        self._access = access
        self._incomplete = incomplete
        self._server_name = server_name
        self._appender = HistoryAppender(database)
        self._locks: dict[tuple[int, int], tuple[asyncio.Lock, int]] = {}
        self._failed_at: OrderedDict[tuple[int, int], float] = OrderedDict()
        self._silent: dict[ServerName, set[tuple[int, int]]] = {}
        """By servers that could not be reached: what failed meanwhile."""
        self.places = Places("history", AT_ONCE)

    async def reach(self, room: Room, gap: Gap, start: int, limit: int) -> bool:
        """Fetch what is missing there until so many events stand before the place `start`, or more cannot be had now.

        Whether a page should end where history is still missing: not so where nobody gave it.
        """
        for _ in range(MAX_STRETCHES):
            if not await self.fill(room, gap):
                return self._incomplete.has(room.number)  # else it can be had soon
            async with self._database.read() as tx:
                left = [each for each in await history.gaps(tx, room.number) if each.position == gap.position]
                if not left or not left[0].frontier:
                    return True
                gap = left[0]
                near = await event_pages.preceding(tx, room.number, start, limit)
            if len(near) == limit and near[-1].place >= gap.bottom:
                return True
        return True

    async def fill(self, room: Room, gap: Gap) -> bool:
        """Fetch a stretch of what is missing there; whether there is more than before, whoever brought it."""
        key = self._key(room, gap)
        if not gap.frontier or self._has_failed(key):
            return False
        try:
            async with asyncio.timeout(SECONDS), _Turn(self._locks, key):
                now = await self._find(room, gap)
                if now != gap:
                    return now is not None
                if self._has_failed(key):
                    return False
                if await self._pass_over(room, gap):
                    return True
                async with self.places:
                    is_filled = await self._fill(room, gap)
        except TimeoutError:
            is_filled = False
        if not is_filled:
            self._note_failure(key)
        return is_filled

    def _key(self, room: Room, gap: Gap) -> tuple[int, int]:
        """What fails while the room lacks members is tried again once it has them."""
        return (-room.number if self._incomplete.has(room.number) else room.number, gap.position)

    def notice(self, server: ServerName) -> None:
        """A server is there again: what it could not be asked for is no longer left alone."""
        for key in self._silent.pop(server, ()):
            self._failed_at.pop(key, None)

    async def _pass_over(self, room: Room, gap: Gap) -> bool:
        try:
            return await self._appender.pass_over(room, gap)
        except Conflict:  # somebody else was faster
            return True

    async def _find(self, room: Room, gap: Gap) -> Gap | None:
        async with self._database.read() as tx:
            return next((each for each in await history.gaps(tx, room.number) if each.position == gap.position), None)

    def _has_failed(self, key: tuple[int, int]) -> bool:
        return time.monotonic() < self._failed_at.get(key, 0.0) + FAILURE_SECONDS and key in self._failed_at

    def _note_failure(self, key: tuple[int, int]) -> None:
        self._failed_at[key] = time.monotonic()
        self._failed_at.move_to_end(key)
        while len(self._failed_at) > MAX_REMEMBERED:
            self._failed_at.popitem(last=False)

    def _note_silence(self, server: ServerName, key: tuple[int, int]) -> None:
        if sum(map(len, self._silent.values())) >= MAX_REMEMBERED:
            self._silent.clear()
        self._silent.setdefault(server, set()).add(key)

    async def _fill(self, room: Room, gap: Gap) -> bool:
        for server in await self._servers(room, gap.frontier):
            try:
                if await self._fill_from(server, room, gap):
                    return True
            except Conflict:  # somebody else was faster
                return True
            except MatrixError as error:
                if isinstance(error, PeerUnreachable):
                    self._note_silence(server, self._key(room, gap))
                logger.info("%s gave no history of %s: %s", server, room.room_id, error.message)
        return False

    async def _fill_from(self, server: ServerName, room: Room, gap: Gap) -> bool:
        asked = gap.frontier[:MAX_ASKED_FOR]
        limit = min(STRETCH, gap.bottom - gap.low - 1)
        if limit <= 0:
            return False
        answer = await self._questions.backfill(server, room.room_id, asked, limit)
        verified = await self._fetcher.verified(room, answer, is_old=True)
        async with self._database.read() as tx:
            known = await _placed(tx, room, [pdu.event_id for pdu in verified])
        wanted = [event_id for event_id in gap.frontier if event_id not in known]
        fresh = [pdu for pdu in verified if pdu.event_id not in known]
        stretch = sorted(connected(wanted, fresh, prev_of), key=lambda pdu: -pdu.depth)[:limit]
        pdus = in_order(sorted(stretch, key=lambda pdu: pdu.depth), prev_of)
        return bool(pdus) and await self._store(server, room, gap, pdus, first_place=gap.bottom - len(pdus))

    async def _store(
        self, server: ServerName, room: Room, gap: Gap, pdus: Sequence[VerifiedPDU], *, first_place: int
    ) -> bool:
        """Bring in what the stretch needs, and put it where it belongs."""
        allowance = Allowance()
        await self._fetch_cited(server, room, pdus, allowance)
        pdus = await self._judgeable(room, pdus)
        if not pdus:
            return False
        lacks_members = self._incomplete.has(room.number)
        if lacks_members:
            await self._fetcher.learn_cited(room, pdus)
        states: dict[EventID, StateBefore] = {}
        for pdu in await self._loose_ends(room, pdus):
            if len(states) == MAX_STATES or await self._appender.continues(room, gap, pdus):
                break
            fetch = self._fetcher.state_difference if lacks_members else self._fetcher.state_before
            states[pdu.event_id] = await fetch(server, room, pdu, allowance)
        return bool(await self._appender.append(room, gap, pdus, states, first_place=first_place))

    async def _fetch_cited(
        self, server: ServerName, room: Room, pdus: Sequence[VerifiedPDU], allowance: Allowance
    ) -> None:
        """Have what authorises these events, as far as it is not among them."""
        among = {pdu.event_id for pdu in pdus}
        cited = {event_id for pdu in pdus for event_id in cited_by(pdu)} - among
        async with self._database.read() as tx:
            missing = cited - (await events.flags_of(tx, cited)).keys()
        for pdu in pdus:
            if missing.intersection(cited_by(pdu)):
                await self._fetcher.fetch_auth(server, room, pdu, allowance, is_old=True)
                missing.difference_update(cited_by(pdu))

    async def _judgeable(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[VerifiedPDU]:
        """Those events of which all that authorises them is here or among them: what follows others must do without."""
        cited = {event_id for pdu in pdus for event_id in cited_by(pdu)}
        async with self._database.read() as tx:
            found = await events.flags_of(tx, cited)
        held = {event_id for event_id, (number, _) in found.items() if number == room.number}
        kept = {pdu.event_id for pdu in in_order(pdus, cited_by, held)}
        return [pdu for pdu in pdus if pdu.event_id in kept]

    async def _loose_ends(self, room: Room, pdus: Sequence[VerifiedPDU]) -> list[VerifiedPDU]:
        """Those events that follow some that are neither here nor among them, the newest first."""
        among = {pdu.event_id for pdu in pdus}
        prev = {event_id for pdu in pdus for event_id in pdu.prev_event_ids} - among
        async with self._database.read() as tx:
            known = await _placed(tx, room, prev)
        return [pdu for pdu in reversed(pdus) if not known.union(among).issuperset(pdu.prev_event_ids)]

    async def _servers(self, room: Room, wanted: Sequence[EventID]) -> list[ServerName]:
        """Whom to ask, those first who are most likely to have the room's history."""
        keys = (_CREATE, _POWER_LEVELS)
        async with self._database.read() as tx:
            state = await room_state.current_events(tx, room.number, keys)
            present = await memberships.some_servers(tx, room.number, sample=1_000)
            if self._incomplete.has(room.number):
                present += (await remote_joins.servers_named(tx, [room.number])).get(room.number, ())
            likely: list[ServerName] = []
            for event_id in wanted:  # room versions 1 and 2
                likely += [ServerName(name) for name in [event_id.partition(":")[2]] if name]
            if _CREATE in state:
                likely.append(server_name_of(state[_CREATE].sender))
            users = state[_POWER_LEVELS].content.get("users") if _POWER_LEVELS in state else None
            if isinstance(users, dict):
                likely += [ServerName(user_id.partition(":")[2]) for user_id in list(users)[:20]]
            found = [name for name in dict.fromkeys((*likely, *present)) if name != self._server_name]
            answer: list[ServerName] = []
            for name in found:
                if len(answer) == MAX_SERVERS:
                    break
                if name in present and await self._access.is_allowed(tx, room, name):
                    answer.append(name)
        return answer

    # --- by time

    async def find_by_time(self, room: Room, moment: "Moment") -> EventID | None:
        """An event that others know to be nearer to the moment than what is here, put in its place; None without one.

        It may be one that the reader who asks may not see.
        """
        async with self._database.read() as tx:
            gap = await _gap_near(tx, room, moment)
            servers = [] if gap is None else await self._servers(room, gap.frontier)
        key = (room.number, 0 if gap is None else -gap.position)
        if gap is None or self._incomplete.has(room.number) or self._has_failed(key):
            return None
        try:
            async with asyncio.timeout(SECONDS), self.places:
                for server in servers[:3]:
                    try:
                        found = await self._find_by_time_at(server, room, moment)
                    except MatrixError as error:
                        logger.info("%s found no event of %s by time: %s", server, room.room_id, error.message)
                        continue
                    if found is not None:
                        return found
        except TimeoutError:
            logger.info("nobody told in time of events of %s by time", room.room_id)
        self._note_failure(key)
        return None

    async def _find_by_time_at(self, server: ServerName, room: Room, moment: "Moment") -> EventID | None:
        told = await self._questions.by_timestamp(server, room.room_id, moment.ts, backwards=moment.backwards)
        if told is None or not moment.is_nearer(told[1]):
            return None
        event_id = told[0]
        async with self._database.read() as tx:
            if await _placed(tx, room, [event_id]):
                return event_id
        verified = await self._fetcher.verified(room, await self._questions.event(server, event_id), {event_id})
        if not verified or not moment.is_nearer(verified[0].origin_server_ts):
            return None
        pdu = verified[0]
        async with self._database.read() as tx:
            gap = await _gap_around(tx, room, pdu)
        if gap is None:
            return None
        if event_id in gap.frontier:
            stored = await self._store(server, room, gap, [pdu], first_place=gap.bottom - 1)
        elif gap.bottom - gap.low > MIN_SPLIT:
            stored = await self._store(server, room, gap, [pdu], first_place=(gap.low + gap.bottom) // 2)
        else:
            return None
        return event_id if stored else None


class Moment(Struct, frozen=True):
    """A time, the side of it that somebody looks at, and what is here of that side."""

    ts: int
    backwards: bool
    nearest: tuple[int, int] | None
    """The place and the time of the nearest event that is here."""

    def is_nearer(self, ts: int) -> bool:
        """Whether an event of this time is on the right side, and nearer than what is here."""
        if self.backwards:
            return ts <= self.ts and (self.nearest is None or ts > self.nearest[1])
        return ts >= self.ts and (self.nearest is None or ts < self.nearest[1])


async def _gap_near(tx: Tx, room: Room, moment: Moment) -> Gap | None:
    """A gap in which there may be an event that is nearer."""
    for gap in await history.gaps(tx, room.number):
        if not gap.frontier:
            continue
        if moment.backwards:
            if moment.nearest is None or moment.nearest[0] < gap.bottom:
                return gap
        elif moment.nearest is None or moment.nearest[0] >= gap.bottom:
            above = await event_pages.preceding(tx, room.number, gap.bottom, 1)
            if above and above[0].json["origin_server_ts"] >= moment.ts:
                return gap
    return None


async def _gap_around(tx: Tx, room: Room, pdu: VerifiedPDU) -> Gap | None:
    """The gap in which the event belongs: the oldest that has something deeper above it."""
    found: Gap | None = None
    for gap in await history.gaps(tx, room.number):
        above = await event_pages.preceding(tx, room.number, gap.bottom, 1) if gap.frontier else []
        depth = above[0].json.get("depth") if above else None
        if isinstance(depth, int) and depth > pdu.depth:
            found = gap
    return found


async def _placed(tx: Tx, room: Room, event_ids: Collection[EventID]) -> set[EventID]:
    """Those of these events that have a place in the room's graph, or belong to another room."""
    found = await events.flags_of(tx, event_ids)
    return {
        event_id for event_id, (number, flags) in found.items() if number != room.number or not flags & Flag.OUTLIER
    }


class _Turn:
    """One after the other, for as long as somebody waits: `locks` holds only what is in use."""

    def __init__(self, locks: dict[tuple[int, int], tuple[asyncio.Lock, int]], key: tuple[int, int]) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        lock, waiting = self._locks.get(self._key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[self._key] = (lock, waiting + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_exception: object) -> None:
        self._locks[self._key][0].release()
        self._leave()

    def _leave(self) -> None:
        lock, waiting = self._locks[self._key]
        if waiting == 1:
            del self._locks[self._key]
        else:
            self._locks[self._key] = (lock, waiting - 1)

"""Telling push gateways what waits for them (table `pushes`), each at its own pace.

What waits for a pusher is told in order, one thing at a time: its *line*. A gateway has a few lines under way at once,
and others wait their turn, so neither a slow gateway nor a busy user holds up another. A gateway that cannot be reached
is left alone for longer and longer, by all its lines; one that answers with an error, by that line alone. Little is
kept in memory: beyond it, a line is read from the table again. A row is deleted when its gateway has been told, so
whoever is killed when, it is told at least once.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import orjson

from federation.outbound.egress import Crowded, EgressError, NotConnected
from federation.protocol.errors import MatrixError, Unavailable
from federation.protocol.types import EventID, UserID
from federation.rooms import notices
from federation.rooms.notices import Notice
from homeserver.followers.push_badges import Badges
from homeserver.followers.push_lines import FAILS_AFTER, Gateway, Line, Lines
from homeserver.services import push_gateway
from homeserver.services.push_gateway import GatewayAnswer, PushGateways
from homeserver.services.pushers import PusherService
from storage import background, pushers, pushes
from storage.database import Database
from storage.figures import Figures, Tally
from storage.pushers import Pusher
from storage.pushes import BADGE, Push

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Requests to one gateway."""
READ_AT_ONCE = 50
"""Pushes of one line."""
MAX_LINES = 20_000
"""That are resumed at once."""
MAX_NOTICES = 1_000
GIVE_UP_MS = 86_400_000
"""Who was not told within a day need not be told any longer."""
MAX_WAITING = 500
"""For one pusher whose gateway does not answer; older ones are given up."""
MAX_REFUSALS = 5
"""Of one push, before the next has its turn."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 900.0
CROWDED_SECONDS = 1.0
FLUSH_SECONDS = 0.05
LAST_SECONDS = 2.0
"""For which the end of this process waits for gateways to answer: else another process would tell them again."""
SWEEP_SECONDS = 60.0
SWEEPS_BEFORE_GIVING_UP = 10
"""What is old is looked for that often: all that waits is looked at."""


class PushDelivery:
    """What this process tells gateways: of the shards that it sees to."""

    def __init__(
        self,
        database: Database,
        gateways: PushGateways,
        service: PusherService,
        badges: Badges,
        *,
        sees_to: Callable[[int], bool],
    ) -> None:
        """`sees_to` says whether a shard is this process's."""
        self._database = database
        self._client = gateways
        self._service = service
        self._badges = badges
        self._sees_to = sees_to
        self._lines = Lines()
        self._notices: OrderedDict[tuple[int, int], Notice] = OrderedDict()
        self._resumed: dict[int, int] = {}
        """Shards of which more lines wait, with the last pusher whose line was resumed."""
        self._done: set[tuple[int, int, int]] = set()
        self._has_done = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._turns: dict[asyncio.Task[None], int] = {}
        """What is under way, with the shard that it is of."""
        self._is_closed = False
        self._results = {"told": 0, "rejected": 0, "failed": 0, "given_up": 0}
        self._seconds = Tally()

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {**self._lines.figures(), "pushes_total": dict(self._results), "push_seconds": self._seconds}

    def failing_gateways(self) -> list[str]:
        """Who does not answer at present, by host and port."""
        return self._lines.failing_gateways()

    # --- what others tell

    def add(self, owned: Mapping[int, Pusher], new: Sequence[Push]) -> None:
        """These were written to the table just now, each for one of these pushers."""
        for line in self._lines.add(owned, new):
            self._enqueue(line)

    def keep_notice(self, room: int, position: int, notice: Notice) -> None:
        """What is to be told of an event, for pushers that want no more of it than its ID."""
        self._notices[room, position] = notice
        if len(self._notices) > MAX_NOTICES:
            self._notices.popitem(last=False)

    def forget_notices(self, room: int, event_ids: Collection[EventID]) -> None:
        """These events are redacted: what is still to be told of them is looked up, and not found."""
        for key in [key for key, notice in self._notices.items() if key[0] == room and notice.event_id in event_ids]:
            del self._notices[key]

    def look_again(self, user_id: UserID) -> None:
        """A user's pushers may have changed, or ended; of no user: anybody's."""
        self._lines.note_outdated(user_id)

    async def drop_read(self, user_id: UserID, room: int, thread: str, upto: int) -> None:
        """A user has read a room, or a thread of it, up to a place: nobody need be told of what stands there."""
        numbers = self._lines.drop_read(user_id, room, thread, upto)
        if numbers:
            async with self._database.write() as tx:
                await pushes.delete_read(tx, pushes.shard_of(user_id), numbers, room, thread, upto)

    async def resume(self, shard: int) -> None:
        """This process sees to a shard from now on: tell what waits there."""
        for line in self._lines.of_shard(shard):
            self._lines.forget(line)
        await self._open_lines(shard, after=0)

    async def _open_lines(self, shard: int, *, after: int) -> None:
        async with self._database.read() as tx:
            numbers = await pushes.waiting(tx, shard, after=after, limit=MAX_LINES)
            found = await pushers.by_number(tx, numbers)
        self._resumed.pop(shard, None)
        if len(numbers) == MAX_LINES:
            self._resumed[shard] = numbers[-1]
        for pusher in found.values():
            if pusher.kind != pushers.HTTP:
                continue
            line = self._lines.open(pusher, shard)
            line.has_more = True
            self._enqueue(line)

    def is_busy(self, shard: int) -> bool:
        """Whether gateways are being told of something of this shard, or were, and it is not deleted yet."""
        return shard in self._turns.values() or any(key[0] == shard for key in self._done)

    # --- life

    async def run(self) -> None:
        """Delete what is done, and what is given up, until cancelled."""
        try:
            await background.run_together(self._flush_forever(), self._sweep_forever())
        finally:
            self._is_closed = True
            if self._turns:
                await asyncio.wait(self._turns, timeout=LAST_SECONDS)
            await background.end(self._turns)
            with contextlib.suppress(MatrixError):  # logged where it arose; gateways are told once more
                await self._flush()

    async def _flush_forever(self) -> None:
        while True:
            await self._has_done.wait()
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self._flush()
            except Unavailable:  # logged where it arose
                await asyncio.sleep(1)

    async def _flush(self) -> None:
        async with self._flushing:
            self._has_done.clear()
            done = list(self._done)
            if not done:
                return
            try:
                async with self._database.write() as tx:
                    await pushes.delete(tx, done)
            except BaseException:
                self._has_done.set()
                raise
            self._done.difference_update(done)

    async def _sweep_forever(self) -> None:
        for sweep in itertools.count(1):
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                for shard, last in list(self._resumed.items()):
                    if self._sees_to(shard):
                        await self._open_lines(shard, after=last)
                if self._sees_to(0) and sweep % SWEEPS_BEFORE_GIVING_UP == 0:
                    before_ts = self._database.now_ms() - GIVE_UP_MS
                    async with self._database.transaction() as tx:
                        self._results["given_up"] += await pushes.give_up(tx, before_ts=before_ts, keep=MAX_WAITING)
            except Unavailable:  # logged where it arose
                continue
            except Exception:
                logger.exception("old pushes could not be given up; the next turn tries again")

    # --- whose turn it is

    def _enqueue(self, line: Line) -> None:
        if not line.is_taken:
            line.is_taken = True
            gateway = self._lines.gateway_of(line)
            gateway.ready.append(line)
            self._start(gateway)

    def _start(self, gateway: Gateway) -> None:
        """Give turns to those who wait; to one alone while the gateway does not answer."""
        at_once = 1 if gateway.is_failing else AT_ONCE
        while gateway.ready and gateway.active < at_once and not gateway.is_left_alone and not self._is_closed:
            gateway.active += 1
            line = gateway.ready.popleft()
            task = asyncio.get_running_loop().create_task(self._take_turn(gateway, line))
            self._turns[task] = line.shard
            task.add_done_callback(self._turns.pop)

    async def _take_turn(self, gateway: Gateway, line: Line) -> None:
        wait_seconds = 0.0
        try:
            wait_seconds = await self._tell_next(gateway, line)
        except Unavailable:  # logged where it arose
            wait_seconds = CROWDED_SECONDS
        except Exception:
            logger.exception("what waits for the push gateway %s could not be told", gateway.name)
            wait_seconds = self._note_failure(line)
        finally:
            gateway.active -= 1
            if wait_seconds:
                asyncio.get_running_loop().call_later(wait_seconds, self._return, line)
            else:
                self._return(line)
            self._start(gateway)
            self._lines.tidy(gateway)

    def _return(self, line: Line) -> None:
        """The line had its turn, or was left alone for long enough."""
        line.is_taken = False
        if self._is_closed or not self._lines.is_open(line):
            return
        if line.is_empty:
            self._lines.forget(line)
        else:
            self._enqueue(line)

    def _note_failure(self, line: Line) -> float:
        line.failures += 1
        return _wait_seconds(line.failures)

    def _note_silence(self, gateway: Gateway, *, is_away: bool) -> None:
        """It gave no answer. One request that it does not answer may be at fault itself: others go on."""
        if gateway.is_left_alone:  # what began at the same time says nothing more
            return
        gateway.failures = max(gateway.failures + 1, FAILS_AFTER if is_away else 0)
        if gateway.is_failing:
            gateway.is_left_alone = True
            wait_seconds = _wait_seconds(gateway.failures - FAILS_AFTER + 1)
            asyncio.get_running_loop().call_later(wait_seconds, self._try_again, gateway)

    def _try_again(self, gateway: Gateway) -> None:
        gateway.is_left_alone = False
        self._start(gateway)
        self._lines.tidy(gateway)

    # --- telling

    async def _tell_next(self, gateway: Gateway, line: Line) -> float:
        """Tell the first that waits in a line; for how many seconds to leave the line alone then."""
        if not self._sees_to(line.shard):
            self._lines.forget(line)
            return 0.0
        if line.is_outdated and not await self._look_at_pusher(gateway, line):
            return 0.0
        if not line.waiting and line.has_more:
            await self._read(line)
        if not line.waiting:
            return 0.0
        push = line.waiting[0]
        if push.created_ts < self._database.now_ms() - GIVE_UP_MS:
            self._note_done(line, push, "given_up")
            return 0.0
        notice = await self._notice(line.pusher, push)
        if notice is None and push.position != BADGE:
            self._note_done(line, push)  # it was redacted, or the invite taken back
            return 0.0
        unread = await self._badges.get(line.pusher.user_id)
        told = push_gateway.notification(line.pusher, notice, orjson.loads(push.tweaks), unread)
        try:
            began = time.monotonic()
            answer = await self._client.tell(line.pusher, told)
        except Crowded:
            return CROWDED_SECONDS
        except EgressError as error:
            logger.info("the push gateway %s cannot be told: %s", gateway.name, error)
            self._results["failed"] += 1
            is_away = isinstance(error, NotConnected)
            self._note_silence(gateway, is_away=is_away)
            return 0.0 if is_away else self._note_failure(line)
        gateway.failures = 0
        self._seconds.add(time.monotonic() - began)
        self._badges.note_told(line.pusher.user_id, unread)
        return await self._heed(line, push, answer)

    async def _heed(self, line: Line, push: Push, answer: GatewayAnswer) -> float:
        if answer.is_rejected:
            self._results["rejected"] += 1
            logger.info("a push gateway rejects the key of a pusher of %s: it ends", line.pusher.user_id)
            await self._service.remove(line.pusher)
            await self._end(line)
            return 0.0
        if answer.is_told:
            line.failures = 0
            self._note_done(line, push, "told")
            return 0.0
        self._results["failed"] += 1
        line.refusals += answer.is_refused
        if line.refusals >= MAX_REFUSALS:
            self._note_done(line, push, "given_up")
        return self._note_failure(line)

    def _note_done(self, line: Line, push: Push, result: str | None = None) -> None:
        if result is not None:
            self._results[result] += 1
        self._lines.advance(line, push)
        self._done.add(push.key)
        self._has_done.set()

    async def _look_at_pusher(self, gateway: Gateway, line: Line) -> bool:
        """Read the pusher again; whether it is there, enabled, and still leads to this gateway."""
        line.is_outdated = False
        async with self._database.read() as tx:
            found = (await pushers.by_number(tx, [line.pusher.number])).get(line.pusher.number)
        if found is None or not found.is_enabled or found.kind != pushers.HTTP:
            await self._end(line)
            return False
        line.pusher = found
        return push_gateway.host_of(found) == gateway.name

    async def _end(self, line: Line) -> None:
        """Nobody is to be told of anything there."""
        self._lines.forget(line)
        async with self._database.write() as tx:
            await pushes.delete_of(tx, line.shard, line.pusher.number)

    async def _read(self, line: Line) -> None:
        """Read what waits in a line of which nothing is in memory."""
        await self._flush()  # else what is done would be read again
        line.has_more, line.is_reading = False, True  # what is written from now on sets `has_more` again
        try:
            async with self._database.read() as tx:
                found = await pushes.of_pusher(tx, line.shard, line.pusher.number, limit=READ_AT_ONCE)
        except BaseException:
            line.has_more, line.is_reading = True, False
            raise
        if self._lines.is_open(line):
            self._lines.fill(line, found, has_more=len(found) == READ_AT_ONCE)

    async def _notice(self, pusher: Pusher, push: Push) -> Notice | None:
        """What is to be told of the event, if it is about one that may be told."""
        if push.position == BADGE:
            return None
        known = self._notices.get((push.room, push.position))
        if known is not None and (known.is_whole or not push_gateway.wants_whole_event(pusher)):
            return known
        async with self._database.read() as tx:
            if push.room:
                found = await notices.notice_of(tx, push.room, push.position)
            else:
                found = await notices.notice_from_outside(tx, push.position)
        if found is not None:
            self.keep_notice(push.room, push.position, found)
        return found


def _wait_seconds(failures: int) -> float:
    """Longer and longer, and not the same for all."""
    longest = min(FIRST_WAIT_SECONDS * 2.0 ** min(failures - 1, 20), LONGEST_WAIT_SECONDS)
    return longest * random.uniform(0.75, 1.25)  # noqa: S311  # no secret

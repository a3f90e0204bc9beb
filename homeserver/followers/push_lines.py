"""What waits for push gateways, as far as it is in memory: a line for each pusher, by gateway."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, field

from federation.protocol.types import UserID
from homeserver.services.push_gateway import host_of
from storage.figures import Figures
from storage.pushers import Pusher
from storage.pushes import BADGE, Push

FAILS_AFTER = 3
"""Requests in a row that a gateway does not answer, or one for which there is no connection."""
MAX_HELD = 20_000
"""Pushes in memory."""


class Line(Struct, eq=False):
    """What waits for one pusher, in order."""

    pusher: Pusher
    shard: int
    waiting: deque[Push] = field(default_factory=deque)
    has_more: bool = False
    """The table holds what comes after those in memory."""
    is_reading: bool = False
    """What the table holds is on its way."""
    is_outdated: bool = False
    """The pusher may have changed, or ended."""
    is_taken: bool = False
    """It has its turn, or waits for it, or is left alone for a while."""
    failures: int = 0
    refusals: int = 0
    """Of the first that waits."""

    @property
    def tells_of_count_last(self) -> bool:
        """Whether the last that waits, and is not under way, is the count alone, which is looked up then."""
        return len(self.waiting) > 1 and self.waiting[-1].position == BADGE

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self.waiting and not self.has_more


class Gateway(Struct, eq=False):
    """Lines that lead to one place."""

    name: str
    ready: deque[Line] = field(default_factory=deque)
    active: int = 0
    """Lines that have their turn."""
    failures: int = 0
    """Requests in a row that it did not answer."""
    is_left_alone: bool = False

    @property
    def is_failing(self) -> bool:
        """Whether it is to be asked now and then alone, by one request."""
        return self.failures >= FAILS_AFTER

    @property
    def is_idle(self) -> bool:
        """Whether it may be forgotten."""
        return not self.ready and not self.active and not self.is_left_alone


class Lines:
    """All lines of this process."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._of_user: dict[UserID, dict[int, Line]] = {}
        self._gateways: dict[str, Gateway] = {}
        self._held = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "pushes_held": self._held,
            "push_gateways": len(self._gateways),
            "push_gateways_failing": len(self.failing_gateways()),
        }

    def add(self, owned: Mapping[int, Pusher], new: Sequence[Push]) -> Iterator[Line]:
        """These were written to the table, each for one of these pushers; the lines in which they are."""
        for push in new:
            line = self.open(owned[push.pusher], push.shard)
            if line.has_more or line.is_reading or self._held >= MAX_HELD:
                line.has_more = True
            elif not line.tells_of_count_last or push.position != BADGE:
                line.waiting.append(push)
                self._held += 1
            yield line

    def open(self, pusher: Pusher, shard: int) -> Line:
        """The pusher's line."""
        line = self._lines.get(pusher.number)
        if line is None:
            line = self._lines[pusher.number] = Line(pusher, shard)
            self._of_user.setdefault(pusher.user_id, {})[pusher.number] = line
        return line

    def is_open(self, line: Line) -> bool:
        """Whether it was not forgotten."""
        return self._lines.get(line.pusher.number) is line

    def fill(self, line: Line, read: Sequence[Push], *, has_more: bool) -> None:
        """What waits for a line of which nothing was in memory, from the table."""
        line.is_reading = False
        line.waiting.extend(read)
        self._held += len(read)
        line.has_more = line.has_more or has_more

    def advance(self, line: Line, push: Push) -> None:
        """This one is done."""
        line.refusals = 0
        if line.waiting and line.waiting[0] is push:
            line.waiting.popleft()
            self._held -= 1

    def forget(self, line: Line) -> None:
        """Nothing waits any longer, or others see to it."""
        self._held -= len(line.waiting)
        line.waiting.clear()
        line.has_more = False
        if self.is_open(line):
            del self._lines[line.pusher.number]
            of_user = self._of_user[line.pusher.user_id]
            del of_user[line.pusher.number]
            if not of_user:
                del self._of_user[line.pusher.user_id]

    def of_shard(self, shard: int) -> list[Line]:
        """All lines of a shard."""
        return [line for line in self._lines.values() if line.shard == shard]

    def note_outdated(self, user_id: UserID) -> None:
        """A user's pushers may have changed, or ended; of no user: anybody's."""
        for line in (self._of_user.get(user_id, {}) if user_id else self._lines).values():
            line.is_outdated = True

    def drop_read(self, user_id: UserID, room: int, thread: str, upto: int) -> list[int]:
        """A user has read a room, or a thread of it, up to a place; for which pushers something waits, there or
        elsewhere."""
        of_user = self._of_user.get(user_id, {})
        for line in of_user.values():
            kept = deque(push for push in line.waiting if not push.is_read(room, thread, upto))
            self._held -= len(line.waiting) - len(kept)
            line.waiting = kept
        return list(of_user)

    # --- gateways

    def failing_gateways(self) -> list[str]:
        """Those that do not answer at present."""
        return [gateway.name for gateway in self._gateways.values() if gateway.is_failing]

    def gateway_of(self, line: Line) -> Gateway:
        """Where the line leads."""
        name = host_of(line.pusher)
        gateway = self._gateways.get(name)
        if gateway is None:
            gateway = self._gateways[name] = Gateway(name)
        return gateway

    def tidy(self, gateway: Gateway) -> None:
        """Forget a gateway that is not needed."""
        if gateway.is_idle and self._gateways.get(gateway.name) is gateway:
            del self._gateways[gateway.name]

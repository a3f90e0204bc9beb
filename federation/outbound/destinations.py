"""What one server still has to get, and the transactions that it gets it in.

A server that keeps up has its share in memory, for a moment. One that does not is *behind*: of it only the position
is kept up to which it has everything, and what follows is read again from the log. So what is held for a server is
bounded, however long it is away, and what it gets is the same after a restart.
"""

import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

from msgspec import Struct, field

from federation.protocol.transactions import MAX_EDUS, MAX_PDUS
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, UserID
from storage.outbox import OutgoingDeviceChange, OutgoingReceipt

MAX_QUEUED = 400
"""Events, receipts or device changes in memory for one server."""
MAX_RECEIPTS = 300
MAX_RECEIPT_EDUS = 10
MAX_TYPING = 15
MAX_PRESENCE = 100
"""In one EDU."""
LANES = ("to_device", "device_lists", "events", "receipts", "typing", "presence")
"""In the order in which a transaction holds them."""
MAX_DEVICE_CHANGES = MAX_EDUS - MAX_PDUS - MAX_RECEIPT_EDUS - MAX_TYPING - 1
"""So that a transaction has no more EDUs than it may, even where each of its events is a join, which is announced with
the devices of who joins."""


class QueuedEvent(Struct, frozen=True):
    """An event on its way to several servers, which share it."""

    position: int
    event_id: EventID
    canonical: bytes
    announces: UserID | None = None
    """A user of ours who joins by it, and whose devices the room's servers may not know yet."""


class Share(Struct):
    """All that concerns a server in a part of the log that ends at `upto`."""

    upto: int
    events: list[QueuedEvent] = field(default_factory=list)
    device_changes: list[OutgoingDeviceChange] = field(default_factory=list)
    receipts: list[OutgoingReceipt] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.device_changes) + len(self.receipts)

    @property
    def positions(self) -> list[int]:
        """Where its things stand in the log."""
        return [
            *(event.position for event in self.events),
            *(change.position for change in self.device_changes),
            *(receipt.position for receipt in self.receipts),
        ]

    def fitting(self, *, alone: bool) -> "Share":
        """The oldest part that one transaction takes; with `alone`, one thing."""
        end = self.upto
        for positions, limit in (
            ([event.position for event in self.events], MAX_PDUS),
            ([change.position for change in self.device_changes], MAX_DEVICE_CHANGES),
            (sorted(receipt.position for receipt in self.receipts), MAX_RECEIPTS),
        ):
            if len(positions) > limit:
                end = min(end, positions[limit - 1])
        end = min(end, _receipts_end(self.receipts, end))
        if alone:
            end = min(self.positions, default=end)
        return Share(
            end,
            [event for event in self.events if event.position <= end],
            [change for change in self.device_changes if change.position <= end],
            [receipt for receipt in self.receipts if receipt.position <= end],
        )


def _receipts_end(receipts: Sequence[OutgoingReceipt], end: int) -> int:
    """Up to where the receipts need no more EDUs than there may be: one for each thread of a user in a room."""
    counts: dict[tuple[int, UserID], int] = {}
    for receipt in sorted(receipts, key=lambda each: each.position):
        key = (receipt.room, receipt.user_id)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > MAX_RECEIPT_EDUS:
            return min(end, receipt.position - 1)
    return end


class Destination:
    """One server to which there is something to send."""

    __slots__ = (
        "_device_changes",
        "_events",
        "_in_flight",
        "_receipts",
        "cursor",
        "has_messages",
        "is_alone_until",
        "is_behind",
        "is_running",
        "latest",
        "moved_at",
        "noted",
        "presence",
        "server",
        "typing",
    )

    def __init__(self, server: ServerName, cursor: int) -> None:
        self.server = server
        self.cursor = cursor
        """It has all that concerns it up to here."""
        self.latest = cursor
        """The newest position that concerns it."""
        self.moved_at = time.monotonic()
        """When something was last tried, or it began to have something coming."""
        self.is_behind = False
        self.has_messages = False
        """Whether there may be to-device messages for it."""
        self.is_alone_until = 0
        """Things up to this position are sent one by one: it refused them together."""
        self.is_running = False
        self.noted: int | None = None
        """Where the database says that it is, behind the others."""
        self.typing: dict[tuple[RoomID, UserID], bool] = {}
        self.presence: dict[UserID, JsonObject] = {}
        self._events: deque[QueuedEvent] = deque()
        self._device_changes: deque[OutgoingDeviceChange] = deque()
        self._receipts: dict[tuple[int, UserID, str], OutgoingReceipt] = {}
        self._in_flight: Share | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to send."""
        return not (
            self.is_behind
            or self.has_messages
            or self._events
            or self._device_changes
            or self._receipts
            or self.typing
            or self.presence
            or self._in_flight is not None
        )

    def waiting(self) -> tuple[int, int, int, int, int, int]:
        """How much waits in memory, by lane; of to-device messages, whether some do."""
        return (
            int(self.has_messages),
            len(self._device_changes),
            len(self._events),
            len(self._receipts),
            len(self.typing),
            len(self.presence),
        )

    @property
    def confirmed(self) -> int | None:
        """Up to where it has everything; None where it has all there is."""
        if self.is_behind:
            return self.cursor
        oldest = [receipt.position for receipt in self._receipts.values()]
        oldest += [event.position for event in islice(self._events, 1)]
        oldest += [change.position for change in islice(self._device_changes, 1)]
        if self._in_flight is not None:
            oldest += self._in_flight.positions
        return min(oldest) - 1 if oldest else None

    # --- what comes in

    def add_event(self, event: QueuedEvent) -> None:
        """An event that it is to get."""
        if self._is_wanted(event.position):
            self._events.append(event)
            self._bound(len(self._events))

    def add_device_change(self, change: OutgoingDeviceChange) -> None:
        """Devices that it is to hear of."""
        if self._is_wanted(change.position):
            self._device_changes.append(change)
            self._bound(len(self._device_changes))

    def add_receipt(self, receipt: OutgoingReceipt) -> None:
        """A receipt that it is to hear of, in place of an older one."""
        if self._is_wanted(receipt.position):
            self._receipts[receipt.room, receipt.user_id, receipt.thread] = receipt
            self._bound(len(self._receipts))

    def _is_wanted(self, position: int) -> bool:
        self.latest = max(self.latest, position)
        return not self.is_behind

    def _bound(self, length: int) -> None:
        if length > MAX_QUEUED:
            self.fall_behind()

    def resume(self, cursor: int, latest: int) -> None:
        """Read on from a position: what the log holds up to `latest` may concern it."""
        self.cursor = min(self.cursor, cursor) if self.is_behind else cursor
        self.latest = max(self.latest, latest)
        self.is_behind = self.cursor < self.latest

    def fall_behind(self) -> None:
        """Keep the position only: the rest is read again from the log when its turn comes."""
        if not self.is_behind:
            confirmed = self.confirmed
            self.cursor = self.latest if confirmed is None else confirmed
            self.is_behind = self.cursor < self.latest
        self._events.clear()
        self._device_changes.clear()
        self._receipts.clear()
        self._in_flight = None
        self.typing.clear()
        self.presence.clear()

    # --- what goes out

    def next_share(self) -> Share:
        """The oldest part of what is in memory, as much as one transaction takes. Not of one that is behind."""
        everything = Share(self.latest, list(self._events), list(self._device_changes), list(self._receipts.values()))
        share = everything.fitting(alone=bool(self.is_alone_until))
        self._in_flight = share
        while self._events and self._events[0].position <= share.upto:
            self._events.popleft()
        while self._device_changes and self._device_changes[0].position <= share.upto:
            self._device_changes.popleft()
        for receipt in share.receipts:
            del self._receipts[receipt.room, receipt.user_id, receipt.thread]
        return share

    def return_share(self, share: Share) -> None:
        """It was not delivered, and is to be tried again."""
        self._in_flight = None
        if self.is_behind:
            return
        self._events.extendleft(reversed(share.events))
        self._device_changes.extendleft(reversed(share.device_changes))
        for receipt in share.receipts:
            self._receipts.setdefault((receipt.room, receipt.user_id, receipt.thread), receipt)

    def confirm(self, share: Share) -> None:
        """It has this part."""
        self._in_flight = None
        if self.is_alone_until and share.upto >= self.is_alone_until:
            self.is_alone_until = 0
        if self.is_behind:
            self.cursor = max(self.cursor, share.upto)
            if self.cursor >= self.latest:
                self.is_behind = False

    def take_short_lived(self) -> tuple[list[tuple[tuple[RoomID, UserID], bool]], list[JsonObject]]:
        """Typing and presence for the next transaction, which is their only one."""
        typing = list(self.typing.items())[:MAX_TYPING]
        for key, _ in typing:
            del self.typing[key]
        presence = list(self.presence.items())[:MAX_PRESENCE]
        for user_id, _ in presence:
            del self.presence[user_id]
        return typing, [update for _, update in presence]


def room_for_messages(edus: int) -> int:
    """How many more EDUs a transaction may have."""
    return MAX_EDUS - edus

"""Rooms that a user of ours has joined, and of whose state the members are not all here yet ("Joining rooms").

A resident server may take a join and leave the members out. The room counts from then on: what is no member event is
known; a member without an entry in the room's state is *unknown*, which is not the same as being no member. Whatever
depends on an unknown member waits until the room is complete, or is refused in a way that says that it passes: nothing
is decided or shown as if they were not there. As a view of the log this knows which rooms those are.
"""

import asyncio
from collections.abc import Collection, Mapping

from msgspec import Struct

from federation.protocol.errors import MatrixError
from federation.protocol.types import EventID, StateKey
from storage import room_completeness
from storage.database import Database
from storage.log_entries import Change
from storage.room_completeness import RoomCompleteness

WAIT_SECONDS = 30.0
"""How long a client waits for what needs all members."""
_LOOK_AGAIN_SECONDS = 0.1


class BeingJoined(MatrixError):
    """The room's state, or the part of it that is needed, is not here yet."""

    def __init__(self) -> None:
        super().__init__("M_UNKNOWN", "The room is being joined", 503, {"retry_after_ms": 5000})


class StateDifference(Struct, frozen=True):
    """How a state differs from the one before the join: for who knows this one's events, but not all of them whole."""

    version: int
    """Of the state before the join."""
    changes: Mapping[StateKey, EventID | None]


StateBefore = Mapping[StateKey, EventID] | StateDifference
"""The state before an event, as another server gave it."""


class IncompleteRooms:
    """Which rooms lack members, and which did."""

    def __init__(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.wait_seconds = wait_seconds
        self._completed: dict[int, asyncio.Event] = {}
        """By rooms that lack members: set when they no longer do."""
        self._completed_at: dict[int, int] = {}

    async def start(self, database: Database) -> None:
        """Know what was so before the log is followed; to be called when it is."""
        async with database.read() as tx:
            incomplete = await room_completeness.incomplete(tx)
            self._completed_at |= await room_completeness.completions(tx)
        for room in incomplete:
            self._completed.setdefault(room, asyncio.Event())

    def apply(self, position: int, change: Change) -> None:
        """A view of the log."""
        if not isinstance(change, RoomCompleteness):
            return
        if not change.is_complete:
            self._completed.setdefault(change.room, asyncio.Event())
            return
        self._completed_at[change.room] = position
        event = self._completed.pop(change.room, None)
        if event is not None:
            event.set()

    @property
    def are_any(self) -> bool:
        """Whether any room lacks members."""
        return bool(self._completed)

    def has(self, room: int) -> bool:
        """Whether the room lacks members."""
        return room in self._completed

    def completed_since(self, rooms: Collection[int], position: int) -> set[int]:
        """Those of these rooms that came to have all members after a place in the log."""
        if not self._completed_at:
            return set()
        return {room for room in rooms if self._completed_at.get(room, 0) > position}

    def check(self, room: int) -> None:
        """Raise BeingJoined where the room lacks members."""
        if room in self._completed:
            raise BeingJoined

    async def wait(self, room: int, *, was_refused: bool = False) -> None:
        """Return once the room has all members; raises BeingJoined when that takes too long.

        Who `was_refused` because of an unknown member may have read what this view has not been told of yet.
        """
        event = self._completed.get(room)
        if event is None:
            if was_refused:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            return
        try:
            await asyncio.wait_for(event.wait(), self.wait_seconds)
        except TimeoutError:
            raise BeingJoined from None

"""How much the states that other servers give may make us write.

A state before an event that differs from ours is a line of its own with an entry for each difference, all of which is
written while no other event can be. Nobody can tell whether a difference is real, so that a server may give states of
any size that differ in everything; but a room has real ones seldom.
"""

import time
from collections import OrderedDict

from federation.protocol.errors import MatrixError

MAX_DIFFERENCES = 100_000
"""Of one room, at once; a single state with more is taken when none was for long."""
PER_SECOND = 15.0
MAX_ROOMS = 10_000


class GivenStates:
    """Budgets of rooms, each the time at which it will be whole again. The room used last is the last."""

    def __init__(self) -> None:
        self._whole_at: OrderedDict[int, float] = OrderedDict()

    def check(self, room: int, differences: int) -> None:
        """Raise an error that passes where the room had too many differences lately to take this many more."""
        if self._whole_after(room, differences) - time.monotonic() > MAX_DIFFERENCES / PER_SECOND:
            raise MatrixError("M_UNKNOWN", "The states that are given of this room differ too much", 503)

    def spend(self, room: int, differences: int) -> None:
        """Note that this many are written."""
        if differences:
            self._whole_at[room] = self._whole_after(room, differences)
            self._whole_at.move_to_end(room)
            if len(self._whole_at) > MAX_ROOMS:
                self._whole_at.popitem(last=False)

    def _whole_after(self, room: int, differences: int) -> float:
        now = time.monotonic()
        return max(self._whole_at.get(room, now), now) + min(differences, MAX_DIFFERENCES) / PER_SECOND

"""How far the log is, as the processes of one machine tell each other: in memory that they share.

A process that has committed says so here before anybody is answered, and a process that is asked something first hears
of what is said here. So whoever was answered by one of them is answered by any other as if it were the same, without a
query, and without waiting for a notification that is on its way.
"""

import mmap
import os

PLACES = 1024
"""Processes that may say something at the same time: whoever follows another has a place of its own."""
_BYTES = PLACES * 8


def shared_memory() -> int:
    """A file descriptor of memory for one server's processes, to be handed to each."""
    descriptor = os.memfd_create("hearth-newest")
    os.ftruncate(descriptor, _BYTES)
    return descriptor


class Newest:
    """The newest position that any of the processes knows to be committed."""

    def __init__(self, descriptor: int = -1, place: int = 0, places: int = 1) -> None:
        """The first `places` are used, and `place` is this process's own: nobody else writes there."""
        self._all = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
        self._used = self._all[: min(places, PLACES)]
        self._own = place % len(self._used)

    @property
    def position(self) -> int:
        """At least as far the log is."""
        return max(self._used)

    def tell(self, position: int) -> None:
        """This process knows that the log has come so far."""
        self._used[self._own] = max(self._used[self._own], position)

    def forget(self, position: int) -> None:
        """The log ends here: it is another, which lost what was committed later."""
        for place, told in enumerate(self._used):
            if told > position:
                self._used[place] = position

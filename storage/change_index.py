"""Where in the tail's window the changes of one room are, or of one user."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

from federation.protocol.types import UserID
from storage.log_entries import Change

_Key = TypeVar("_Key", int, UserID)


class ChangeIndex:
    """Changes of one room or user, in order, never empty once the first is in."""

    __slots__ = ("changes", "lasts")

    def __init__(self) -> None:
        self.changes: list[tuple[int, Change]] = []
        self.lasts: list[int] = []
        """The last position of each."""

    def append(self, change: tuple[int, Change], last: int) -> None:
        """Add what came after all others, with its last position."""
        self.changes.append(change)
        self.lasts.append(last)

    def drop_first(self) -> bool:
        """Whether nothing is left."""
        del self.changes[0], self.lasts[0]
        return not self.lasts

    def after(self, position: int) -> Sequence[tuple[int, Change]]:
        """Those that end after a position."""
        if self.lasts[-1] <= position:
            return ()
        return self.changes[bisect_right(self.lasts, position) :]


def place(indexes: dict[_Key, ChangeIndex], key: _Key) -> ChangeIndex:
    """The index of a room or user, a new one if need be."""
    index = indexes.get(key)
    if index is None:
        index = indexes[key] = ChangeIndex()
    return index

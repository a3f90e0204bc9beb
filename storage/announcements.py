"""What a process says of a batch that it appended to the log, for the tails of others.

A header, `BEFORE POSITION KINDS`, and on the next line the entries, where they are carried along (`carrying.py`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from storage.database import Memory

SOMETHING = b""
"""In place of an announcement: something may be committed that nobody was told of."""


class Announcement(Struct, frozen=True):
    """A batch that is committed."""

    before: int
    """The position that it follows."""
    position: int
    """Its last."""
    kinds: int
    """Of the changes that are in it, as bits."""
    body: bytes = b""
    """Its changes, if they are carried."""

    def to_bytes(self) -> bytes:
        """As `parse` takes it."""
        return b"%d %d %d\n%b" % (self.before, self.position, self.kinds, self.body)


class Carrier(Protocol):
    """How changes travel: the same that `read_range` of their kinds would give."""

    def encode(self, changes: Sequence[tuple[int, Any]], limit: int) -> bytes:
        """These changes, or nothing where they do not travel, or not in so many bytes."""

    def decode(self, body: bytes, memory: Memory) -> Sequence[tuple[int, Any]] | None:
        """Changes with their positions; None where there are none to be had."""


def parse(message: bytes) -> Announcement | None:
    """None for what is none: another release, or `SOMETHING`."""
    header, _, body = message.partition(b"\n")
    try:
        before, position, kinds = map(int, header.split())
    except ValueError:
        return None
    if before >= position:
        return None
    return Announcement(before, position, kinds, body)

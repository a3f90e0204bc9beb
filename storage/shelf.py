"""Entries that the processes of one machine hand each other, in memory that they share.

Each lays down what it appends in a ring of its own, and announces where; the others take a copy. What was overwritten
meanwhile, or is another machine's, is read from the database like anything that the bus did not bring.
"""

import mmap
import os
import zlib
from collections.abc import Sequence
from typing import Any

from storage import carrying
from storage.database import Memory
from storage.log_entries import Change

RING_BYTES = 2 * 1024 * 1024
"""Of each process: some thousand messages. Who is further behind reads the database."""
MAX_BYTES = RING_BYTES // 4
"""Of one batch."""
_TOKEN_BYTES = 16
_MARK = b"@"


def shared_memory(places: int) -> int:
    """A file descriptor of memory for one server's processes, to be handed to each."""
    descriptor = os.memfd_create("hearth-shelf")
    os.ftruncate(descriptor, _size(places))
    os.pwrite(descriptor, os.urandom(_TOKEN_BYTES // 2).hex().encode(), 0)
    return descriptor


def _size(places: int) -> int:
    return _first_ring(places) + places * RING_BYTES


def _first_ring(places: int) -> int:
    return _TOKEN_BYTES + 8 * places


class Shelf:
    """The rings of all processes, of which each writes its own."""

    def __init__(self, descriptor: int, place: int, places: int) -> None:
        """`place` is this process's own. Who had it before wrote there, and nobody else does."""
        self._memory = memoryview(mmap.mmap(descriptor, _size(places)))
        self._token = bytes(self._memory[:_TOKEN_BYTES])
        self._ends = self._memory[_TOKEN_BYTES : _first_ring(places)].cast("q")
        """How many bytes each has begun to write since the server started."""
        self._first_ring = _first_ring(places)
        self._own = place

    def lay(self, body: bytes) -> bytes:
        """Put something down; where it lies, for `take` in another process, or nothing if it is too large."""
        size, at = len(body), self._ends[self._own]
        if size > MAX_BYTES:
            return b""
        if at % RING_BYTES + size > RING_BYTES:  # it stays in one piece
            at += RING_BYTES - at % RING_BYTES
        self._ends[self._own] = at + size
        self._part(self._own, at, size)[:] = body
        return b"%b%b %d %d %d %d" % (_MARK, self._token, self._own, at, size, zlib.crc32(body))

    def take(self, reference: bytes) -> bytes | None:
        """What lies there, unless it is no longer there, or elsewhere."""
        try:
            token, *numbers = reference.removeprefix(_MARK).split()
            place, at, size, checksum = map(int, numbers)
        except ValueError:
            return None
        is_here = token == self._token and 0 <= place < len(self._ends) and 0 <= size <= MAX_BYTES and at >= 0
        if not is_here or at % RING_BYTES + size > RING_BYTES:
            return None
        body = bytes(self._part(place, at, size))
        is_whole = self._ends[place] - at <= RING_BYTES and zlib.crc32(body) == checksum
        return body if is_whole else None

    def _part(self, place: int, at: int, size: int) -> memoryview:
        begin = self._first_ring + place * RING_BYTES + at % RING_BYTES
        return self._memory[begin : begin + size]


class ShelfCarrier:
    """A carrier of changes (`carrying.py`) that lays down what is too much for the bus."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        """Without a shelf it travels as far as the bus carries it, and is read otherwise."""
        self._shelf = shelf

    def encode(self, changes: Sequence[tuple[int, Any]], limit: int) -> bytes:
        """These changes, or where they lie, or nothing where they do not travel."""
        if self._shelf is None:
            return carrying.encode(changes, limit)
        body = carrying.encode(changes, max(limit, MAX_BYTES))
        return body if len(body) <= limit else self._shelf.lay(body)

    def decode(self, body: bytes, memory: Memory) -> list[tuple[int, Change]] | None:
        """Changes with their positions; None where there are none to be had."""
        if body.startswith(_MARK):
            taken = None if self._shelf is None else self._shelf.take(body)
            return None if taken is None else carrying.decode(taken, memory)
        return carrying.decode(body, memory)

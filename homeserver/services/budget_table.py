"""When each budget will be full again: a table of fixed size, in memory that the processes of one server share.

As it has a place for so many and no more, nobody fills the memory with names; where a set of places is taken, the
budget that is full soonest is forgotten, which makes it full. Two processes that write the same place at the same
moment may lose one request's cost, which harms nobody.
"""

import mmap
import os
import secrets
import struct
from functools import lru_cache
from hashlib import blake2b

_WAYS = 4
_SETS = 1 << 16
_ENTRY = struct.Struct("<Qd")
_SET = struct.Struct("<QdQdQdQd")
_SECRET_BYTES = 16
SIZE = 64 + _SETS * _SET.size


def shared_memory() -> int:
    """A file descriptor of memory for one table, to be handed to the processes that share it."""
    descriptor = os.memfd_create("hearth-budgets")
    os.ftruncate(descriptor, SIZE)
    os.pwrite(descriptor, secrets.token_bytes(_SECRET_BYTES), 0)
    return descriptor


class BudgetTable:
    """The table, in this process's memory or in that behind a file descriptor."""

    def __init__(self, descriptor: int = -1) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        if descriptor == -1:
            self._memory[:_SECRET_BYTES] = secrets.token_bytes(_SECRET_BYTES)
        self._secret = self._memory[:_SECRET_BYTES]
        """Nobody outside knows which names share a set of places."""
        self._find = lru_cache(maxsize=4096)(self._compute)

    def get(self, name: str) -> float:
        """When the budget of this name will be full again; 0 for one that is not remembered."""
        offset, mark = self._find(name)
        entries = _SET.unpack_from(self._memory, offset)
        for way in range(_WAYS):
            if entries[2 * way] == mark:
                found: float = entries[2 * way + 1]
                return found
        return 0.0

    def put(self, name: str, full_at: float) -> None:
        """Remember it, in place of the one that is full soonest if need be."""
        offset, mark = self._find(name)
        entries = _SET.unpack_from(self._memory, offset)
        marks = entries[::2]
        way = marks.index(mark) if mark in marks else min(range(_WAYS), key=entries[1::2].__getitem__)
        _ENTRY.pack_into(self._memory, offset + way * _ENTRY.size, mark, full_at)

    def _compute(self, name: str) -> tuple[int, int]:
        """Where the name's set of places begins, and what stands for the name there."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12, key=self._secret).digest()
        number = int.from_bytes(digest[:4], "little") % _SETS
        return 64 + number * _SET.size, int.from_bytes(digest[4:], "little") | 1

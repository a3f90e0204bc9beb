"""How the processes of one database share work without a word: all compute alike who does what."""

from collections.abc import Set
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

Thing = TypeVar("Thing", int, str)


@lru_cache(maxsize=32)
def share_of(process: str, processes: tuple[str, ...], things: tuple[Thing, ...]) -> Set[Thing]:
    """Those of the things that a process, one of these, sees to; few move when a process comes or goes."""

    def owner(thing: Thing) -> str:
        return max(processes, key=lambda each: sha256(f"{each} {thing}".encode()).digest())

    return frozenset(thing for thing in things if owner(thing) == process)

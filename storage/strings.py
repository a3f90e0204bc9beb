"""Event types, state keys and user IDs as integers (table `strings`).

A string's number never changes, so this process may remember as many as it likes: a bounded part of the table.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from storage.arrays import Texts
from storage.database import Memory, Row, Statement, Tx

WELL_KNOWN: dict[str, int] = {
    "": 1,
    "m.room.create": 2,
    "m.room.member": 3,
    "m.room.power_levels": 4,
    "m.room.join_rules": 5,
    "m.room.history_visibility": 6,
    "m.room.message": 7,
    "m.room.encrypted": 8,
    "m.room.redaction": 9,
    "m.room.encryption": 10,
    "m.room.name": 11,
    "m.room.canonical_alias": 12,
    "m.room.topic": 13,
    "m.room.avatar": 14,
    "m.room.third_party_invite": 15,
    "m.room.guest_access": 16,
    "m.room.tombstone": 17,
    "m.room.server_acl": 18,
    "m.space.child": 19,
    "m.reaction": 20,
    "m.reference": 21,
    "m.replace": 22,
    "m.thread": 23,
    "m.annotation": 24,
}
"""Numbers below 1000 are given here, so that index predicates and queries may name them."""

MEMBER = WELL_KNOWN["m.room.member"]

_REMEMBERED = 200_000
_NONE: Mapping[str, int] = MappingProxyType({})


class _Strings:
    """What is remembered of a database's table."""

    __slots__ = ("numbers", "values")

    def __init__(self) -> None:
        self.numbers: dict[str, int]
        self.values: dict[int, str]
        self.forget()

    def forget(self) -> None:
        self.numbers = dict(WELL_KNOWN)
        self.values = {number: value for value, number in WELL_KNOWN.items()}

    def keep(self, value: str, number: int) -> None:
        if len(self.numbers) > _REMEMBERED:
            self.forget()
        self.numbers[value] = number
        self.values[number] = value


async def intern(tx: Tx, values: Collection[str], given: Mapping[str, int] = _NONE) -> dict[str, int]:
    """The number of each string; new ones get theirs. `given` are some that were interned in the same transaction."""
    remembered = tx.memory.part(_Strings).numbers
    found = {value: remembered.get(value) or given.get(value, 0) for value in values}
    missing = sorted(value for value, number in found.items() if not number)
    if missing:
        found |= from_rows(await tx.fetch(*intern_statement(missing)))
        missing = [value for value in missing if not found[value]]
        if missing:  # somebody else's were committed in between: the next statement sees them
            found |= await find(tx, missing)
            if not all(found.values()):
                raise RuntimeError("a string that was written is not there")
    return found


def intern_statement(missing: Collection[str]) -> Statement:
    """The statement of `intern`, to be sent together with others, for strings that are `unknown`.

    It may miss those that somebody else commits meanwhile.
    """
    wanted = Texts(missing)
    return (
        "with new as (insert into strings (value) select wanted from unnest(%s::text[]) as wanted"
        "  where not exists (select from strings where value = wanted) on conflict do nothing"
        "  returning value, id)"
        " select value, id from new union all select value, id from strings where value = any(%s::text[])",
        (wanted, wanted),
    )


def from_rows(rows: Iterable[Row]) -> dict[str, int]:
    """What `intern_statement` found."""
    return {value: number for value, number in rows}


def unknown(memory: Memory, values: Iterable[str]) -> list[str]:
    """Those of the strings that this process does not remember."""
    remembered = memory.part(_Strings).numbers
    return sorted(value for value in set(values) if value not in remembered)


async def find(tx: Tx, values: Collection[str]) -> dict[str, int]:
    """The numbers of those strings that have one.

    What this finds is remembered only when it is committed, which `Tx` cannot know; a number that was rolled back
    is never given again, so remembering it would be wrong. Hence only reads outside the appender fill the memory.
    """
    remembered = tx.memory.part(_Strings).numbers
    found = {value: remembered[value] for value in values if value in remembered}
    missing = [value for value in values if value not in found]
    if missing:
        rows = await tx.fetch("select value, id from strings where value = any(%s)", (missing,))
        found |= {value: number for value, number in rows}
    return found


async def values_of(tx: Tx, numbers: Iterable[int]) -> dict[int, str]:
    """The strings behind these numbers, which are there. Remembered is what is committed for certain."""
    wanted, memory = set(numbers), tx.memory.part(_Strings)
    found = {number: memory.values[number] for number in wanted if number in memory.values}
    missing = [number for number in wanted if number not in found]
    if missing:
        for number, value in await tx.fetch("select id, value from strings where id = any(%s)", (missing,)):
            found[number] = value
            if tx.reads_commits:
                memory.keep(value, number)
    return found


def remember_committed(memory: Memory, pairs: Mapping[str, int]) -> None:
    """Keep numbers whose transaction is known to be committed."""
    remembered = memory.part(_Strings)
    for value, number in pairs.items():
        if value not in remembered.numbers:
            remembered.keep(value, number)


def not_remembered(memory: Memory, pairs: Mapping[str, int]) -> dict[str, int]:
    """Those of these numbers that this process does not remember: next to none, as a rule."""
    remembered = memory.part(_Strings).numbers
    return {value: number for value, number in pairs.items() if value not in remembered}


def known(memory: Memory, value: str) -> int | None:
    """A string's number, if this process remembers it."""
    return memory.part(_Strings).numbers.get(value)

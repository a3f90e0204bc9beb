"""Event types, state keys and user IDs as integers (table `strings`).

A string's number never changes, so this process may remember as many as it likes: a bounded part of the table.
"""

from collections.abc import Collection, Iterable

from storage.database import Tx

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
}
"""Numbers below 1000 are given here, so that index predicates and queries may name them."""

MEMBER = WELL_KNOWN["m.room.member"]

_REMEMBERED = 200_000
_numbers: dict[str, int] = dict(WELL_KNOWN)
_values: dict[int, str] = {number: value for value, number in WELL_KNOWN.items()}


def _remember(value: str, number: int) -> None:
    if len(_numbers) > _REMEMBERED:
        forget_all()
    _numbers[value] = number
    _values[number] = value


def forget_all() -> None:
    """Drop what this process remembers, when it turns to another database."""
    _numbers.clear()
    _values.clear()
    _numbers.update(WELL_KNOWN)
    _values.update({number: value for value, number in WELL_KNOWN.items()})


async def intern(tx: Tx, values: Iterable[str]) -> dict[str, int]:
    """The number of each string; new ones get theirs."""
    wanted = set(values)
    found = {value: _numbers[value] for value in wanted if value in _numbers}
    missing = sorted(wanted - found.keys())
    if missing:
        rows = await tx.fetch(
            "with new as (insert into strings (value) select wanted from unnest(%s::text[]) as wanted"
            "  where not exists (select from strings where value = wanted) on conflict do nothing"
            "  returning value, id)"
            " select value, id from new union all select value, id from strings where value = any(%s::text[])",
            (missing, missing),
        )
        found |= {value: number for value, number in rows}
        if len(found) < len(wanted):  # somebody else's were committed in between: the next statement sees them
            found |= await find(tx, wanted - found.keys())
    return found


async def find(tx: Tx, values: Collection[str]) -> dict[str, int]:
    """The numbers of those strings that have one.

    What this finds is remembered only when it is committed, which `Tx` cannot know; a number that was rolled back
    is never given again, so remembering it would be wrong. Hence only reads outside the appender fill the memory.
    """
    found = {value: _numbers[value] for value in values if value in _numbers}
    missing = [value for value in values if value not in found]
    if missing:
        rows = await tx.fetch("select value, id from strings where value = any(%s)", (missing,))
        found |= {value: number for value, number in rows}
    return found


async def values_of(tx: Tx, numbers: Iterable[int]) -> dict[int, str]:
    """The strings behind numbers that stand in committed rows."""
    wanted = set(numbers)
    found = {number: _values[number] for number in wanted if number in _values}
    missing = [number for number in wanted if number not in found]
    if missing:
        for number, value in await tx.fetch("select id, value from strings where id = any(%s)", (missing,)):
            _remember(value, number)
            found[number] = value
    return found


def remember_committed(pairs: dict[str, int]) -> None:
    """Keep numbers whose transaction is known to be committed."""
    for value, number in pairs.items():
        if value not in _numbers:
            _remember(value, number)


def known(value: str) -> int | None:
    """A string's number, if this process remembers it."""
    return _numbers.get(value)

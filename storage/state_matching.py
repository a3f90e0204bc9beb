"""Parts of many rooms' current states at once: single entries, those of a type, those with a state key, or all of them.

Only of events up to a place in the log: an entry that was replaced since is left out, for who reads on from there.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct, field

from federation.protocol.types import StateKey
from storage import strings
from storage.arrays import Int4
from storage.database import Row, Tx

_COLUMNS = "room_state.room, room_state.type, room_state.state_key, event"
_CURRENT = "line = 0 and until_version is null and event <= %s"


class StatePart(Struct):
    """What is wanted of one room."""

    entries: set[StateKey] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    state_keys: set[str] = field(default_factory=set)
    has_rest: bool = False
    """Everything but member events."""


async def read(tx: Tx, parts: Mapping[int, StatePart], upto: int) -> dict[int, dict[StateKey, int]]:
    """What the rooms' states hold of this: a fixed number of statements for all rooms."""
    texts = {text for part in parts.values() for key in part.entries for text in key}
    texts.update(text for part in parts.values() for text in (*part.types, *part.state_keys))
    numbers = await strings.find(tx, texts)
    rows = [
        *await _entries(tx, parts, upto, numbers),
        *await _by_column(tx, "type", ((room, part.types) for room, part in parts.items()), upto, numbers),
        *await _by_column(tx, "state_key", ((room, part.state_keys) for room, part in parts.items()), upto, numbers),
    ]
    whole = [room for room, part in parts.items() if part.has_rest]
    if whole:
        rows += await tx.fetch(
            f"select {_COLUMNS} from room_state where room = any(%s::int[]) and {_CURRENT} and membership is null",
            (Int4(whole), upto),
        )
    names = await strings.values_of(tx, {number for row in rows for number in row[1:3]})
    found: dict[int, dict[StateKey, int]] = {room: {} for room in parts}
    for room, type_, state_key, event in rows:
        found[room][names[type_], names[state_key]] = event
    return found


async def read_whole(tx: Tx, rooms: Collection[int], *, limit: int) -> dict[int, dict[StateKey, int] | None]:
    """The current states of these rooms but for member events; None for one that has more entries than `limit`."""
    range_of_types = (
        "(select type, state_key, event from room_state where room = number and line = 0 and until_version is null"
        f" and event is not null and type {{}} {strings.MEMBER:d} limit %s)"
    )
    rows = await tx.fetch(
        "select number, type, state_key, event from unnest(%s::int[]) as given(number),"
        f" lateral ({range_of_types.format('<')} union all {range_of_types.format('>')}) as found",
        (Int4(rooms), limit + 1, limit + 1),
    )
    names = await strings.values_of(tx, {number for row in rows for number in row[1:3]})
    found: dict[int, dict[StateKey, int]] = {room: {} for room in rooms}
    for room, type_, state_key, event in rows:
        found[room][names[type_], names[state_key]] = event
    return {room: state if len(state) <= limit else None for room, state in found.items()}


async def _entries(tx: Tx, parts: Mapping[int, StatePart], upto: int, numbers: Mapping[str, int]) -> list[Row]:
    asked = [
        (room, numbers[key[0]], numbers[key[1]])
        for room, part in parts.items()
        for key in part.entries
        if key[0] in numbers and key[1] in numbers
    ]
    if not asked:
        return []
    return await tx.fetch(
        f"select {_COLUMNS} from unnest(%s::int[], %s::int[], %s::int[]) as given(room, type, state_key)"
        "  join room_state on room_state.room = given.room and room_state.type = given.type"
        f"  and room_state.state_key = given.state_key and {_CURRENT}",
        (*(Int4(column) for column in zip(*asked, strict=True)), upto),
    )


async def _by_column(
    tx: Tx, column: str, wanted: Iterable[tuple[int, set[str]]], upto: int, numbers: Mapping[str, int]
) -> list[Row]:
    asked = [(room, numbers[text]) for room, texts in wanted for text in texts if text in numbers]
    if not asked:
        return []
    return await tx.fetch(
        f"select {_COLUMNS} from unnest(%s::int[], %s::int[]) as given(room, text)"
        f"  join room_state on room_state.room = given.room and room_state.{column} = given.text and {_CURRENT}",
        (*(Int4(values) for values in zip(*asked, strict=True)), upto),
    )

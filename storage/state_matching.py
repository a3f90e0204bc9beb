"""Parts of many rooms' states at once: single entries, those of a type, those with a state key, or all of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from federation.protocol.types import StateKey
from storage import room_state, strings
from storage.arrays import Int4
from storage.database import Row, Tx

_AT_VERSION = (
    "line = 0 and since_version <= given.version and (until_version is null or until_version > given.version)"
    " and event is not null"
)


@dataclass(slots=True)
class StatePart:
    """What is wanted of one room's trunk at a version."""

    version: int
    entries: set[StateKey] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    state_keys: set[str] = field(default_factory=set)
    has_rest: bool = False
    """Everything but member events."""


async def read(tx: Tx, parts: Mapping[int, StatePart]) -> dict[int, dict[StateKey, int]]:
    """What the rooms' states hold of this: a fixed number of statements for all rooms."""
    found: dict[int, dict[StateKey, int]] = {room: {} for room in parts}
    texts = {text for part in parts.values() for key in part.entries for text in key}
    texts.update(text for part in parts.values() for text in (*part.types, *part.state_keys))
    numbers = await strings.find(tx, texts)
    rows = [
        *await _entries(tx, parts, numbers),
        *await _by_column(tx, "type", ((room, part.version, part.types) for room, part in parts.items()), numbers),
        *await _by_column(
            tx, "state_key", ((room, part.version, part.state_keys) for room, part in parts.items()), numbers
        ),
    ]
    names = await strings.values_of(tx, {number for row in rows for number in row[1:3]})
    for room, type_, state_key, event in rows:
        found[room][names[type_], names[state_key]] = event
    whole = {room: part.version for room, part in parts.items() if part.has_rest}
    if whole:
        for room, state in (await room_state.at_versions(tx, whole, members=())).items():
            found[room].update(state)
    return found


async def _entries(tx: Tx, parts: Mapping[int, StatePart], numbers: Mapping[str, int]) -> list[Row]:
    asked = [
        (room, part.version, numbers[key[0]], numbers[key[1]])
        for room, part in parts.items()
        for key in part.entries
        if key[0] in numbers and key[1] in numbers
    ]
    if not asked:
        return []
    return await tx.fetch(
        "select given.room, given.type, given.state_key, found.event"
        " from unnest(%s::int[], %s::int[], %s::int[], %s::int[]) as given(room, version, type, state_key),"
        "  lateral (select event, until_version from room_state where room_state.room = given.room and line = 0"
        "  and room_state.type = given.type and room_state.state_key = given.state_key"
        "  and since_version <= given.version order by since_version desc limit 1) as found"
        " where found.event is not null and (found.until_version is null or found.until_version > given.version)",
        tuple(Int4(column) for column in zip(*asked, strict=True)),
    )


async def _by_column(
    tx: Tx, column: str, wanted: Iterable[tuple[int, int, set[str]]], numbers: Mapping[str, int]
) -> list[Row]:
    asked = [(room, version, numbers[text]) for room, version, texts in wanted for text in texts if text in numbers]
    if not asked:
        return []
    return await tx.fetch(
        "select room_state.room, type, state_key, event"
        " from unnest(%s::int[], %s::int[], %s::int[]) as given(room, version, text)"
        f" join room_state on room_state.room = given.room and room_state.{column} = given.text and {_AT_VERSION}",
        tuple(Int4(values) for values in zip(*asked, strict=True)),
    )

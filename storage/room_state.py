"""A room's state at any of its versions (`docs/how-it-works.md`): reading. `append_events.py` writes.

A `Point` is (line, version). The trunk is line 0; a branch stores what differs from a point of its parent line, and
a line without a parent is a whole state. Answers map (type, state key) to the position of the event.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.protocol.types import ServerName, StateKey, UserID
from storage import strings
from storage.database import Row, Tx
from storage.events import COLUMNS, StoredEvent, from_row
from storage.memberships import Membership

Point = tuple[int, int]
TRUNK = 0


class Line(Struct, frozen=True):
    """A branch: where it left its parent, and its newest version."""

    parent: Point | None
    version: int


async def current(tx: Tx, room: int, keys: Iterable[StateKey]) -> dict[StateKey, int]:
    """The current entries under these keys."""
    wanted = list(keys)
    numbers = await _numbers_of(tx, wanted)
    asked = {(numbers[key[0]], numbers[key[1]]): key for key in wanted if key[0] in numbers and key[1] in numbers}
    if not asked:
        return {}
    rows = await tx.fetch(
        "select type, state_key, event from room_state where room = %s and line = 0 and until_version is null"
        " and event is not null and (type, state_key) in (select * from unnest(%s::int[], %s::int[]))",
        (room, [pair[0] for pair in asked], [pair[1] for pair in asked]),
    )
    return {asked[row[0], row[1]]: row[2] for row in rows}


async def current_events(tx: Tx, room: int, keys: Iterable[StateKey]) -> dict[StateKey, StoredEvent]:
    """The current state events under these keys: one statement, whether their strings are known here or not."""
    wanted = list(keys)
    if not wanted:
        return {}
    types, state_keys = zip(*wanted, strict=True)
    # One key is no array, whose plan would be made anew each time.
    given, params = "(values (%s::text, %s::text))", [types[0], state_keys[0]]
    if len(wanted) > 1:
        given, params = "unnest(%s::text[], %s::text[])", [list(types), list(state_keys)]
    # Subqueries, because the planner would rather join all of the room's state with all strings.
    rows = await tx.fetch(
        f"select {COLUMNS}, given.type, given.state_key from {given} as given(type, state_key)"
        " join events on events.room = %s and events.position = ("
        "  select event from room_state where room = %s and line = 0 and until_version is null"
        "  and type = (select id from strings where value = given.type)"
        "  and state_key = (select id from strings where value = given.state_key))",
        (*params, room, room),
    )
    return {(row[-2], row[-1]): from_row(row) for row in rows}


async def current_of_type(
    tx: Tx, rooms: Collection[int], event_type: str, *, limit: int, max_bytes: int
) -> dict[int, list[StoredEvent]]:
    """The current state events of one type in several rooms: so many of each, and none that is stored in more bytes."""
    rows = await tx.fetch(
        f"select {COLUMNS} from unnest(%s::int[]) as given(number) cross join lateral ("
        "  select event from room_state where room = given.number and room_state.line = 0 and until_version is null"
        "  and type = (select id from strings where value = %s) and event is not null order by state_key limit %s"
        " ) as found join events on events.room = given.number and events.position = found.event"
        " where octet_length(json) <= %s",
        (list(rooms), event_type, limit, max_bytes),
    )
    found: dict[int, list[StoredEvent]] = {}
    for row in rows:
        event = from_row(row)
        found.setdefault(event.room, []).append(event)
    return found


async def current_whole(tx: Tx, room: int) -> dict[StateKey, int]:
    """The whole current state."""
    rows = await tx.fetch(
        "select type, state_key, event from room_state where room = %s and line = 0 and until_version is null"
        " and event is not null",
        (room,),
    )
    return await _keyed(tx, rows)


async def current_of_many(tx: Tx, rooms: Collection[int], keys: Sequence[StateKey]) -> dict[int, dict[StateKey, int]]:
    """The current state of several rooms under these keys."""
    numbers = await _numbers_of(tx, keys)
    pairs = [(numbers[key[0]], numbers[key[1]]) for key in keys if key[0] in numbers and key[1] in numbers]
    rows = await tx.fetch(
        "select type, state_key, event, room from room_state where room = any(%s::int[]) and line = 0"
        " and until_version is null and event is not null"
        " and (type, state_key) in (select * from unnest(%s::int[], %s::int[]))",
        (list(rooms), [pair[0] for pair in pairs], [pair[1] for pair in pairs]),
    )
    texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
    found: dict[int, dict[StateKey, int]] = {room: {} for room in rooms}
    for type_, state_key, event, room in rows:
        found[room][texts[type_], texts[state_key]] = event
    return found


async def members_at(
    tx: Tx, room: int, version: int | None, memberships: Collection[Membership]
) -> list[tuple[UserID, Membership, int]]:
    """Members with one of these memberships at a version of the trunk, or now, those who came first before others:
    user, membership, position.
    """
    when = "until_version is null"
    params: tuple[int, ...] = ()
    if version is not None:
        when, params = "since_version <= %s and (until_version is null or until_version > %s)", (version, version)
    rows = await tx.fetch(
        "select strings.value, membership, event from room_state join strings on strings.id = room_state.state_key"
        f" where room = %s and type = %s and line = 0 and {when} and membership = any(%s::smallint[]) order by event",
        (room, strings.MEMBER, *params, [int(membership) for membership in memberships]),
    )
    return [(UserID(user_id), Membership(membership), event) for user_id, membership, event in rows]


async def first_members(
    tx: Tx, rooms: Collection[int], memberships: Collection[Membership], *, besides: UserID, limit: int
) -> dict[int, list[UserID]]:
    """For each room the members with one of these memberships who came first, one user left out."""
    numbers = await strings.find(tx, [besides])
    rows = await tx.fetch(
        "select number, strings.value from unnest(%s::int[]) as wanted(number), lateral ("
        "  select state_key, since_version from room_state where room = number and type = %s and line = 0"
        "  and until_version is null and membership = any(%s::smallint[]) and state_key <> %s"
        "  order by since_version limit %s) as found"
        " join strings on strings.id = found.state_key order by found.since_version",
        (
            list(rooms),
            strings.MEMBER,
            [int(membership) for membership in memberships],
            numbers.get(besides, 0),
            limit,
        ),
    )
    found: dict[int, list[UserID]] = {room: [] for room in rooms}
    for room, user_id in rows:
        found[room].append(UserID(user_id))
    return found


async def first_member_events(
    tx: Tx, rooms: Collection[int], memberships: Collection[Membership], *, besides: UserID, limit: int
) -> dict[int, list[int]]:
    """As `first_members`: the positions of their member events."""
    numbers = await strings.find(tx, [besides])
    rows = await tx.fetch(
        "select number, event from unnest(%s::int[]) as wanted(number), lateral ("
        "  select event, since_version from room_state where room = number and type = %s and line = 0"
        "  and until_version is null and membership = any(%s::smallint[]) and state_key <> %s"
        "  order by since_version limit %s) as found order by number, since_version",
        (
            list(rooms),
            strings.MEMBER,
            [int(membership) for membership in memberships],
            numbers.get(besides, 0),
            limit,
        ),
    )
    found: dict[int, list[int]] = {room: [] for room in rooms}
    for room, event in rows:
        found[room].append(event)
    return found


async def changed_between(tx: Tx, spans: Mapping[int, tuple[int, int]]) -> dict[int, dict[StateKey, int | None]]:
    """What the trunk of each room holds at the second version and did not hold at the first (None: taken away)."""
    rows = await tx.fetch(
        "select type, state_key, event, room_state.room from room_state"
        " join unnest(%s::int[], %s::int[], %s::int[]) as given(room, low, high) on room_state.room = given.room"
        " where line = 0 and since_version > low and since_version <= high"
        " and (until_version is null or until_version > high)",
        (list(spans), [span[0] for span in spans.values()], [span[1] for span in spans.values()]),
    )
    texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
    found: dict[int, dict[StateKey, int | None]] = {room: {} for room in spans}
    for type_, state_key, event, room in rows:
        found[room][texts[type_], texts[state_key]] = event
    return found


class Span(Struct, frozen=True):
    """An entry of the trunk, with the versions from which and before which it was current."""

    since: int
    until: int | None
    event: int | None
    membership: Membership | None


async def history(tx: Tx, room: int, keys: Sequence[StateKey]) -> dict[StateKey, list[Span]]:
    """Every trunk entry that ever stood under these keys, oldest first."""
    numbers = await _numbers_of(tx, keys)
    asked = {(numbers[key[0]], numbers[key[1]]): key for key in keys if key[0] in numbers and key[1] in numbers}
    found: dict[StateKey, list[Span]] = {key: [] for key in keys}
    if asked:
        rows = await tx.fetch(
            "select type, state_key, since_version, until_version, event, membership from room_state"
            " where room = %s and line = 0"
            " and (type, state_key) in (select * from unnest(%s::int[], %s::int[])) order by since_version",
            (room, [pair[0] for pair in asked], [pair[1] for pair in asked]),
        )
        for type_, state_key, since, until, event, membership in rows:
            member = None if membership is None else Membership(membership)
            found[asked[type_, state_key]].append(Span(since, until, event, member))
    return found


async def histories(tx: Tx, rooms: Collection[int], key: StateKey) -> dict[int, list[Span]]:
    """Every trunk entry that ever stood under one key, in each of these rooms, oldest first."""
    numbers = await _numbers_of(tx, [key])
    found: dict[int, list[Span]] = {}
    if len(numbers) == len(set(key)):
        rows = await tx.fetch(
            "select room, since_version, until_version, event, membership from room_state"
            " where room = any(%s::int[]) and line = 0 and type = %s and state_key = %s order by since_version",
            (list(rooms), numbers[key[0]], numbers[key[1]]),
        )
        for room, since, until, event, membership in rows:
            member = None if membership is None else Membership(membership)
            found.setdefault(room, []).append(Span(since, until, event, member))
    return found


_OF_SERVER = "left(strings.value, 1) = '@' and substr(strings.value, strpos(strings.value, ':') + 1) = %s"


async def spans_of_server(tx: Tx, room: int, server_name: ServerName) -> list[Span]:
    """When users of a server were joined or invited: trunk entries of all of them together, oldest first."""
    rows = await tx.fetch(
        "select since_version, until_version, event, membership from room_state"
        " join strings on strings.id = room_state.state_key where room = %s and type = %s and line = 0"
        f" and membership = any(%s::smallint[]) and {_OF_SERVER} order by since_version",
        (room, strings.MEMBER, [int(Membership.JOIN), int(Membership.INVITE)], server_name),
    )
    return [Span(since, until, event, Membership(membership)) for since, until, event, membership in rows]


async def users_of_server(tx: Tx, room: int, server_name: ServerName) -> list[UserID]:
    """The users of a server who ever stood in the room's state, on whatever line."""
    rows = await tx.fetch(
        "select distinct strings.value from room_state join strings on strings.id = room_state.state_key"
        f" where room = %s and type = %s and {_OF_SERVER}",
        (room, strings.MEMBER, server_name),
    )
    return [UserID(user_id) for (user_id,) in rows]


async def at_versions(
    tx: Tx, versions: Mapping[int, int], *, members: Collection[str] | None = None
) -> dict[int, dict[StateKey, int]]:
    """The trunk of each room at a version; of member events only those of `members`, where that is given."""
    where = ""
    params: tuple[list[int], ...] = ()
    if members is not None:
        numbers = await strings.find(tx, list(members))
        where = " and (membership is null or state_key = any(%s::int[]))"
        params = (list(numbers.values()),)
    rows = await tx.fetch(
        "select type, state_key, event, room_state.room from room_state"
        " join unnest(%s::int[], %s::int[]) as given(room, version) on room_state.room = given.room"
        " where line = 0 and since_version <= given.version"
        " and (until_version is null or until_version > given.version) and event is not null" + where,
        (list(versions), list(versions.values()), *params),
    )
    texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
    found: dict[int, dict[StateKey, int]] = {room: {} for room in versions}
    for type_, state_key, event, room in rows:
        found[room][texts[type_], texts[state_key]] = event
    return found


async def lines(tx: Tx, room: int, wanted: Iterable[int]) -> dict[int, Line]:
    """These branches of the room's state, and those that they branch off from."""
    rows = await tx.fetch(
        "with recursive wanted as ("
        "  select line, parent_line, parent_version, version from room_lines where room = %s and line = any(%s::int[])"
        "  union select room_lines.line, room_lines.parent_line, room_lines.parent_version, room_lines.version"
        "  from room_lines join wanted on room_lines.line = wanted.parent_line where room = %s)"
        " select line, parent_line, parent_version, version from wanted",
        (room, list(wanted), room),
    )
    return {
        line: Line(None if parent_line is None else (parent_line, parent_version), version)
        for line, parent_line, parent_version, version in rows
    }


def path(point: Point, branches: Mapping[int, Line]) -> list[Point]:
    """The point, the point of its parent line that it builds on, and so on: to the trunk or a whole state."""
    found = [point]
    while found[-1][0] != TRUNK:
        parent = branches[found[-1][0]].parent
        if parent is None:
            break
        found.append(parent)
    return found


async def at(
    tx: Tx, room: int, points: Collection[Point], keys: Iterable[StateKey] | None = None
) -> dict[Point, dict[StateKey, int]]:
    """The state at each point: whole, or under these keys only."""
    beside = {line for line, _ in points if line != TRUNK}
    branches = await lines(tx, room, beside) if beside else {}
    paths = {point: path(point, branches) for point in points}
    wanted = {step for steps in paths.values() for step in steps}
    entries = await _entries_at(tx, room, wanted, keys)
    found: dict[Point, dict[StateKey, int]] = {}
    for point, steps in paths.items():
        state: dict[StateKey, int | None] = {}
        for step in reversed(steps):
            state.update(entries.get(step, {}))
        found[point] = {key: event for key, event in state.items() if event is not None}
    return found


async def _entries_at(
    tx: Tx, room: int, points: Collection[Point], keys: Iterable[StateKey] | None
) -> dict[Point, dict[StateKey, int | None]]:
    """What the lines themselves hold at these points. Under a key that is the newest entry up to the version."""
    lines_and_versions = ([line for line, _ in points], [version for _, version in points])
    if keys is None:
        rows = await tx.fetch(
            "select type, state_key, event, given.line, given.version from room_state"
            " join unnest(%s::int[], %s::int[]) as given(line, version) on room_state.line = given.line"
            " where room = %s and since_version <= given.version"
            " and (until_version is null or until_version > given.version)",
            (*lines_and_versions, room),
        )
    else:
        wanted = list(keys)
        numbers = await _numbers_of(tx, wanted)
        pairs = [(numbers[key[0]], numbers[key[1]]) for key in wanted if key[0] in numbers and key[1] in numbers]
        rows = await tx.fetch(
            "select wanted.type, wanted.state_key, event, given.line, given.version"
            " from unnest(%s::int[], %s::int[]) as given(line, version),"
            " unnest(%s::int[], %s::int[]) as wanted(type, state_key),"
            " lateral (select event from room_state where room = %s and type = wanted.type"
            "  and state_key = wanted.state_key and line = given.line and since_version <= given.version"
            "  order by since_version desc limit 1) as found",
            (*lines_and_versions, [pair[0] for pair in pairs], [pair[1] for pair in pairs], room),
        )
    texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
    found: dict[Point, dict[StateKey, int | None]] = {}
    for type_, state_key, event, line, version in rows:
        found.setdefault((line, version), {})[texts[type_], texts[state_key]] = event
    return found


async def keys_changed(tx: Tx, room: int, spans: Collection[tuple[int, int, int]]) -> set[StateKey]:
    """The keys that changed in a line after its first version up to its second, for each (line, low, high).

    What ends an entry begins another, if only one that takes it away: so the beginnings tell all.
    """
    rows = await tx.fetch(
        "select distinct type, state_key from unnest(%s::int[], %s::int[], %s::int[]) as given(line, low, high)"
        " join room_state on room_state.line = given.line and since_version > low and since_version <= high"
        " where room = %s",
        ([span[0] for span in spans], [span[1] for span in spans], [span[2] for span in spans], room),
    )
    return set(await _pairs(tx, rows))


def differing_spans(points: Collection[Point], branches: Mapping[int, Line]) -> list[tuple[int, int, int]]:
    """Where to look for keys that may differ between these points: (line, low, high).

    What all the points share, a common stretch of a line from its start, is left out.
    """
    visited: dict[int, list[int]] = {}
    for point in points:
        for line, version in path(point, branches):
            visited.setdefault(line, []).append(version)
    return [
        (line, min(versions) if len(versions) == len(points) else -1, max(versions))
        for line, versions in visited.items()
        if len(versions) < len(points) or min(versions) != max(versions)
    ]


async def _numbers_of(tx: Tx, keys: Iterable[StateKey]) -> dict[str, int]:
    return await strings.find(tx, {text for key in keys for text in key})


async def _keyed(tx: Tx, rows: Sequence[Row]) -> dict[StateKey, int]:
    texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
    return {(texts[type_], texts[state_key]): event for type_, state_key, event in rows}


async def _pairs(tx: Tx, rows: Sequence[Row]) -> list[StateKey]:
    texts = await strings.values_of(tx, {number for row in rows for number in row})
    return [(texts[type_], texts[state_key]) for type_, state_key in rows]


async def recent_at(
    tx: Tx, room: int, point: Point, since: int, branches: Mapping[int, Line]
) -> dict[StateKey, int | None]:
    """The state at a point without what stands in the trunk since `since` or before."""
    found: dict[StateKey, int | None] = {}
    for line, version in reversed(path(point, branches)):
        rows = await tx.fetch(
            "select type, state_key, event from room_state where room = %s and line = %s and since_version > %s"
            " and since_version <= %s and (until_version is null or until_version > %s)",
            (room, line, since if line == TRUNK else -1, version, version),
        )
        texts = await strings.values_of(tx, {number for row in rows for number in row[:2]})
        found.update({(texts[type_], texts[state_key]): event for type_, state_key, event in rows})
    return found

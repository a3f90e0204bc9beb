"""Writing rooms' state (`docs/how-it-works.md`) for `append_events.py`: closing what is replaced, opening the new."""

from collections.abc import Mapping, Sequence
from typing import Any

from storage.arrays import Int2, Int4, Int8
from storage.database import Tx
from storage.event_writes import Standing
from storage.events import NewLine, StateWrite
from storage.memberships import Membership

_WRITE = (
    # Each key by itself ("offset 0"): a plan from when the table was small would go through all of it, key by key.
    "with closed as ("
    " update room_state set until_version = found.since from {keys}, lateral (select held.ctid, given.since"
    "  from room_state held where held.room = given.room and held.type = given.type"
    "  and held.state_key = given.state_key and held.line = {line} and held.until_version is null offset 0) as found"
    " where room_state.ctid = found.ctid"
    " returning room_state.room, room_state.type, room_state.state_key, membership),"
    # What is replaced is closed before its successor comes: the insert waits for the count.
    " opened as ("
    " insert into room_state (event, room, line, since_version, type, state_key, until_version, membership)"
    " select given.* from unnest(%s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[], %s::int[],"
    " %s::smallint[]) as given where (select count(*) from closed) >= 0)"
    " select room, type, state_key, membership from closed where membership is not null"
)
# The predicate of `room_state_current_key` word for word: a key's history must not be looked through.
_WRITE_TRUNK = _WRITE.format(
    line=0, keys="unnest(%s::int[], %s::int[], %s::int[], %s::int[]) as given(room, type, state_key, since)"
)
_WRITE_BRANCH = _WRITE.format(
    line="given.line",
    keys="unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[]) as given(room, type, state_key, since, line)",
)
_STATE_COLUMNS = (Int8, Int4, Int4, Int4, Int4, Int4, Int4, Int2)


class _Writes:
    """Entries of the trunk, or of branches, in the order in which they follow each other."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.firsts: dict[tuple[int, int, int, int], int] = {}
        """By room, type, state key and line: the version that closes what the database has."""
        self._latest: dict[tuple[int, int, int, int], list[Any]] = {}

    def add(self, room: int, write: StateWrite, numbers: dict[str, int]) -> tuple[int, int, int, int]:
        key = (room, numbers[write.type], numbers[write.state_key], write.line)
        row: list[Any] = [write.position, room, write.line, write.since, key[1], key[2], None, write.membership]
        if key in self._latest:
            self._latest[key][6] = write.since
        elif not write.is_first:
            self.firsts[key] = write.since
        self._latest[key] = row
        self.rows.append(row)
        return key

    def columns(self, *, with_line: bool) -> list[Any]:
        keys = [Int4(column) for column in zip(*self.firsts, strict=True)] or [Int4() for _ in range(4)]
        lines = [keys[3]] if with_line else []
        rows = [wrap(column) for wrap, column in zip(_STATE_COLUMNS, zip(*self.rows, strict=True), strict=True)]
        return [*keys[:3], Int4(self.firsts.values()), *lines, *rows]


async def write(
    tx: Tx,
    state: Sequence[tuple[int, StateWrite]],
    lines: Sequence[tuple[int, NewLine]],
    standings: Mapping[int, Standing],
    numbers: dict[str, int],
) -> set[tuple[int, int]]:
    """Write entries of rooms, by number, and their branches: close what they replace, and count who joined, who was
    invited. Answers who came into a room: (room, number of the user).
    """
    entered: set[tuple[int, int]] = set()
    trunk, branches = _Writes(), _Writes()
    members: dict[tuple[int, int, int, int], Membership | None] = {}
    for room, entry in state:
        key = (trunk if entry.line == 0 else branches).add(room, entry, numbers)
        if entry.line == 0 and entry.type == "m.room.member":
            members[key] = entry.membership
    if trunk.rows:
        closed = await tx.fetch(_WRITE_TRUNK, trunk.columns(with_line=False))
        before = {(row[0], row[1], row[2], 0): row[3] for row in closed}
        for key, membership in members.items():
            standing, was = standings[key[0]], before.get(key)
            if membership is Membership.JOIN and was != Membership.JOIN:
                entered.add((key[0], key[2]))
            standing.joined += (membership is Membership.JOIN) - (was == Membership.JOIN)
            standing.invited += (membership is Membership.INVITE) - (was == Membership.INVITE)
    if branches.rows:
        await tx.execute(_WRITE_BRANCH, branches.columns(with_line=True))
    if lines:
        await tx.execute(
            "insert into room_lines (room, line, parent_line, parent_version, version)"
            " select * from unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[])"
            " on conflict (room, line) do update set version = excluded.version",
            (
                [room for room, _ in lines],
                [line.line for _, line in lines],
                [line.parent_line for _, line in lines],
                [line.parent_version for _, line in lines],
                [line.version for _, line in lines],
            ),
        )
    return entered

"""Writing rooms' state (`docs/how-it-works.md`) for `append_events.py`: closing what is replaced, opening the new."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from federation.protocol.types import EventID
from storage.arrays import Int2, Int4, Int8
from storage.database import Tx
from storage.events import UNSEEN, NewLine, StateWrite
from storage.memberships import Membership
from storage.rooms import BUMPING


class Standing(Struct):
    """Where a room stands, as it will be once the batch is committed."""

    state_version: int
    extremities: list[EventID]
    last_line: int
    notify_total: int
    highlight_total: int
    joined: int
    invited: int
    last_event: int = 0
    """The newest of the batch that is shown; 0 where none is."""
    last_bump: int = 0
    """The newest of the batch that is of `BUMPING`."""

    def note_shown(self, position: int, event_type: str, flags: int) -> None:
        """An event takes this position: where clients are shown it, it is the room's newest."""
        if not flags & UNSEEN:
            self.last_event = position
            if event_type in BUMPING:
                self.last_bump = position


_PARTS = (
    # Each key by itself ("offset 0"): a plan from when the table was small would go through all of it, key by key.
    "closed as ("
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
)
# The predicate of `room_state_current_key` word for word: a key's history must not be looked through.
TRUNK_PARTS = _PARTS.format(
    line=0, keys="unnest(%s::int[], %s::int[], %s::int[], %s::int[]) as given(room, type, state_key, since)"
)
"""Parts of a statement that writes entries of the trunk: `closed` has what they replace, with its membership."""
_WRITE_TRUNK = f"with {TRUNK_PARTS} select room, type, state_key, membership from closed where membership is not null"
_WRITE_BRANCH = "with {} select".format(
    _PARTS.format(
        line="given.line",
        keys="unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[])"
        " as given(room, type, state_key, since, line)",
    )
)
_STATE_COLUMNS = (Int8, Int4, Int4, Int4, Int4, Int4, Int4, Int2)


class Writes:
    """Entries of the trunk, or of branches, in the order in which they follow each other."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.firsts: dict[tuple[int, int, int, int], int] = {}
        """By room, type, state key and line: the version that closes what the database has."""
        self.members: dict[tuple[int, int], Membership | None] = {}
        """By room and user, the last of each."""
        self._latest: dict[tuple[int, int, int, int], list[Any]] = {}

    def add(self, room: int, write: StateWrite, numbers: dict[str, int]) -> None:
        """Put an entry behind those that were added before it."""
        key = (room, numbers[write.type], numbers[write.state_key], write.line)
        row: list[Any] = [write.position, room, write.line, write.since, key[1], key[2], None, write.membership]
        if key in self._latest:
            self._latest[key][6] = write.since
        elif not write.is_first:
            self.firsts[key] = write.since
        self._latest[key] = row
        self.rows.append(row)
        if write.type == "m.room.member":
            self.members[room, key[2]] = write.membership

    def trunk_columns(self) -> list[Any]:
        """The parameters of `TRUNK_PARTS`."""
        return self._columns(with_line=False)

    def branch_columns(self) -> list[Any]:
        """The parameters of what writes branches."""
        return self._columns(with_line=True)

    def _columns(self, *, with_line: bool) -> list[Any]:
        keys = [Int4(column) for column in zip(*self.firsts, strict=True)] or [Int4() for _ in range(4)]
        lines = [keys[3]] if with_line else []
        rows = [wrap(column) for wrap, column in zip(_STATE_COLUMNS, zip(*self.rows, strict=True), strict=True)]
        return [*keys[:3], Int4(self.firsts.values()), *lines, *rows]


def arrange(state: Iterable[tuple[int, StateWrite]], numbers: dict[str, int]) -> tuple[Writes, Writes]:
    """Entries of rooms, by number: those of the trunks, and those of branches."""
    trunk, branches = Writes(), Writes()
    for room, entry in state:
        (trunk if entry.line == 0 else branches).add(room, entry, numbers)
    return trunk, branches


async def write(
    tx: Tx, state: Sequence[tuple[int, StateWrite]], standings: Mapping[int, Standing], numbers: dict[str, int]
) -> None:
    """Write entries of rooms, by number: close what they replace, and count who joined, who was invited."""
    trunk, branches = arrange(state, numbers)
    if trunk.rows:
        closed = await tx.fetch(_WRITE_TRUNK, trunk.trunk_columns())
        before = {(room, state_key): membership for room, _, state_key, membership in closed}
        for (room, user), membership in trunk.members.items():
            standing, was = standings[room], before.get((room, user))
            standing.joined += (membership is Membership.JOIN) - (was == Membership.JOIN)
            standing.invited += (membership is Membership.INVITE) - (was == Membership.INVITE)
    await write_branches(tx, branches)


async def write_branches(tx: Tx, branches: Writes) -> None:
    """Write entries of branches."""
    if branches.rows:
        await tx.execute(_WRITE_BRANCH, branches.branch_columns())


async def write_lines(tx: Tx, lines: Sequence[tuple[int, NewLine]]) -> None:
    """Write the branches themselves, by their rooms' numbers."""
    if lines:
        await tx.execute(
            "insert into room_lines (room, line, parent_line, parent_version, version)"
            " select * from unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::int[])"
            " on conflict (room, line) do update set version = excluded.version",
            (
                Int4(room for room, _ in lines),
                Int4(line.line for _, line in lines),
                Int4(line.parent_line for _, line in lines),
                Int4(line.parent_version for _, line in lines),
                Int4(line.version for _, line in lines),
            ),
        )

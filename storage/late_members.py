"""Members who become known after a join that left them out (`room_completeness.py`).

They are written at the version of the state before the join, as if they had been here from the start: no version of
the room changes by it. Who writes holds the row of the join (`remote_joins.check_held`, `is_awaited`), so that nobody
does once the room is complete.
"""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.types import UserID
from storage import strings
from storage.database import Tx
from storage.memberships import Membership


class LateMember(Struct, frozen=True):
    """A member event of the state before the join."""

    user_id: UserID
    position: int
    membership: Membership | None


async def write(
    tx: Tx, room: int, version: int, members: Sequence[LateMember]
) -> tuple[dict[str, int], list[LateMember]]:
    """Write these members, as far as they were not known.

    Answers the numbers of the strings used, which are final once this is committed, and those of the members who were
    not known and whose membership has not changed since.
    """
    numbers = await strings.intern(tx, {member.user_id for member in members})
    rows = await tx.fetch(
        "insert into room_state (event, room, line, since_version, type, state_key, until_version, membership)"
        " select given.event, %s, 0, %s, %s, given.state_key, later.since_version, given.membership"
        " from unnest(%s::bigint[], %s::int[], %s::smallint[]) as given(event, state_key, membership), lateral"
        " (select min(held.since_version) as since_version from room_state held where held.room = %s"
        "  and held.type = %s and held.state_key = given.state_key and held.line = 0) as later"
        " where later.since_version is null or later.since_version > %s"
        " order by given.state_key on conflict do nothing returning state_key, until_version",
        (
            room,
            version,
            strings.MEMBER,
            [member.position for member in members],
            [numbers[member.user_id] for member in members],
            [None if member.membership is None else int(member.membership) for member in members],
            room,
            strings.MEMBER,
            version,
        ),
    )
    current = {state_key for state_key, until_version in rows if until_version is None}
    return numbers, [member for member in members if numbers[member.user_id] in current]

"""What of a user decides which rooms a client's lists hold (tables `account_data`, `room_state`)."""

from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from federation.protocol.types import RoomID, UserID
from storage import outside_memberships
from storage.arrays import Texts
from storage.database import Row, Tx
from storage.memberships import REMOVED, Member, Membership

_FACTS = (
    f"select room, null as room_id, membership, event, 0 as since_version, null::bytea as content from ({REMOVED})"
    "  as removed"
    " union all select 0, type, 0, 0, 0, content from account_data"
    "  where user_id = %s and room = 0 and type = any(%s::text[]) and content <> ''"
)
_WITH_ROOMS = (
    f"select *, null::bytea as content from ({outside_memberships.WITH_ROOMS}) as standings union all {_FACTS}"
)


class Facts(Struct):
    """What was found of a user."""

    contents: dict[str, bytes] = field(default_factory=dict)
    """Global account data, by type."""
    removed: dict[int, Member] = field(default_factory=dict)
    """Rooms that somebody else removed them from, which they have not forgotten."""


async def read(tx: Tx, user_id: UserID, names: Sequence[str]) -> Facts:
    """The user's facts, with the account data of these types."""
    return _split(await tx.fetch(_FACTS, (user_id, user_id, Texts(names))))[0]


async def read_with_rooms(
    tx: Tx, user_id: UserID, names: Sequence[str]
) -> tuple[Facts, dict[int, Member], dict[RoomID, Member]]:
    """As `read`, and `outside_memberships.with_rooms`, by one statement."""
    rows = await tx.fetch(_WITH_ROOMS, (user_id, user_id, user_id, user_id, Texts(names)))
    facts, others = _split(rows)
    return facts, *outside_memberships.standings(others)


def _split(rows: Iterable[Row]) -> tuple[Facts, list[Row]]:
    """The facts that the rows tell of, and the other rows, without `content`."""
    facts = Facts()
    others: list[Row] = []
    for room, name, membership, event, since, content in rows:
        if content is not None:
            facts.contents[name] = content
        elif name is None and membership in _GONE:
            facts.removed[room] = Member(Membership(membership), event)
        else:
            others.append((room, name, membership, event, since))
    return facts, others


_GONE = (Membership.LEAVE, Membership.BAN)

"""What of a user decides which rooms a client's lists hold (tables `account_data`, `room_state`)."""

from collections.abc import Sequence

from federation.protocol.types import UserID
from storage.arrays import Texts
from storage.database import Tx
from storage.memberships import REMOVED, Membership

_FACTS = (
    "select type, content, 0 as room, 0 as membership, 0 as event from account_data"
    " where user_id = %s and room = 0 and type = any(%s::text[]) and content <> ''"
    f" union all select null, null, room, membership, event from ({REMOVED}) as removed"
)


async def read(
    tx: Tx, user_id: UserID, names: Sequence[str]
) -> tuple[dict[str, bytes], dict[int, tuple[Membership, int]]]:
    """The user's global account data of these types; and the rooms that somebody else removed them from, which they
    have not forgotten: room -> membership, position of the member event."""
    contents: dict[str, bytes] = {}
    removed: dict[int, tuple[Membership, int]] = {}
    for name, content, room, membership, event in await tx.fetch(_FACTS, (user_id, Texts(names), user_id)):
        if name is None:
            removed[room] = Membership(membership), event
        else:
            contents[name] = content
    return contents, removed

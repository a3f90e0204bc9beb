"""What of a user decides which of their rooms a list of sliding sync holds, and what of those they are shown; kept in
memory, a view of the tail."""

from collections import OrderedDict
from typing import Any

import orjson
from msgspec import Struct, field

from federation.protocol.types import RoomID, UserID
from homeserver.services.account_data import IGNORED_USERS, ignored_in
from homeserver.services.sliding_connections import RoomKey
from storage import account_data, list_facts, rooms
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.invalidations import Invalidated, Kind
from storage.list_facts import Facts
from storage.log_entries import Change
from storage.memberships import Member

MAX_KEPT = 10_000
MAX_DIRECT = 10_000
"""Rooms that count as direct chats of one user."""
DIRECT_DATA, TAG_DATA = "m.direct", "m.tag"
_READ = (DIRECT_DATA, IGNORED_USERS)


class UserFacts(Struct):
    """Of one user."""

    direct: frozenset[RoomKey] | None = None
    """Direct chats, by number where we know the room, and by ID; None as long as nothing was looked at."""
    ignored: frozenset[UserID] = frozenset()
    removed: dict[RoomKey, Member] = field(default_factory=dict)
    """Rooms that others removed them from, and that they have not forgotten."""
    tags: dict[int, frozenset[str]] | None = None
    """None: they were not looked at."""


class ListFacts:
    """The facts of who uses sliding sync here."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._users: OrderedDict[UserID, UserFacts] = OrderedDict()

    def apply(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if isinstance(change, AccountDataChanged):
            facts = self._users.get(change.user_id)
            if facts is not None and change.type in (DIRECT_DATA, TAG_DATA, IGNORED_USERS):
                self._drop(change.user_id)
        elif isinstance(change, Invalidated) and change.kind_of is Kind.FORGOTTEN_ROOM:
            self._drop(change.user_id)
        elif isinstance(change, RoomEvents):
            for entry in change.trunk:
                if entry.type == "m.room.member":
                    self._drop(UserID(entry.state_key))

    def _drop(self, user_id: UserID) -> None:
        # What is being loaded goes into the dropped one, which nobody finds again.
        self._users.pop(user_id, None)

    def _of(self, user_id: UserID) -> UserFacts:
        facts = self._users.get(user_id)
        if facts is None:
            facts = self._users[user_id] = UserFacts()
            if len(self._users) > MAX_KEPT:
                self._users.popitem(last=False)
        else:
            self._users.move_to_end(user_id)
        return facts

    async def get(self, user_id: UserID, *, with_tags: bool) -> UserFacts:
        """The user's facts as of where the tail is; their tags only where they are asked for."""
        while True:  # what changed while it was read is read again
            facts = self._of(user_id)
            if facts.direct is not None and not (with_tags and facts.tags is None):
                return facts
            async with self._database.read() as tx:
                if facts.direct is None:
                    await _fill(tx, facts, await list_facts.read(tx, user_id, _READ))
                if with_tags and facts.tags is None:
                    found = await account_data.of_rooms(tx, user_id, TAG_DATA)
                    facts.tags = {room: _tags(content) for room, content in found.items()}

    async def with_rooms(self, tx: Tx, user_id: UserID) -> tuple[dict[int, Member], dict[RoomID, Member]]:
        """As `outside_memberships.with_rooms`; what `get` gives is found out by the same statement."""
        facts = self._of(user_id)
        found, here, outside = await list_facts.read_with_rooms(tx, user_id, _READ)
        await _fill(tx, facts, found)
        return here, outside


async def _fill(tx: Tx, facts: UserFacts, found: Facts) -> None:
    room_ids = _direct_rooms(found.contents.get(DIRECT_DATA))
    numbers = await rooms.find_many(tx, room_ids) if room_ids else {}
    facts.ignored = ignored_in(found.contents.get(IGNORED_USERS))
    facts.removed = {room: member for room, member in found.removed.items()}
    facts.direct = frozenset((*room_ids, *numbers.values()))


def _object(content: bytes | None) -> dict[str, Any]:
    value = orjson.loads(content) if content else {}
    return value if isinstance(value, dict) else {}


def _direct_rooms(content: bytes | None) -> list[RoomID]:
    """The rooms that an `m.direct` names, whoever they are with; what is malformed names none."""
    named = [room_ids for room_ids in _object(content).values() if isinstance(room_ids, list)]
    found = dict.fromkeys(RoomID(room_id) for room_ids in named for room_id in room_ids if isinstance(room_id, str))
    return [room_id for room_id in found if "\0" not in room_id][:MAX_DIRECT]


def _tags(content: bytes) -> frozenset[str]:
    tags = _object(content).get("tags")
    return frozenset(tags) if isinstance(tags, dict) else frozenset()

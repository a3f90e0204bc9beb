"""Account data and room tags (Client-Server API, "Client Config", "Room Tagging", "Ignoring Users")."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import orjson

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound, TooLarge
from federation.protocol.identifiers import check_room_id
from federation.protocol.types import JsonObject, UserID
from homeserver.services.followed_cache import FollowedCache
from homeserver.services.push import PUSH_RULES, build_ruleset
from homeserver.services.user_views import Member
from storage import account_data, memberships, rooms
from storage.account_data import AccountDataChanged
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Change, Entry
from storage.memberships import Membership

FULLY_READ = "m.fully_read"
TAGS = "m.tag"
IGNORED_USERS = "m.ignored_user_list"
INVITE_PERMISSION = "m.invite_permission_config"
SERVER_MANAGED = frozenset((FULLY_READ, PUSH_RULES))
MAX_TYPE_BYTES = 255
MAX_CONTENT_BYTES = 256 * 1024
MAX_USER_BYTES = 32 * 1024 * 1024
MAX_USER_ROWS = 50_000
MAX_TAGS = 100
MAX_ORDER = 100
"""Characters of a number that is sent as a string."""


def client_event(change: AccountDataChanged) -> bytes:
    """The event that clients see; of push rules, all of them."""
    if change.type != PUSH_RULES:
        return change.client_json
    content = orjson.dumps(build_ruleset(change.user_id, change.content or None).as_json())
    return b'{"type":"m.push_rules","content":' + content + b"}"


class AccountDataService:
    """What users keep on this server for themselves."""

    def __init__(self, database: Database, log: Log, on_ignoring: Callable[[UserID], Awaitable[None]]) -> None:
        """`on_ignoring` hears of a user who ignores others, before the change is answered."""
        self._on_ignoring = on_ignoring
        self._database = database
        self._log = log
        self._ignored = FollowedCache(IGNORED_USERS, lambda _user_id, content: ignored_in(content))
        self._blocking = FollowedCache(INVITE_PERMISSION, lambda _user_id, content: _blocks_invites(content))
        self.figures = self._ignored.figures

    def on_change(self, position: int, change: Change) -> None:
        """A view of the tail."""
        self._ignored.on_change(position, change)
        self._blocking.on_change(position, change)

    # --- for sync

    async def ignored_users(self, tx: Tx, user_id: UserID) -> frozenset[UserID]:
        """Whom the user ignores; from memory as a rule."""
        return await self._ignored.get(tx, user_id)

    async def ignored_by_many(self, tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, frozenset[UserID]]:
        """Whom each of these users ignores; from memory as a rule."""
        return await self._ignored.get_many(tx, user_ids)

    def known_ignored_users(self, user_id: UserID) -> frozenset[UserID] | None:
        """Whom the user ignores, if this is remembered."""
        return self._ignored.known(user_id)

    async def blocks_invites(self, user_id: UserID, _sender: UserID) -> bool:
        """Whether a user of ours takes no invites ("Invite permission")."""
        async with self._database.read() as tx:
            content = await account_data.find(tx, user_id, None, INVITE_PERMISSION)
        return _blocks_invites(content)

    async def is_blocking_invites(self, tx: Tx, user_id: UserID) -> bool:
        """As `blocks_invites`, from memory as a rule."""
        return await self._blocking.get(tx, user_id)

    async def hides_invites(self, user_id: UserID, *found: Mapping[Any, Member]) -> bool:
        """Whether the user is told of no invites to any of these rooms, not even of those from before they blocked them
        ("Invite permission"); from memory as a rule."""
        known = self._blocking.known(user_id)
        if known is None and any(
            member.membership is Membership.INVITE for of_rooms in found for member in of_rooms.values()
        ):
            async with self._database.read() as tx:
                known = await self.is_blocking_invites(tx, user_id)
        return known is True

    async def all_of(self, tx: Tx, user_id: UserID) -> list[AccountDataChanged]:
        """All data of a user, for a first sync: push rules are always among it."""
        return with_push_rules(user_id, await account_data.all_of(tx, user_id))

    async def of_some(self, tx: Tx, user_id: UserID, rooms: Collection[int]) -> list[AccountDataChanged]:
        """As `all_of`, of rooms only these."""
        return with_push_rules(user_id, await account_data.of_some(tx, user_id, rooms))

    # --- for clients

    async def get(self, user_id: UserID, room_id: str | None, name: str) -> bytes:
        """The content of one type of data, as JSON; raises M_NOT_FOUND."""
        async with self._database.read() as tx:
            room = None if room_id is None else await self._find_room(tx, room_id)
            content = await account_data.find(tx, user_id, room, name)
        if name == PUSH_RULES and room is None:
            return orjson.dumps(build_ruleset(user_id, content).as_json())
        if content is None:
            raise NotFound("Account data not found")
        return content

    async def put(self, user_id: UserID, room_id: str | None, name: str, content: JsonObject) -> None:
        """Set a type of data; raises what the specification says where that may not be."""
        _check_name(name)
        data = orjson.dumps(content)
        if len(data) > MAX_CONTENT_BYTES:
            raise TooLarge(f"Account data may not be larger than {MAX_CONTENT_BYTES} bytes")
        async with self._database.read() as tx:
            room = None if room_id is None else await self._own_room(tx, user_id, room_id)
            count, size = await account_data.size_of(tx, user_id)
        if count >= MAX_USER_ROWS or size + len(data) > MAX_USER_BYTES:
            raise TooLarge("This account has too much account data")
        await self._log.append(Entry([AccountDataChanged(user_id, room, name, data)]))
        if name == IGNORED_USERS:
            await self._on_ignoring(user_id)

    async def delete(self, user_id: UserID, room_id: str | None, name: str) -> None:
        """Remove a type of data (MSC3391); nothing happens when there is none."""
        _check_name(name)
        async with self._database.read() as tx:
            room = None if room_id is None else await self._find_room(tx, room_id)
            content = await account_data.find(tx, user_id, room, name)
        if content is not None:
            await self._log.append(Entry([AccountDataChanged(user_id, room, name, account_data.DELETED)]))

    # --- tags

    async def tags(self, user_id: UserID, room_id: str) -> JsonObject:
        """The tags of a room, by name."""
        async with self._database.read() as tx:
            content = await account_data.find(tx, user_id, await self._find_room(tx, room_id), TAGS)
        return _tags_in(content)

    async def put_tag(self, user_id: UserID, room_id: str, tag: str, info: JsonObject) -> None:
        """Tag a room."""
        if not tag or len(tag.encode()) > 255:
            raise InvalidInput("The name of a tag has 1 to 255 bytes")
        if info.get("order") is not None:
            info = {**info, "order": _parse_order(info["order"])}

        def add(tags: JsonObject) -> None:
            tags[tag] = info
            if len(tags) > MAX_TAGS:
                raise TooLarge(f"A room may not have more than {MAX_TAGS} tags")

        await self._change_tags(user_id, room_id, add)

    async def delete_tag(self, user_id: UserID, room_id: str, tag: str) -> None:
        """Take a tag from a room, if it has it."""
        await self._change_tags(user_id, room_id, lambda tags: tags.pop(tag, None))

    async def _change_tags(self, user_id: UserID, room_id: str, edit: Callable[[JsonObject], Any]) -> None:
        async with self._database.read() as tx:
            room = await self._own_room(tx, user_id, room_id)
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            tags = _tags_in(await account_data.find(tx, user_id, room, TAGS))
            before = dict(tags)
            edit(tags)
            if tags == before:
                return
            data = orjson.dumps({"tags": tags})
            if len(data) > MAX_CONTENT_BYTES:
                raise TooLarge("The tags are too large")
            change = AccountDataChanged(user_id, room, TAGS, data)
            await account_data.write(tx, change)
            entry.changes.append(change)

        entry.work = work
        await self._log.append(entry)

    # --- rooms

    async def _find_room(self, tx: Tx, room_id: str) -> int:
        """The number of a room; one of which nobody has data where we do not know it."""
        room = await rooms.find(tx, check_room_id(room_id))
        return -1 if room is None else room.number

    async def _own_room(self, tx: Tx, user_id: UserID, room_id: str) -> int:
        """The number of a room that the user has, or had, to do with; raises Forbidden for any other."""
        room = await rooms.find(tx, check_room_id(room_id))
        if room is None or await memberships.membership_of(tx, room.number, user_id) is None:
            raise Forbidden("You are not in this room")
        return room.number


def ignored_in(content: bytes | None) -> frozenset[UserID]:
    """The users whom an `m.ignored_user_list` names; nobody where it is malformed."""
    users = orjson.loads(content).get("ignored_users") if content else None
    return frozenset(UserID(user_id) for user_id in users) if isinstance(users, dict) else frozenset()


def _blocks_invites(content: bytes | None) -> bool:
    return bool(content) and orjson.loads(content or b"{}").get("default_action") == "block"


def _tags_in(content: bytes | None) -> JsonObject:
    tags = orjson.loads(content).get("tags") if content else None
    return tags if isinstance(tags, dict) else {}


def _parse_order(order: object) -> float:
    """The number that `order` is, or that it spells: some clients send what they keep as a string."""
    try:
        number = float(order) if isinstance(order, str) and len(order) <= MAX_ORDER else order
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise InvalidInput("order must be a number between 0 and 1")
    return number


def _check_name(name: str) -> None:
    if name in SERVER_MANAGED:
        raise MatrixError("M_BAD_JSON", f"Cannot set {name} through this API", 405)
    if not name or len(name.encode()) > MAX_TYPE_BYTES:
        raise InvalidInput("The type of account data has 1 to 255 bytes")


def with_push_rules(user_id: UserID, found: list[AccountDataChanged]) -> list[AccountDataChanged]:
    """What was found, with the default rules where no others are stored."""
    if not any(change.type == PUSH_RULES and change.room is None for change in found):
        found.append(AccountDataChanged(user_id, None, PUSH_RULES, b""))
    return found

"""What the operator tells a user, in a room of theirs that the server keeps (Client-Server API, "Server Notices").

Each user has one such room, which is made with the first notice. Its sender is an account that nobody can log in to.
"""

import hashlib
import logging
import time

from msgspec import Struct

from federation.protocol.errors import InvalidInput, MatrixError, NotFound
from federation.protocol.pdu import Draft
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from homeserver.services.account_data import AccountDataService
from homeserver.services.membership import ProfileOf
from homeserver.services.messages import Message, MessageService
from homeserver.services.requester import Requester
from homeserver.services.room_creation import Creation, FirstEvents, RoomCreationService
from storage import accounts, server_notices
from storage.accounts import Account
from storage.database import Database, Tx
from storage.rooms import Room

logger = logging.getLogger(__name__)

TAG = "m.server_notice"
_LEVELS: JsonObject = {"users_default": -10, "invite": 50}
"""Only the server writes."""


class NoticePolicy(Struct, frozen=True, kw_only=True):
    """Who sends notices, and what it looks like."""

    sender: UserID
    display_name: str
    avatar_url: str | None
    room_name: str
    joins: bool
    """Whether users are in the room without being asked."""
    room_version: str


class Notice(Struct, frozen=True, kw_only=True):
    """What somebody is to be told."""

    user_id: UserID
    type: str
    content: JsonObject
    state_key: str | None = None
    txn_id: str | None = None


class ServerNotices:
    """Sends them; without a policy there are none."""

    def __init__(  # noqa: PLR0913  # what a room is made of, and what is said in it
        self,
        database: Database,
        writer: RoomWriter,
        creation: RoomCreationService,
        messages: MessageService,
        account_data: AccountDataService,
        *,
        profile_of: ProfileOf,
        policy: NoticePolicy | None,
    ) -> None:
        self._database = database
        self._writer = writer
        self._creation = creation
        self._messages = messages
        self._account_data = account_data
        self._profile_of = profile_of
        self._policy = policy

    async def prepare(self) -> None:
        """Make the account that sends, so that nobody else takes its name."""
        if self._policy is None:
            return
        account = Account(user_id=self._policy.sender, created_ts=int(time.time() * 1000))
        async with self._database.transaction() as tx:
            await accounts.insert(tx, account)
            known = await accounts.find(tx, account.user_id)
        if known is not None and known.password_hash is not None:
            logger.error("%s sends server notices, but is somebody who can log in: choose another name", known.user_id)

    async def send(self, admin: UserID, notice: Notice) -> EventID:
        """Send a notice, into a new room if need be; an administrator's repeated transaction ID gets the first answer.

        Raises M_UNKNOWN where there are no notices, M_NOT_FOUND without such a user, and what sending an event raises.
        """
        policy = self._policy
        if policy is None:
            raise MatrixError("M_UNKNOWN", "Server notices are not enabled: see server_notices in the settings", 400)
        if notice.type == "m.room.member":
            raise InvalidInput("Who is in the room is not for notices to change")
        await self._check_target(policy, notice.user_id)
        room_id = await self._find_room(policy, notice.user_id)
        if room_id is None:
            room_id = await self._make_room(policy, notice.user_id)
        else:
            await self._bring_back(policy, room_id, notice.user_id)
        await self._tag(room_id, notice.user_id)
        who = Requester(user_id=policy.sender, device_id=None, device=None, is_rate_limited=False)
        message = Message(
            room_id=room_id,
            type=notice.type,
            content=notice.content,
            txn_id=None if notice.txn_id is None else _own_transaction(admin, notice.txn_id),
        )
        if notice.state_key is not None:
            return await self._messages.send_state(who, message, notice.state_key)
        return await self._messages.send(who, message)

    async def _check_target(self, policy: NoticePolicy, user_id: UserID) -> None:
        if user_id == policy.sender:
            raise InvalidInput("The sender of server notices gets none")
        async with self._database.read() as tx:
            account = await accounts.find(tx, user_id)
        if account is None or account.is_deactivated:
            raise NotFound("There is no such user")

    async def _find_room(self, policy: NoticePolicy, user_id: UserID) -> RoomID | None:
        async with self._database.read() as tx:
            return await server_notices.find_room(tx, user_id, policy.sender)

    async def _make_room(self, policy: NoticePolicy, user_id: UserID) -> RoomID:
        """The user's room; that of another process, if it makes one meanwhile."""
        avatar: list[tuple[StateKey, JsonObject]] = []
        if policy.avatar_url is not None:
            avatar.append((("m.room.avatar", ""), {"url": policy.avatar_url}))
        creation = Creation(name=policy.room_name, power_levels=_LEVELS, initial_state=avatar)
        first = FirstEvents(policy.sender, get_rules(policy.room_version))
        first.add_create({"m.federate": False})
        first.add_member(policy.sender, _member_of(policy, "join"))
        first.add_power_levels(creation, ())
        first.add_state(creation, None)
        profile = await self._profile_of(user_id)
        first.add_member(user_id, {**profile, "membership": "invite"})
        if await self._joins(policy, user_id):
            first.drafts.append(_membership(RoomID(""), user_id, user_id, {**profile, "membership": "join"}))

        async def work(tx: Tx, room: Room) -> None:
            if not await server_notices.insert_room(tx, user_id, policy.sender, room.room_id):
                raise _HasRoomError("M_UNKNOWN", "The user has such a room")

        try:
            return await self._creation.create_from(first, work)
        except _HasRoomError:
            found = await self._find_room(policy, user_id)
            if found is None:
                raise
            await self._writer.catch_up()
            return found

    async def _tag(self, room_id: RoomID, user_id: UserID) -> None:
        """See to it that clients know the room."""
        try:
            await self._account_data.put_tag(user_id, room_id, TAG, {})
        except MatrixError as error:  # the user has filled it with tags: that is no reason not to tell them anything
            logger.warning("the server notices of %s in %s have no tag: %s", user_id, room_id, error.message)

    async def _bring_back(self, policy: NoticePolicy, room_id: RoomID, user_id: UserID) -> None:
        """Invite who has left."""
        room = await self._writer.get_room(room_id)
        key: StateKey = ("m.room.member", user_id)
        membership = content_of((await self._writer.state_for(room, [key])).get(key)).get("membership")
        if membership not in ("leave", "invite"):
            return
        profile = await self._profile_of(user_id)
        if membership == "leave":
            invite = {**profile, "membership": "invite"}
            await self._writer.append([_membership(room_id, policy.sender, user_id, invite)])
        if await self._joins(policy, user_id):
            await self._writer.append([_membership(room_id, user_id, user_id, {**profile, "membership": "join"})])

    async def _joins(self, policy: NoticePolicy, user_id: UserID) -> bool:
        """Whether the user is in the room without being asked: who blocks invites would not be told of one."""
        return policy.joins or await self._account_data.blocks_invites(user_id, policy.sender)


class _HasRoomError(MatrixError):
    """Another room is the user's."""


def _member_of(policy: NoticePolicy, membership: str) -> JsonObject:
    content = {"membership": membership, "displayname": policy.display_name, "avatar_url": policy.avatar_url}
    return {name: value for name, value in content.items() if value is not None}


def _membership(room_id: RoomID, sender: UserID, user_id: UserID, content: JsonObject) -> Draft:
    return Draft(room_id=room_id, type="m.room.member", sender=sender, content=content, state_key=user_id)


def _own_transaction(admin: UserID, txn_id: str) -> str:
    """One administrator's are not another's."""
    return hashlib.sha256(f"{admin} {txn_id}".encode()).hexdigest()

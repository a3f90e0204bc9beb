"""Invites by e-mail address: from the promise in the room to the invite (Server-Server API, "Third-party invites").

Whoever made the promise invites in the end, so their server makes the event: where the address was bound here, we ask
it to; where it is us, others ask. That the bound user owns the address is proven by what the identity server signed,
which the authorisation rules check against the keys in the promise.
"""

import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, LimitExceeded, MatrixError, Unavailable
from federation.protocol.identifiers import fits, is_room_id, is_user_id, server_name_of
from federation.protocol.pdu import Draft
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from federation.rooms.resident import Resident
from storage import accounts
from storage.database import Database

logger = logging.getLogger(__name__)

MAX_BOUND = 20
"""Invites of one notice that are looked at: anybody may send one, and each may cost a request to another server."""
MAX_ASKING = 5
"""Other servers at once, whom those name who send notices."""
PAUSE_MS = 5_000
MAX_SIGNERS = 16

InviteRemote = Callable[[Draft], Awaitable[EventID]]
"""Invites a user of another server, who is told first: `RemoteMemberships.invite`."""
AskInviter = Callable[[RoomID, UserID, UserID, JsonObject], Awaitable[None]]
"""Asks the server of the first user to invite the second: `RemoteMemberships.exchange_third_party_invite`."""


class _Bound(Struct, frozen=True):
    """Somebody who owns an address now to which an invite was sent."""

    room_id: RoomID
    sender: UserID
    target: UserID
    signed: JsonObject


class ThirdPartyInvites:
    """Makes invites of promises."""

    def __init__(
        self,
        *,
        database: Database,
        writer: RoomWriter,
        resident: Resident,
        invite_remote: InviteRemote,
        ask_inviter: AskInviter,
        server_name: ServerName,
    ) -> None:
        self._database = database
        self._writer = writer
        self._resident = resident
        self._invite_remote = invite_remote
        self._ask_inviter = ask_inviter
        self._server_name = server_name
        self._asking = 0

    async def exchange(self, origin: ServerName, room_id: str, json: JsonObject) -> None:
        """Invite a user of `origin`, whom one of ours promised it.

        Raises InvalidInput for what is no such event, Forbidden where nothing was promised or the proof does not hold.
        """
        content = json.get("content")
        invite = content.get("third_party_invite") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(invite, dict):
            raise InvalidInput("content.third_party_invite must be there", "M_MISSING_PARAM")
        if json.get("type") != "m.room.member" or content.get("membership") != "invite":
            raise InvalidInput("This is no invite")
        if json.get("room_id") != room_id:
            raise InvalidInput("The event is of another room")
        bound = _parse(room_id, json.get("sender"), json.get("state_key"), invite.get("signed"))
        if server_name_of(bound.target) != origin or server_name_of(bound.sender) != self._server_name:
            raise Forbidden("Only a user of ours invites here, and only a user of the server that asks")
        await self._resident.get_room(origin, room_id)
        await self._invite(bound)

    async def bind(self, json: JsonObject) -> None:
        """An identity server says that users of ours own addresses now. Each invite stands or falls by itself.

        Raises LimitExceeded while several other servers are asked: anybody may send a notice, and name any server.
        """
        invites = json.get("invites")
        if not isinstance(invites, list):
            raise InvalidInput("invites must be an array", "M_BAD_JSON")
        for invite in invites[:MAX_BOUND]:
            if not isinstance(invite, dict):
                continue
            try:
                bound = _parse(invite.get("room_id"), invite.get("sender"), invite.get("mxid"), invite.get("signed"))
                await self._check_is_ours(bound.target)
                if server_name_of(bound.sender) == self._server_name:
                    await self._invite(bound)
                else:
                    await self._ask(bound)
            except (Unavailable, LimitExceeded):
                raise
            except MatrixError as error:
                logger.info("a third-party invite to %s came to nothing: %s", invite.get("room_id"), error.message)

    async def _ask(self, bound: _Bound) -> None:
        if self._asking >= MAX_ASKING:
            raise LimitExceeded(PAUSE_MS)
        self._asking += 1
        try:
            promised = {"display_name": "", "signed": bound.signed}
            await self._ask_inviter(bound.room_id, bound.sender, bound.target, promised)
        finally:
            self._asking -= 1

    async def _check_is_ours(self, target: UserID) -> None:
        account = None
        if server_name_of(target) == self._server_name:
            async with self._database.read() as tx:
                account = await accounts.find(tx, target)
        if account is None or account.is_deactivated:
            raise Forbidden("The user is none of ours")

    async def _invite(self, bound: _Bound) -> None:
        """The invite by who promised it, built from the promise; nothing happens for who is invited or joined."""
        room = await self._writer.get_room(bound.room_id)
        promise_key: StateKey = ("m.room.third_party_invite", bound.signed["token"])
        member_key: StateKey = ("m.room.member", bound.target)
        state = await self._writer.state_for(room, [promise_key, member_key])
        promise = state.get(promise_key)
        if promise is None or promise.sender != bound.sender:
            raise Forbidden("The room has no such third-party invite")
        if content_of(state.get(member_key)).get("membership") in ("invite", "join"):
            return
        name = promise.content.get("display_name")
        invite: JsonObject = {"display_name": name if isinstance(name, str) else "", "signed": bound.signed}
        draft = Draft(
            room_id=room.room_id,
            type="m.room.member",
            sender=bound.sender,
            content={"membership": "invite", "third_party_invite": invite},
            state_key=bound.target,
        )
        if server_name_of(bound.target) == self._server_name:
            await self._writer.append([draft])
        else:
            await self._invite_remote(draft)


def _parse(room_id: object, sender: object, target: object, signed: object) -> _Bound:
    """These fields, of which nothing but what they are for is taken over."""
    if not is_room_id(room_id) or not is_user_id(sender) or not is_user_id(target):
        raise InvalidInput("room_id, sender and the invited user must be valid")
    if not isinstance(signed, dict) or signed.get("mxid") != target:
        raise InvalidInput("signed is not for this user")
    token, signatures = signed.get("token"), signed.get("signatures")
    if not isinstance(token, str) or not fits(token) or "\0" in token:
        raise InvalidInput("signed.token must be a string")
    if not isinstance(signatures, dict) or len(signatures) > MAX_SIGNERS:
        raise InvalidInput("signed.signatures must be an object")
    kept: JsonObject = {}
    for name, by_name in signatures.items():
        if not isinstance(by_name, dict) or len(by_name) > MAX_SIGNERS:
            raise InvalidInput("signed.signatures must hold objects")
        kept[name] = {key_id: text for key_id, text in by_name.items() if isinstance(text, str)}
    # What else stands there is covered by the signature, and text.
    texts = {name: text for name, text in signed.items() if isinstance(text, str)}
    return _Bound(room_id, sender, target, {**texts, "signatures": kept})

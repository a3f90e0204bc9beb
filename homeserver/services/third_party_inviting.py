"""Inviting people by e-mail address (Client-Server API, "Third-party invites").

The identity server that the inviter names says whose the address is. Where it is nobody's, it keeps the invite and
mails; the room then has the promise that `federation/rooms/third_party_invites.py` turns into an invite.
"""

from msgspec import Struct

from federation.protocol.pdu import Draft
from federation.protocol.types import JsonObject, RoomID, StateKey
from federation.rooms.append import RoomWriter, content_of
from homeserver.services.identity_servers import IdentityServers
from homeserver.services.membership import MembershipService, ProfileOf
from homeserver.services.requester import Requester
from storage.identifiers import Identifier

_TOLD: dict[StateKey, tuple[str, str]] = {
    ("m.room.name", ""): ("name", "room_name"),
    ("m.room.canonical_alias", ""): ("alias", "room_alias"),
    ("m.room.avatar", ""): ("url", "room_avatar_url"),
    ("m.room.join_rules", ""): ("join_rule", "room_join_rules"),
    ("m.room.create", ""): ("type", "room_type"),
}
"""What the mail may say of the room: the member of the state event, and what the identity server calls it."""


class ThirdPartyInvite(Struct, frozen=True, kw_only=True):
    """Whom somebody invites, and by which identity server."""

    identifier: Identifier
    id_server: str
    id_access_token: str


class ThirdPartyInviting:
    """Makes such invites."""

    def __init__(
        self,
        writer: RoomWriter,
        memberships: MembershipService,
        identity_servers: IdentityServers,
        profile_of: ProfileOf,
    ) -> None:
        self._writer = writer
        self._memberships = memberships
        self._identity_servers = identity_servers
        self._profile_of = profile_of

    async def invite(
        self, who: Requester, room_id: str, invite: ThirdPartyInvite, *, reason: str | None = None
    ) -> None:
        """Invite whose address it is, or promise it; raises Forbidden, NotFound, M_SERVER_NOT_TRUSTED, and what the
        identity server answers.
        """
        who.check_not_suspended()
        room = await self._writer.get_room(room_id)
        # Before anybody is told of the room: as far as the rules of the room go, it may be promised.
        await self._writer.template(_promise(room.room_id, who, "invite", {"display_name": ""}))
        server, token = invite.id_server, invite.id_access_token
        user_id = await self._identity_servers.find_user(server, token, invite.identifier)
        if user_id is not None:
            return await self._memberships.invite(who, room_id, user_id, reason=reason)
        state = await self._writer.state_for(room, list(_TOLD))
        told: JsonObject = {
            "medium": invite.identifier.medium,
            "address": invite.identifier.address,
            "room_id": room.room_id,
            "sender": who.user_id,
        }
        for key, (member, name) in _TOLD.items():
            value = content_of(state.get(key)).get(member)
            if isinstance(value, str):
                told[name] = value
        profile = await self._profile_of(who.user_id)
        for member, name in (("displayname", "sender_display_name"), ("avatar_url", "sender_avatar_url")):
            if isinstance(profile.get(member), str):
                told[name] = profile[member]
        stored = await self._identity_servers.store_invite(server, token, told)
        keys = stored["public_keys"]
        content = {"display_name": stored["display_name"], "public_keys": keys, **keys[0]}
        await self._writer.append([_promise(room.room_id, who, stored["token"], content)])


def _promise(room_id: RoomID, who: Requester, token: str, content: JsonObject) -> Draft:
    return Draft(
        room_id=room_id,
        type="m.room.third_party_invite",
        sender=who.user_id,
        content=content,
        state_key=token,
    )

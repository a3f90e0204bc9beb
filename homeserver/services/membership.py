"""Who is where: join, invite, leave, kick, ban, unban, knock, forget (Client-Server API v1.19, "Room membership").

What the room's rules say is decided by the authorisation rules alone; here stands what a client is owed besides: that
asking for what is so already changes nothing, what a member event carries, and who vouches for a restricted join.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from federation.protocol.auth_events import CREATE, JOIN_RULES, POWER_LEVELS
from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.types import EventID, JsonObject, RoomID, StateKey, UserID
from federation.rooms.append import RoomWriter, content_of
from federation.rooms.contention import Contention
from federation.rooms.restricted_joins import RestrictedJoins
from homeserver.services.remote_rooms import RemoteRooms
from homeserver.services.requester import Requester
from homeserver.services.room_settings import RoomSettings
from storage import memberships, outside_memberships, rooms
from storage.database import Database, Tx
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Conflict, Entry
from storage.memberships import Membership
from storage.rooms import Room

TOMBSTONE: StateKey = ("m.room.tombstone", "")
GUEST_ACCESS: StateKey = ("m.room.guest_access", "")
_FROM_OUTSIDE = ("join", "leave", "knock")
"""What users may do to their own membership in a room that nobody of ours is in."""
_UNABLE = frozenset(("M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN"))
"""Another server in the room may be able."""

ProfileOf = Callable[[UserID], Awaitable[JsonObject]]
"""`displayname` and `avatar_url` of one of our users, as far as they are set."""
InviteBlocked = Callable[[UserID, UserID], Awaitable[bool]]
"""Whether the first user, ours, takes no invites from the second ("Invite permission")."""


class _Change(Struct, frozen=True):
    """A change of one membership that somebody asked for."""

    who: Requester
    room: Room
    target: UserID
    content: JsonObject
    current: VerifiedPDU | None
    """The target's member event now."""

    @property
    def membership(self) -> object:
        """The target's membership now: `leave` without one."""
        return "leave" if self.current is None else self.current.membership


class MembershipService:
    """Changes memberships of and by our users."""

    def __init__(  # noqa: PLR0913  # each is asked by itself
        self,
        database: Database,
        log: Log,
        writer: RoomWriter,
        *,
        remote: RemoteRooms,
        profile_of: ProfileOf,
        is_invite_blocked: InviteBlocked,
        settings: RoomSettings,
        notices_sender: UserID | None = None,
    ) -> None:
        """Invites by `notices_sender` cannot be rejected ("Server Notices")."""
        self._database = database
        self._log = log
        self._writer = writer
        self._remote = remote
        self._server_name = remote.server_name
        self._restricted = RestrictedJoins(database, writer, remote.server_name)
        self._profile_of = profile_of
        self._is_invite_blocked = is_invite_blocked
        self._settings = settings
        self._notices_sender = notices_sender

    # --- what clients ask for

    async def set(
        self,
        who: Requester,
        room_id: str,
        target: str,
        content: JsonObject,
        *,
        exactly: bool = False,
        via: Sequence[str] = (),
    ) -> EventID:
        """Give somebody a membership, with this content: the event that says so, new or not.

        `exactly` also changes the event of who is joined already to this content. `via` names servers that may know
        the room, for who wants to get into it, or out.

        Raises AuthRuleViolated and Forbidden for what may not be, NotFound for an unknown room.
        """
        if not is_user_id(target):
            raise InvalidInput("Not a valid user ID")
        content = {name: value for name, value in content.items() if name != "join_authorised_via_users_server"}
        membership = content.get("membership")
        if target == who.user_id and membership in _FROM_OUTSIDE and await self._remote.is_outside(room_id):
            return await self._set_from_outside(who, room_id, content, via)
        room = await self._writer.get_room(room_id)
        contention, may_be_behind = Contention(), True
        while True:
            change = await self._change(who, room, target, content)
            if change.membership == membership and await self._writer.catch_up():
                change = await self._change(who, room, target, content)
            try:
                return await self._make(change, exactly=exactly)
            except Conflict as error:  # maybe by this very request, which was answered by nobody and came again
                await contention.give_way(error)
            except Forbidden:
                has_heard = await self._writer.catch_up()
                has_moved = has_heard or (await self._change(who, room, target, content)).current != change.current
                if not (may_be_behind and has_moved):
                    raise
                may_be_behind = False

    async def _change(self, who: Requester, room: Room, target: UserID, content: JsonObject) -> "_Change":
        key: StateKey = ("m.room.member", target)
        return _Change(who, room, target, content, (await self._writer.state_for(room, [key])).get(key))

    async def _make(self, change: "_Change", *, exactly: bool) -> EventID:
        who, target, current = change.who, change.target, change.current
        match change.content.get("membership"):
            case "join":
                if change.membership == "join" and current is not None and target == who.user_id:
                    return await self._change_own(change, current) if exactly else current.event_id
                return await self._join(change)
            case "invite":
                return await self._invite(change)
            case "leave":
                return await self._leave(change) if target == who.user_id else await self._remove(change)
            case "ban":
                return await self._ban(change)
            case "knock":
                return await self._knock(change)
            case _:
                raise InvalidInput("content.membership is none that there is", "M_BAD_JSON")

    async def join(
        self,
        who: Requester,
        room_id: str,
        *,
        reason: str | None = None,
        third_party_signed: JsonObject | None = None,
        via: Sequence[str] = (),
    ) -> RoomID:
        """Join a room. Nothing happens for who is there already."""
        if third_party_signed:
            await self._accept_third_party(who, room_id, third_party_signed)
        await self.set(who, room_id, who.user_id, _content("join", reason), via=via)
        return RoomID(room_id)

    async def knock(
        self, who: Requester, room_id: str, *, reason: str | None = None, via: Sequence[str] = ()
    ) -> RoomID:
        """Ask to be let in."""
        await self.set(who, room_id, who.user_id, _content("knock", reason), via=via)
        return RoomID(room_id)

    async def invite(self, who: Requester, room_id: str, target: str, *, reason: str | None = None) -> None:
        """Invite somebody; nothing happens for who is invited already."""
        await self.set(who, room_id, target, _content("invite", reason))

    async def leave(self, who: Requester, room_id: str, *, reason: str | None = None) -> None:
        """Leave, reject an invite, or take back a knock; nothing happens for who has left already."""
        await self.set(who, room_id, who.user_id, _content("leave", reason))

    async def ban(self, who: Requester, room_id: str, target: str, *, reason: str | None = None) -> None:
        """Ban somebody."""
        await self.set(who, room_id, target, _content("ban", reason))

    async def kick(self, who: Requester, room_id: str, target: str, *, reason: str | None = None) -> None:
        """Remove somebody who is in the room, invited or knocking; never lifts a ban."""
        await self._check_membership(who, room_id, target, ("join", "invite", "knock"), "is not in the room")
        await self.set(who, room_id, target, _content("leave", reason))

    async def unban(self, who: Requester, room_id: str, target: str, *, reason: str | None = None) -> None:
        """Lift a ban."""
        await self._check_membership(who, room_id, target, ("ban",), "is not banned")
        await self.set(who, room_id, target, _content("leave", reason))

    async def _check_membership(
        self, who: Requester, room_id: str, target: str, wanted: Sequence[str], complaint: str
    ) -> None:
        if not is_user_id(target):
            raise InvalidInput("Not a valid user ID")
        room = await self._writer.get_room(room_id)
        own: StateKey = ("m.room.member", who.user_id)
        theirs: StateKey = ("m.room.member", target)
        state = await self._writer.state_for(room, [own, theirs])
        if content_of(state.get(own)).get("membership") != "join":
            raise Forbidden("You are not in the room")
        if content_of(state.get(theirs)).get("membership") not in wanted:
            raise Forbidden(f"{target} {complaint}")

    async def forget(self, who: Requester, room_id: str) -> None:
        """Forget a room that the user has left; M_UNKNOWN for one that they have not."""

        async def work(tx: Tx) -> None:
            outside = await outside_memberships.find(tx, who.user_id, room_id)
            room = await rooms.find(tx, room_id)
            found = await memberships.rooms_of(tx, who.user_id, tuple(Membership)) if room is not None else {}
            current = found.get(room.number) if room is not None else None
            present = [each for each in (outside and outside.membership, current and current[0]) if each is not None]
            if not present:
                raise NotFound("You were never in this room")
            if not all(membership in (Membership.LEAVE, Membership.BAN) for membership in present):
                raise MatrixError("M_UNKNOWN", f"User {who.user_id} is in room {room_id}")
            await outside_memberships.delete(tx, who.user_id, room_id)
            if room is not None and current is not None:
                await memberships.forget(tx, who.user_id, room.number, current[1])

        await self._log.append(Entry([Invalidated(Kind.FORGOTTEN_ROOM, who.user_id)], work))

    async def joined_rooms(self, user_id: UserID) -> list[RoomID]:
        """The rooms that the user is in."""
        async with self._database.read() as tx:
            numbers = await memberships.joined_rooms(tx, user_id)
            found = await rooms.get_many(tx, numbers)
        return [found[number].room_id for number in numbers]

    # --- each membership

    async def _join(self, change: _Change) -> EventID:
        who = change.who
        if change.target != who.user_id:
            raise Forbidden("Nobody can join somebody else")
        who.check_not_suspended()
        state = await self._writer.state_for(change.room, [JOIN_RULES, CREATE, POWER_LEVELS, GUEST_ACCESS])
        if who.is_guest and content_of(state.get(GUEST_ACCESS)).get("guest_access") != "can_join":
            raise Forbidden("Guests may not join this room", "M_GUEST_ACCESS_FORBIDDEN")
        extra: JsonObject = {}
        if await self._restricted.needs_authoriser(change.room, who.user_id):
            try:
                await self._restricted.check_conditions(change.room, who.user_id)
                extra["join_authorised_via_users_server"] = await self._restricted.find_authoriser(change.room)
            except MatrixError as error:
                if error.errcode not in _UNABLE:
                    raise
                return await self._join_by_others(change, error)
        event_id = await self._append(change, {**await self._profile_of(change.target), **change.content, **extra})
        await self._carry_settings(change, state[CREATE])
        return event_id

    async def _join_by_others(self, change: _Change, error: MatrixError) -> EventID:
        """Have a user of another server in the room let the user in, as none of ours may, or can tell."""
        servers = await self._remote.other_servers(change.room.room_id)
        if not servers:
            raise Forbidden(error.message) from error
        return await self._set_from_outside(change.who, change.room.room_id, change.content, servers)

    async def _set_from_outside(self, who: Requester, room_id: str, content: JsonObject, via: Sequence[str]) -> EventID:
        """Join, leave or knock with the help of another server."""
        if content["membership"] == "leave":
            return await self._leave_from_outside(who, room_id, content)
        who.check_not_suspended()
        if who.is_guest:
            raise Forbidden("Guests may not join rooms of other servers", "M_GUEST_ACCESS_FORBIDDEN")
        content = {**await self._profile_of(who.user_id), **content}
        if content["membership"] == "knock":
            return await self._remote.knock(room_id, who.user_id, content, via)
        if not await self._remote.join(room_id, who.user_id, content, via):
            return await self.set(who, room_id, who.user_id, content, via=via)
        room = await self._writer.get_room(room_id)
        own: StateKey = ("m.room.member", who.user_id)
        state = await self._writer.state_for(room, [CREATE, own])
        if own not in state:
            raise NotFound("The room cannot be found")
        await self._carry_settings(_Change(who, room, who.user_id, content, state[own]), state[CREATE])
        return state[own].event_id

    async def _leave_from_outside(self, who: Requester, room_id: str, content: JsonObject) -> EventID:
        try:
            return await self._remote.leave(room_id, who.user_id, content)
        except NotFound:
            room = await self._writer.get_room(room_id)  # was in it before, maybe
            own: StateKey = ("m.room.member", who.user_id)
            current = (await self._writer.state_for(room, [own])).get(own)
            if current is None or current.membership != "leave":
                raise
            return current.event_id

    async def _carry_settings(self, change: _Change, create: VerifiedPDU) -> None:
        """Bring the user's settings along from the room that this one replaces, if they are in it and it says so."""
        predecessor = create.content.get("predecessor")
        old_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
        if not isinstance(old_id, str):
            return
        try:
            old = await self._writer.get_room(old_id)
            state = await self._writer.state_for(old, [TOMBSTONE, ("m.room.member", change.target)])
        except NotFound:
            return
        is_replaced = content_of(state.get(TOMBSTONE)).get("replacement_room") == change.room.room_id
        if is_replaced and content_of(state.get(("m.room.member", change.target))).get("membership") == "join":
            await self._settings.carry_over(change.target, old, change.room)

    async def _change_own(self, change: _Change, current: VerifiedPDU) -> EventID:
        if change.content == current.content:
            return current.event_id
        change.who.check_not_suspended()
        return await self._append(change, change.content)

    async def _invite(self, change: _Change) -> EventID:
        change.who.check_not_suspended()
        if change.membership == "invite" and change.current is not None:
            await self._check_membership(
                change.who, change.room.room_id, change.who.user_id, ("join",), "is not in the room"
            )
            return change.current.event_id
        await self.check_may_be_invited(change.target, change.who.user_id)
        if self.is_remote(change.target):
            return await self._remote.invite(_draft(change, change.content))
        return await self._append(change, {**await self._profile_of(change.target), **change.content})

    def is_remote(self, user_id: UserID) -> bool:
        """Whether the user is of another server."""
        return server_name_of(user_id) != self._server_name

    async def check_may_be_invited(self, target: UserID, sender: UserID) -> None:
        """Raise M_INVITE_BLOCKED where the user takes no invites; another server is asked when it is told."""
        if not self.is_remote(target) and await self._is_invite_blocked(target, sender):
            raise Forbidden(f"{target} does not take invites", "M_INVITE_BLOCKED")

    async def _leave(self, change: _Change) -> EventID:
        if change.membership == "leave" and change.current is not None:
            return change.current.event_id
        if (
            change.membership == "invite"
            and change.current is not None
            and change.current.sender == self._notices_sender
        ):
            raise Forbidden("This room is for notices of the server", "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
        return await self._append(change, change.content)

    async def _remove(self, change: _Change) -> EventID:
        change.who.check_not_suspended()
        if change.membership == "leave":
            raise Forbidden(f"{change.target} is not in the room")
        return await self._append(change, change.content)

    async def _ban(self, change: _Change) -> EventID:
        change.who.check_not_suspended()
        if change.membership == "ban" and change.current is not None:
            await self._check_membership(
                change.who, change.room.room_id, change.who.user_id, ("join",), "is not in the room"
            )
            return change.current.event_id
        return await self._append(change, change.content)

    async def _knock(self, change: _Change) -> EventID:
        change.who.check_not_suspended()
        if change.target != change.who.user_id:
            raise Forbidden("Nobody can knock for somebody else")
        if change.membership == "knock" and change.current is not None:
            return change.current.event_id
        return await self._append(change, {**await self._profile_of(change.target), **change.content})

    async def _append(self, change: _Change, content: JsonObject) -> EventID:
        decided_by: dict[StateKey, VerifiedPDU | None] = {("m.room.member", change.target): change.current}
        return (await self._writer.append([_draft(change, content)], decided_by=decided_by)).events[0].event_id

    # --- third-party invites

    async def _accept_third_party(self, who: Requester, room_id: str, signed: JsonObject) -> None:
        """Turn a signed third-party invite into an invite by who made it ("Third-party invites")."""
        sender, token = signed.get("sender"), signed.get("token")
        if signed.get("mxid") != who.user_id or not is_user_id(sender) or not isinstance(token, str):
            raise InvalidInput("third_party_signed is not for you")
        who.check_not_suspended()
        if self.is_remote(sender) and await self._remote.is_outside(room_id):
            invite = {"display_name": "", "signed": signed}
            return await self._remote.accept_third_party(room_id, sender, who.user_id, invite)
        room = await self._writer.get_room(room_id)
        promise_key: StateKey = ("m.room.third_party_invite", token)
        member_key: StateKey = ("m.room.member", who.user_id)
        state = await self._writer.state_for(room, [promise_key, member_key])
        promise = state.get(promise_key)
        if promise is None:
            raise Forbidden("The room has no such third-party invite")
        if content_of(state.get(member_key)).get("membership") in ("join", "invite"):
            return
        third_party_invite = {"display_name": promise.content.get("display_name", ""), "signed": signed}
        if self.is_remote(sender):
            return await self._remote.accept_third_party(room_id, sender, who.user_id, third_party_invite)
        content = {**await self._profile_of(who.user_id), **_content("invite", None)}
        draft = Draft(
            room_id=room.room_id,
            type="m.room.member",
            sender=sender,
            content={**content, "third_party_invite": third_party_invite},
            state_key=who.user_id,
        )
        await self._writer.append([draft])


def _draft(change: _Change, content: JsonObject) -> Draft:
    return Draft(
        room_id=change.room.room_id,
        type="m.room.member",
        sender=change.who.user_id,
        content=content,
        state_key=change.target,
    )


def _content(membership: str, reason: str | None) -> JsonObject:
    return {"membership": membership} if reason is None else {"membership": membership, "reason": reason}

"""The first events of a room (Client-Server API v1.19, "Creation"): presets, power levels, and their order."""

import logging
import secrets
import string
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field

from federation.protocol.errors import AuthRuleViolated, InvalidEvent, InvalidInput, MatrixError
from federation.protocol.identifiers import check_room_alias, is_user_id, server_of_alias
from federation.protocol.pdu import Draft
from federation.protocol.room_versions import RoomVersionRules, get_rules
from federation.protocol.types import JsonObject, RoomAlias, RoomID, ServerName, StateKey, UserID
from federation.rooms.append import RoomWriter
from homeserver.services.application_services import ApplicationServices
from homeserver.services.membership import MembershipService, ProfileOf
from homeserver.services.requester import Requester
from storage import room_directory
from storage.database import Tx
from storage.rooms import Room

logger = logging.getLogger(__name__)

MAX_INVITES = 500
MAX_INITIAL_STATE = 1000

_JOIN_RULES, _VISIBILITY, _GUEST_ACCESS = (
    ("m.room.join_rules", ""),
    ("m.room.history_visibility", ""),
    ("m.room.guest_access", ""),
)
PRESETS: dict[str, dict[StateKey, JsonObject]] = {
    "private_chat": {
        _JOIN_RULES: {"join_rule": "invite"},
        _VISIBILITY: {"history_visibility": "shared"},
        _GUEST_ACCESS: {"guest_access": "can_join"},
    },
    "trusted_private_chat": {
        _JOIN_RULES: {"join_rule": "invite"},
        _VISIBILITY: {"history_visibility": "shared"},
        _GUEST_ACCESS: {"guest_access": "can_join"},
    },
    "public_chat": {
        _JOIN_RULES: {"join_rule": "public"},
        _VISIBILITY: {"history_visibility": "shared"},
        _GUEST_ACCESS: {"guest_access": "forbidden"},
    },
}


class Creation(Struct, frozen=True, kw_only=True):
    """What somebody wants their new room to be."""

    room_version: str | None = None
    preset: str = "private_chat"
    is_public: bool = False
    """Whether it is published in the directory."""
    alias_name: str | None = None
    name: str | None = None
    topic: str | None = None
    invites: Sequence[str] = ()
    is_direct: bool = False
    creation_content: JsonObject = field(default_factory=dict)
    initial_state: Sequence[tuple[StateKey, JsonObject]] = ()
    power_levels: JsonObject = field(default_factory=dict)
    """Put over the power levels that the server would give."""


class RoomCreationService:
    """Makes rooms."""

    def __init__(
        self,
        writer: RoomWriter,
        memberships: MembershipService,
        *,
        server_name: ServerName,
        default_version: str,
        profile_of: ProfileOf,
        application_services: ApplicationServices,
    ) -> None:
        self._writer = writer
        self._memberships = memberships
        self._server_name = server_name
        self._default_version = default_version
        self._profile_of = profile_of
        self._application_services = application_services

    async def create(self, who: Requester, creation: Creation) -> RoomID:
        """Make a room with all its first events, its alias and its place in the directory, or nothing.

        Users of other servers are invited afterwards: their servers have to be asked.

        Raises M_UNSUPPORTED_ROOM_VERSION, M_ROOM_IN_USE, M_INVALID_ROOM_STATE where the events contradict each
        other, M_INVITE_BLOCKED.
        """
        who.check_not_suspended()
        rules = get_rules(creation.room_version or self._default_version)
        if len(creation.initial_state) > MAX_INITIAL_STATE:
            raise InvalidInput(f"initial_state may have {MAX_INITIAL_STATE} entries")
        invites = await self._check_invites(who, creation.invites)
        alias = self._alias(who, creation.alias_name)
        first = FirstEvents(who.user_id, rules)
        first.add_create(creation.creation_content, invites if creation.preset == "trusted_private_chat" else ())
        first.add_member(who.user_id, {**await self._profile_of(who.user_id), "membership": "join"})
        first.add_power_levels(creation, invites)
        first.add_state(creation, alias)
        extra: JsonObject = {"membership": "invite", **({"is_direct": True} if creation.is_direct else {})}
        remote = [user_id for user_id in invites if self._memberships.is_remote(user_id)]
        for user_id in invites:
            if user_id not in remote:
                first.add_member(user_id, {**await self._profile_of(user_id), **extra})

        async def work(tx: Tx, room: Room) -> None:
            if alias is not None and not await room_directory.insert_alias(
                tx, alias, room.room_id, who.user_id, _now_ms()
            ):
                raise MatrixError("M_ROOM_IN_USE", f"Room alias {alias} already exists")
            if creation.is_public:
                await room_directory.publish(tx, room.number)

        room_id = await self.create_from(first, work if alias is not None or creation.is_public else None)
        for user_id in remote:
            try:
                await self._memberships.set(who, room_id, user_id, extra)
            except MatrixError as error:  # the room is there, and its creator sees who is in it
                logger.warning("%s could not be invited to the new room %s: %s", user_id, room_id, error)
        return room_id

    async def create_from(self, first: "FirstEvents", work: Callable[[Tx, Room], Any] | None) -> RoomID:
        """Make a room from its first events; raises M_INVALID_ROOM_STATE where its own rules refuse one."""
        room_id = None if first.rules.room_id_is_create_hash else _new_room_id(self._server_name)
        try:
            room, _ = await self._writer.create_room(first.rules, first.drafts, room_id=room_id, work=work)
        except (AuthRuleViolated, InvalidEvent) as error:
            raise InvalidInput(error.message, "M_INVALID_ROOM_STATE") from error
        return room.room_id

    async def _check_invites(self, who: Requester, invites: Sequence[str]) -> list[UserID]:
        if len(invites) > MAX_INVITES:
            raise InvalidInput(f"At most {MAX_INVITES} users can be invited at once")
        checked: list[UserID] = []
        for user_id in dict.fromkeys(invites):
            if not is_user_id(user_id):
                raise InvalidInput(f"{user_id!r} is no user ID")
            if user_id != who.user_id:
                await self._memberships.check_may_be_invited(user_id, who.user_id)
                checked.append(user_id)
        return checked

    def _alias(self, who: Requester, name: str | None) -> RoomAlias | None:
        if name is None:
            return None
        if not name or any(letter in name for letter in ":#\0") or name != name.strip() or " " in name:
            raise InvalidInput("room_alias_name is the local part of an alias: a name without # and :")
        alias = check_room_alias(f"#{name}:{self._server_name}")
        if server_of_alias(alias) != self._server_name:
            raise InvalidInput("room_alias_name is the local part of an alias")
        self._application_services.check_alias_not_exclusive(alias, who.application_service)
        return alias


class FirstEvents:
    """The drafts of a new room's events, in order."""

    def __init__(self, creator: UserID, rules: RoomVersionRules) -> None:
        self.creator = creator
        self.rules = rules
        self.drafts: list[Draft] = []
        self.creators: frozenset[str] = frozenset((creator,))

    def add(self, event_type: str, state_key: str, content: JsonObject) -> None:
        """One state event by the creator."""
        self.drafts.append(
            Draft(room_id=RoomID(""), type=event_type, sender=self.creator, content=content, state_key=state_key)
        )

    def add_create(self, content: JsonObject, trusted: Sequence[UserID] = ()) -> None:
        """The create event; from version 12 those who are trusted from the start are creators, too."""
        content = {**content, "room_version": self.rules.version}
        content.pop("creator", None)
        if not self.rules.implicit_creator:
            content["creator"] = self.creator
        if self.rules.creators_have_infinite_power:
            named = content.get("additional_creators", [])
            if not isinstance(named, list) or not all(is_user_id(user_id) for user_id in named):
                raise InvalidInput("additional_creators must be a list of user IDs")
            additional = [user_id for user_id in dict.fromkeys((*named, *trusted)) if user_id != self.creator]
            self.creators = frozenset((self.creator, *additional))
            if additional:
                content["additional_creators"] = additional
            else:
                content.pop("additional_creators", None)
        self.add("m.room.create", "", content)

    def add_member(self, user_id: UserID, content: JsonObject) -> None:
        """A membership."""
        self.add("m.room.member", user_id, content)

    def add_power_levels(self, creation: Creation, invites: Sequence[UserID]) -> None:
        """The levels that the server gives, under those that the request gives."""
        trusted = invites if creation.preset == "trusted_private_chat" else ()
        content = {**default_power_levels(self.rules, (self.creator, *trusted)), **creation.power_levels}
        if self.rules.creators_have_infinite_power:
            content["events"] = with_tombstone_level(content)
        self.add("m.room.power_levels", "", content)

    def add_state(self, creation: Creation, alias: RoomAlias | None) -> None:
        """Canonical alias, preset, initial state, name and topic: each entry once, by the last that gives it."""
        given: list[tuple[StateKey, JsonObject]] = []
        if alias is not None:
            given.append((("m.room.canonical_alias", ""), {"alias": alias}))
        given += PRESETS[creation.preset].items()
        given += creation.initial_state
        if creation.name is not None:
            given.append((("m.room.name", ""), {"name": creation.name}))
        if creation.topic is not None:
            text = [{"body": creation.topic, "mimetype": "text/plain"}]
            given.append((("m.room.topic", ""), {"topic": creation.topic, "m.topic": {"m.text": text}}))
        last = {key: index for index, (key, _) in enumerate(given)}
        for index, ((event_type, state_key), content) in enumerate(given):
            if event_type in ("m.room.create", "m.room.member"):
                raise InvalidInput(f"initial_state may not hold {event_type}", "M_INVALID_ROOM_STATE")
            if last[event_type, state_key] == index:
                self.add(event_type, state_key, content)


def default_power_levels(rules: RoomVersionRules, trusted: Sequence[UserID]) -> JsonObject:
    """The levels of a new room; those who are trusted get 100, except where they are creators and stand above."""
    return {
        "users": {} if rules.creators_have_infinite_power else dict.fromkeys(trusted, 100),
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.server_acl": 100,
            "m.room.encryption": 100,
            "m.room.tombstone": 100,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 0,
    }


def with_tombstone_level(power_levels: JsonObject) -> Any:  # noqa: ANN401  # what is no object is for the rules to refuse
    """`events`, where from version 12 a tombstone takes more than other state: admins cannot replace the room."""
    events, state_default = power_levels.get("events", {}), power_levels.get("state_default", 50)
    if not isinstance(events, dict) or type(state_default) is not int:
        return events
    given = events.get("m.room.tombstone", 0)
    if type(given) is not int or given > max(100, state_default):
        return events
    return {**events, "m.room.tombstone": max(150, state_default + 50)}


def _new_room_id(server_name: ServerName) -> RoomID:
    return RoomID("!" + "".join(secrets.choice(string.ascii_letters) for _ in range(18)) + f":{server_name}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

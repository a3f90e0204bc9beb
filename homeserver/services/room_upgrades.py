"""Replacing a room by one of another version (Client-Server API v1.19, "Room Upgrades", server behaviour)."""

from collections.abc import Callable, Mapping, Sequence

from federation.protocol.auth_events import CREATE, POWER_LEVELS
from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.identifiers import is_user_id
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.power_levels import DEFAULT_LEVELS, PowerLevels, get_creators, parse_level
from federation.protocol.room_versions import RoomVersionRules, get_rules
from federation.protocol.types import JsonObject, RoomID, StateKey
from federation.rooms.append import RoomWriter, content_of
from homeserver.services.membership import ProfileOf
from homeserver.services.requester import Requester
from homeserver.services.room_creation import FirstEvents, RoomCreationService, with_tombstone_level
from homeserver.services.room_settings import RoomSettings
from storage import room_directory
from storage.database import Database, Tx
from storage.rooms import Room

TOMBSTONE: StateKey = ("m.room.tombstone", "")
CANONICAL_ALIAS: StateKey = ("m.room.canonical_alias", "")
COPIED: Sequence[StateKey] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.server_acl",
        "m.room.encryption",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.guest_access",
        "m.room.history_visibility",
        "m.room.join_rules",
    )
)
LOCKED_LEVEL = 50
_COPIED_FROM_CREATE = ("type", "m.federate")


class RoomUpgradeService:
    """Upgrades rooms."""

    def __init__(
        self,
        database: Database,
        writer: RoomWriter,
        creation: RoomCreationService,
        settings: RoomSettings,
        profile_of: ProfileOf,
    ) -> None:
        self._database = database
        self._writer = writer
        self._creation = creation
        self._settings = settings
        self._profile_of = profile_of

    async def upgrade(self, who: Requester, room_id: str, version: str, additional_creators: Sequence[str]) -> RoomID:
        """Replace a room: the new one has its settings, aliases and place in the directory; the old one is locked.

        Raises Forbidden for who may not send `m.room.tombstone`, M_UNSUPPORTED_ROOM_VERSION.
        """
        who.check_not_suspended()
        rules = get_rules(version)
        if rules.creators_have_infinite_power and not all(is_user_id(user_id) for user_id in additional_creators):
            raise InvalidInput("additional_creators must be a list of user IDs")
        old = await self._writer.get_room(room_id)
        own: StateKey = ("m.room.member", who.user_id)
        state = await self._writer.state_for(old, [CREATE, POWER_LEVELS, CANONICAL_ALIAS, own, *COPIED])
        levels = PowerLevels.from_state(state.get(POWER_LEVELS), state[CREATE])
        if content_of(state.get(own)).get("membership") != "join":
            raise Forbidden("You are not in the room")
        if levels.of_user(who.user_id) < levels.to_send(TOMBSTONE[0], is_state=True):
            raise Forbidden("You may not upgrade this room")
        async with self._database.read() as tx:
            aliases = frozenset(await room_directory.list_aliases(tx, old.room_id))
        first = FirstEvents(who.user_id, rules)
        await self._add_first_events(first, old, state, additional_creators)
        moved = _aliases(content_of(state.get(CANONICAL_ALIAS)), lambda alias: alias in aliases)
        if moved:
            first.add(*CANONICAL_ALIAS, moved)

        async def work(tx: Tx, room: Room) -> None:
            await room_directory.move_aliases(tx, old.room_id, room.room_id)
            if await room_directory.unpublish(tx, old.number):
                await room_directory.publish(tx, room.number)

        new_id = await self._creation.create_from(first, work)
        await self._writer.append(_last_events(who, old, state, levels, new_id, aliases))
        await self._settings.carry_over(who.user_id, old, await self._writer.get_room(new_id))
        return new_id

    async def _add_first_events(
        self,
        first: FirstEvents,
        old: Room,
        state: Mapping[StateKey, VerifiedPDU],
        additional_creators: Sequence[str],
    ) -> None:
        create = state[CREATE].content
        content: JsonObject = {key: create[key] for key in _COPIED_FROM_CREATE if key in create}
        content["predecessor"] = {"room_id": old.room_id, "event_id": await self._writer.newest_event_id(old)}
        if first.rules.creators_have_infinite_power and additional_creators:
            content["additional_creators"] = list(additional_creators)
        first.add_create(content)
        first.add_member(first.creator, {**await self._profile_of(first.creator), "membership": "join"})
        final = upgraded_power_levels(state, first.rules, creators=first.creators)
        needed = _highest(final)
        own = final.get("users", {}).get(first.creator, final.get("users_default", 0))
        if first.rules.creators_have_infinite_power or own >= needed:
            first.add(*POWER_LEVELS, final)
        else:
            first.add(*POWER_LEVELS, {**final, "users": {**final.get("users", {}), first.creator: needed}})
        for key in COPIED:
            if key in state and state[key].content:
                first.add(*key, state[key].content)
        if not first.rules.creators_have_infinite_power and own < needed:
            first.add(*POWER_LEVELS, final)


def upgraded_power_levels(
    state: Mapping[StateKey, VerifiedPDU], rules: RoomVersionRules, *, creators: frozenset[str]
) -> JsonObject:
    """The old room's levels as a room of the new version holds them.

    Whoever stood above all levels gets the highest of them where the new version knows no such creators, and the new
    room's creators are not listed where it does.
    """
    old_rules = state[CREATE].rules
    content: JsonObject = dict(content_of(state.get(POWER_LEVELS)))
    for name in DEFAULT_LEVELS:
        level = parse_level(content.pop(name, None), old_rules)
        if level is not None:
            content[name] = level
    for table in ("events", "users", "notifications"):
        entries = content.pop(table, None)
        if isinstance(entries, dict):
            levels = {key: parse_level(value, old_rules) for key, value in entries.items()}
            content[table] = {key: level for key, level in levels.items() if level is not None}
    users = {user_id: level for user_id, level in content.get("users", {}).items() if is_user_id(user_id)}
    if old_rules.creators_have_infinite_power or POWER_LEVELS not in state:
        highest = max(100, _highest(content))
        users = {**{user_id: highest for user_id in get_creators(state[CREATE]) if is_user_id(user_id)}, **users}
    if rules.creators_have_infinite_power:
        users = {user_id: level for user_id, level in users.items() if user_id not in creators}
        content["events"] = with_tombstone_level(content)
    return {**content, "users": users}


def _highest(content: JsonObject) -> int:
    """The highest level that anything in the content asks for, or anybody has."""
    levels: list[int] = [content.get(name, default) for name, default in DEFAULT_LEVELS.items()]
    for table in ("events", "users", "notifications"):
        levels += content.get(table, {}).values()
    return max(levels)


def _last_events(  # everything that the old room's end depends on
    who: Requester,
    old: Room,
    state: Mapping[StateKey, VerifiedPDU],
    levels: PowerLevels,
    new_id: RoomID,
    aliases: frozenset[str],
) -> list[Draft]:
    """The old room's last events: aliases given up, the tombstone, and nobody may speak or invite."""
    own = levels.of_user(who.user_id)
    contents: list[tuple[StateKey, JsonObject]] = []
    canonical = content_of(state.get(CANONICAL_ALIAS))
    kept = _aliases(canonical, lambda alias: alias not in aliases)
    if kept != canonical and own >= levels.to_send(CANONICAL_ALIAS[0], is_state=True):
        contents.append((CANONICAL_ALIAS, kept))
    contents.append((TOMBSTONE, {"body": "This room has been replaced", "replacement_room": new_id}))
    locked = max(LOCKED_LEVEL, levels.named("users_default") + 1)
    raised = {name: locked for name in ("events_default", "invite") if levels.named(name) < locked}
    if raised and own >= levels.to_send(POWER_LEVELS[0], is_state=True) and own >= locked:
        contents.append((POWER_LEVELS, {**content_of(state.get(POWER_LEVELS)), **raised}))
    return [
        Draft(room_id=old.room_id, type=key[0], state_key=key[1], sender=who.user_id, content=content)
        for key, content in contents
    ]


def _aliases(content: JsonObject, wanted: Callable[[str], bool]) -> JsonObject:
    """What of an `m.room.canonical_alias` is about these aliases."""
    result: JsonObject = {}
    alias, others = content.get("alias"), content.get("alt_aliases")
    if isinstance(alias, str) and wanted(alias):
        result["alias"] = alias
    if isinstance(others, list) and any(isinstance(other, str) and wanted(other) for other in others):
        result["alt_aliases"] = [other for other in others if isinstance(other, str) and wanted(other)]
    return result

"""Users, devices and rooms in every state, made over HTTP: what random requests are about."""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson

from federation.protocol.types import UserID
from tests.client import PASSWORD, Client, Server, quote, unique
from tests.devices import Device, a_device, cross_signing
from tests.rooms import create_room, join, put_state, send, send_event

PUBLIC = {"preset": "public_chat"}
ENCRYPTION = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
VERSIONS = ("1", "3", "6", "8", "10", "11", "12")
KEPT = 60
"""How many values of one kind are remembered; older ones make way."""

FIXED: dict[str, tuple[Any, ...]] = {
    "server_name": ("hearth.test", "hearth.test", "elsewhere.test", "127.0.0.1:1"),
    "mxc": ("mxc://hearth.test/abc", "mxc://elsewhere.test/abc"),
    "event_type": ("m.room.message", "m.reaction", "m.room.name", "m.room.topic", "org.example.custom", "m.sticker"),
    "account_data_type": ("m.direct", "org.example.custom", "m.ignored_user_list", "m.marked_unread", "m.tag"),
    "filter": ('{"room":{"timeline":{"limit":3,"types":["m.*"]}}}', '{"room":{"state":{"lazy_load_members":true}}}'),
    "profile_field": ("displayname", "avatar_url", "m.tz", "org.example.field"),
    "push_kind": ("override", "underride", "sender", "room", "content"),
    "rule_id": (".m.rule.master", ".m.rule.message", "mine", "org.example.rule", ".m.rule.contains_user_name"),
    "receipt_type": ("m.read", "m.read.private", "m.fully_read"),
    "room_version": (*VERSIONS, "99"),
    "state_key": ("", "", "a", "@nobody:hearth.test"),
    "tag": ("m.favourite", "m.lowpriority", "u.work"),
    "limit": (0, 1, 2, 10, 1000),
    "timeout": (0, 0, 0, 1, 20, 5000),
    "password": (PASSWORD, PASSWORD, PASSWORD, "another long password"),
    "word": ("word", "a", "org.example.key", "m.text", "unknown"),
    "session": ("unknown",),
    "stage": ("m.login.dummy", "m.login.terms", "m.login.registration_token", "m.login.password"),
    "report_id": ("1", "2", "3"),
    "delay_id": ("unknown",),
    "session_id": ("session1", "session2", "session/3"),
    "base64": ("d29yZA", "A" * 43, "B" * 86),
}
"""Values that need not be made beforehand."""
EITHER = {
    "room_id_or_alias": ("room_id", "room_id", "alias"),
    "token": ("page_token", "page_token", "sync_token"),
    "filter": ("filter_id",),
}
"""Kinds that are one of several others."""


@dataclass(slots=True)
class World:
    """What there is to ask for, and who asks."""

    server: Server
    chance: random.Random
    actors: list[Client] = field(default_factory=list)
    admin: Client | None = None
    victim: Client | None = None
    """Whoever does what ends a session or an account; replaced afterwards."""
    rooms: list[str] = field(default_factory=list)
    events: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By room."""
    devices: dict[str, Device] = field(default_factory=dict)
    """By user."""
    values: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    made: int = 0

    def add(self, kind: str, value: Any) -> None:
        """Remember a value; the first ones are forgotten when there are many."""
        values = self.values[kind]
        values.append(value)
        del values[:-KEPT]

    def add_event(self, room_id: str, event_id: str) -> None:
        """Remember an event of a room."""
        self.events[room_id].append(event_id)
        del self.events[room_id][:-KEPT]

    async def new_victim(self) -> Client:
        """A user with a session that may end."""
        victim = await self.server.register("victim", refresh_token=True)
        for room_id in self.rooms:  # any of them may have been closed meanwhile
            if (await victim.post(f"/v3/join/{quote(room_id)}", {})).status == 200:
                break
        self.victim = victim  # from here on other lanes may end it
        self.add("refresh_token", victim.refresh_token)
        return victim


@dataclass(slots=True)
class Pick:
    """Where the values of one request come from: most are about the same user and room."""

    world: World
    actor: Client
    room_id: str

    def pick(self, kind: str) -> Any:
        """A value of this kind."""
        chance, world = self.world.chance, self.world
        mostly = chance.random() < 0.75
        match kind:
            case "backup_version" if mostly and world.values[kind]:
                return world.values[kind][-1]  # the newest is the one that keys go to
            case "user_id" if chance.random() < 0.5:
                return self.actor.user_id
            case "room_id":
                return self.room_id if mostly else chance.choice(world.rooms)
            case "event_id":
                room_id = self.room_id if mostly else chance.choice(world.rooms)
                return chance.choice(world.events[room_id] or ["$unknown"])
            case "device_id" if mostly:
                return self.actor.device_id
            case "room_id_or_alias" | "token" | "filter" if kind != "filter" or mostly:
                return self.pick(chance.choice(EITHER[kind]))
            case "timestamp":
                return int(time.time() * 1000) - chance.choice((0, 0, 1000, 10_000_000, -10_000_000))
            case "txn_id":
                world.made += 1
                return f"txn{world.made if mostly else chance.randrange(5)}"
            case "localpart":
                return unique("random")
        known = [*world.values[kind], *FIXED.get(kind, ())]
        return chance.choice(known) if known else "unknown"


async def create(server: Server, chance: random.Random) -> World:
    """A new world: users who are joined, invited, left, banned or were never there, and rooms of many kinds."""
    world = World(server, chance)
    alice, bob, carol, dave, erin = [await server.register(name) for name in ("alice", "bob", "carol", "dave", "erin")]
    admin = world.admin = await server.register("admin")
    await server.application.accounts.service.set_admin(UserID(admin.user_id), is_admin=True)
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register?kind=guest", {}))
    world.actors = [*[alice] * 9, *[bob] * 3, carol, dave, erin, guest]
    for user in (alice, bob, carol, dave, erin, admin, guest):
        world.add("user_id", user.user_id)
        world.add("device_id", user.device_id)
    for foreign in ("@somebody:elsewhere.test", "@nobody:hearth.test"):
        world.add("user_id", foreign)
    await _make_keys(world, alice, bob)
    await _make_rooms(world, alice, bob, carol, dave, erin)
    await _make_user_data(world, alice)
    await world.new_victim()
    return world


async def _make_keys(world: World, alice: Client, bob: Client) -> None:
    for user in (alice, bob):
        world.devices[user.user_id] = await a_device(user, one_time_keys=5)
        await cross_signing(user)
    backup = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "A" * 43}}
    for user in (alice, bob):
        world.add("backup_version", (await user.ok("POST", "/v3/room_keys/version", backup))["version"])
    dehydrated = Device(Client("", alice.session, user_id=alice.user_id, device_id="DEHYDRATED"))
    data = {"algorithm": "m.dehydration.v1.olm", "account": "c2VjcmV0"}
    body = {"device_id": "DEHYDRATED", "device_data": data, "device_keys": dehydrated.identity()}
    await alice.ok("PUT", "/unstable/org.matrix.msc3814.v1/dehydrated_device", body)
    world.add("device_id", "DEHYDRATED")


async def _make_rooms(world: World, *users: Client) -> None:
    alice, bob, carol, dave, erin = users
    alias = unique("room")
    main = await create_room(alice, **PUBLIC, room_alias_name=alias, name="Main", topic="All", visibility="public")
    world.add("alias", f"#{alias}:{world.server.name}")
    for user in (bob, carol, dave):
        await join(user, main)
    await _fill(world, main, alice, bob)
    await carol.ok("POST", f"/v3/rooms/{quote(main)}/leave", {})
    await alice.ok("POST", f"/v3/rooms/{quote(main)}/ban", {"user_id": dave.user_id, "reason": "test"})
    await alice.ok("POST", f"/v3/rooms/{quote(main)}/invite", {"user_id": erin.user_id})
    world.rooms.extend([main, main, main])
    session = {"first_message_index": 0, "forwarded_count": 0, "is_verified": True, "session_data": {"ciphertext": "a"}}
    keys = {"rooms": {main: {"sessions": {str(name): session for name in FIXED["session_id"]}}}}
    await alice.ok("PUT", f"/v3/room_keys/keys?version={world.values['backup_version'][0]}", keys)
    path = f"/v3/rooms/{quote(main)}/send/m.room.message/delayed?org.matrix.msc4140.delay=3600000"
    world.add("delay_id", (await alice.ok("PUT", path, {"msgtype": "m.text", "body": "later"}))["delay_id"])
    for number in range(3):
        await alice.ok("POST", f"/v3/rooms/{quote(main)}/report", {"reason": f"{number}"})
    encrypted = await create_room(alice, initial_state=[ENCRYPTION], invite=[bob.user_id, erin.user_id])
    await join(bob, encrypted)
    readable = {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}
    open_room = await create_room(
        bob, **PUBLIC, initial_state=[readable], power_level_content_override={"state_default": 0}
    )
    restricted = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": main}]}
    more = [
        encrypted,
        open_room,
        await create_room(alice, initial_state=[{"type": "m.room.join_rules", "content": restricted}]),
        await create_room(alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]),
        await create_room(alice, creation_content={"type": "m.space"}),
        await create_room(erin, invite=[alice.user_id], is_direct=True, preset="trusted_private_chat"),
        *[await create_room(alice, **PUBLIC, room_version=world.chance.choice(VERSIONS)) for _ in range(2)],
    ]
    for room_id in more:
        owner = bob if room_id == open_room else erin if room_id == more[5] else alice
        await _fill(world, room_id, owner)
    upgraded = await create_room(alice, **PUBLIC)
    answer = await alice.ok("POST", f"/v3/rooms/{quote(upgraded)}/upgrade", {"new_version": "11"})
    world.rooms.extend([*more, upgraded, answer["replacement_room"], "!unknown:hearth.test", "!foreign:elsewhere.test"])


async def _fill(world: World, room_id: str, *users: Client) -> None:
    """Messages, a reaction, a thread, a redaction, state."""
    first = await send(users[0], room_id, "hello")
    relation = {"rel_type": "m.thread", "event_id": first}
    events = [first, await send(users[-1], room_id, "in a thread", **{"m.relates_to": relation})]
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "👍"}}
    events.append(await send_event(users[-1], room_id, "m.reaction", reaction))
    events.append(await put_state(users[0], room_id, "m.room.topic", {"topic": "A topic"}))
    gone = await send(users[0], room_id, "not for long")
    redacted = await users[0].ok("PUT", f"/v3/rooms/{quote(room_id)}/redact/{quote(gone)}/{unique('t')}", {})
    for event_id in (*events, gone, redacted["event_id"]):
        world.add_event(room_id, event_id)
    for user in users:
        await user.ok("POST", f"/v3/rooms/{quote(room_id)}/receipt/m.read/{quote(first)}", {})
        page = await user.ok("GET", f"/v3/rooms/{quote(room_id)}/messages?dir=b&limit=3")
        world.add("page_token", page["start"])
        world.add("page_token", page.get("end", page["start"]))


async def _make_user_data(world: World, alice: Client) -> None:
    user = f"/v3/user/{quote(alice.user_id)}"
    for wanted in FIXED["filter"]:
        answer = await alice.ok("POST", f"{user}/filter", orjson.loads(wanted))
        world.add("filter_id", answer["filter_id"])
    await alice.ok("PUT", f"{user}/account_data/org.example.custom", {"a": 1})
    await alice.ok("PUT", f"{user}/account_data/m.direct", {"@somebody:elsewhere.test": [world.rooms[0]]})
    await alice.ok("PUT", f"{user}/rooms/{quote(world.rooms[0])}/tags/u.work", {"order": 0.5})
    await alice.ok("PUT", "/v3/pushrules/global/content/mine", {"pattern": "alice", "actions": ["notify"]})
    login_token = await alice.ok("POST", "/v1/login/get_token", {"auth": alice.password_auth()})
    world.add("login_token", login_token["login_token"])
    for since in ("", "&since="):
        tokens = world.values["sync_token"]
        answer = await alice.ok("GET", f"/v3/sync?timeout=0{since}{tokens[-1] if since else ''}")
        world.add("sync_token", answer["next_batch"])

"""Events, keys and small rooms for the tests of `federation.protocol`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from federation.protocol import event_builder, event_hashes, signatures
from federation.protocol.auth_events import auth_keys_for
from federation.protocol.event_builder import Placement
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersionRules, get_rules
from federation.protocol.signatures import SigningKey, VerifyKey
from federation.protocol.types import EventID, JsonObject, KeyID, RoomID, ServerName, StateKey, UserID

VERSIONS = tuple(ROOM_VERSIONS)
HOME = ServerName("example.org")
OTHER = ServerName("other.example")
ALICE = UserID("@alice:example.org")
BOB = UserID("@bob:example.org")
EVE = UserID("@eve:other.example")
NOW = 1_700_000_000_000

HOME_KEY = SigningKey.from_seed("home", b"h" * 32)
OTHER_KEY = SigningKey.from_seed("other", b"o" * 32)
KEYS: dict[ServerName, SigningKey] = {HOME: HOME_KEY, OTHER: OTHER_KEY}
KEY_RING: dict[tuple[ServerName, KeyID], VerifyKey] = {
    (name, key.key_id): VerifyKey(public_key=key.public_key, valid_until_ts=NOW + 10**9) for name, key in KEYS.items()
}


def server_of(user_id: str) -> ServerName:
    return ServerName(user_id.partition(":")[2])


def a_room_id(rules: RoomVersionRules) -> RoomID:
    """A room ID as this version has them."""
    return RoomID("!" + "r" * 43 if rules.room_id_is_create_hash else "!room:example.org")


def an_event_id(rules: RoomVersionRules, name: str = "e") -> EventID:
    """An event ID as this version has them, of an event that is nowhere."""
    if rules.event_id_format == "server":
        return EventID(f"${name}:example.org")
    return EventID("$" + name.ljust(43, "x"))


def a_signed_event(
    version: str = "11",
    *,
    type: str = "m.room.message",
    sender: UserID = ALICE,
    content: JsonObject | None = None,
    state_key: str | None = None,
    prev_events: Sequence[EventID] | None = None,
    auth_events: Sequence[EventID] = (),
    depth: int = 7,
    origin_server_ts: int = NOW,
    room_id: RoomID | None = None,
    redacts: EventID | None = None,
    event_id_localpart: str = "made",
    hashes: Mapping[EventID, str] | None = None,
) -> VerifiedPDU:
    """One event, signed by its sender's server, in a room that need not exist."""
    rules = get_rules(version)
    is_v12_create = rules.room_id_is_create_hash and type == "m.room.create"
    prev = [an_event_id(rules, "prev")] if prev_events is None else list(prev_events)
    return event_builder.build(
        Draft(
            room_id=RoomID("") if is_v12_create else room_id or a_room_id(rules),
            type=type,
            sender=sender,
            content={"body": "hello", "msgtype": "m.text"} if content is None else content,
            state_key=state_key,
            redacts=redacts,
        ),
        rules,
        Placement(
            prev_events=prev,
            auth_events=list(auth_events),
            depth=depth,
            origin_server_ts=origin_server_ts,
            hashes=hashes or {event_id: "h" * 43 for event_id in [*prev, *auth_events]},
        ),
        server_name=server_of(sender),
        signing_key=KEYS[server_of(sender)],
        event_id_localpart=event_id_localpart,
    )


def resigned(
    json: JsonObject, rules: RoomVersionRules, server_name: ServerName = HOME, **changes: object
) -> JsonObject:
    """The event's JSON with some members changed (None removes one), hashed and signed anew as a hostile server may."""
    changed = {key: value for key, value in {**json, **changes}.items() if value is not None}
    changed["hashes"] = {"sha256": event_hashes.content_hash(changed)}
    changed["signatures"] = {}
    return signatures.sign_event(changed, rules, server_name, KEYS[server_name])


@dataclass
class Room:
    """A room that grows event by event, in a line; `state` is its current state."""

    rules: RoomVersionRules
    room_id: RoomID | None = None
    events: list[VerifiedPDU] = field(default_factory=list)
    state: dict[StateKey, VerifiedPDU] = field(default_factory=dict)

    def add(
        self,
        type: str,
        sender: UserID,
        content: JsonObject,
        state_key: str | None = None,
        *,
        prev_events: Sequence[VerifiedPDU] | None = None,
        auth_events: Sequence[VerifiedPDU] | None = None,
        origin_server_ts: int | None = None,
    ) -> VerifiedPDU:
        """Send an event, authorised or not, after the last one, and keep it."""
        prev = self.events[-1:] if prev_events is None else prev_events
        auth = self._auth_events(sender, type, state_key, content) if auth_events is None else auth_events
        event = a_signed_event(
            self.rules.version,
            type=type,
            sender=sender,
            content=content,
            state_key=state_key,
            room_id=self.room_id,
            prev_events=[pdu.event_id for pdu in prev],
            auth_events=[pdu.event_id for pdu in auth],
            depth=1 + max((pdu.depth for pdu in prev), default=0),
            origin_server_ts=NOW + len(self.events) if origin_server_ts is None else origin_server_ts,
            event_id_localpart=f"event{len(self.events)}",
            hashes={
                pdu.event_id: event_hashes.reference_hash(redact(pdu.json, self.rules), self.rules)
                for pdu in [*prev, *auth]
            },
        )
        self.room_id = event.room_id
        self.events.append(event)
        if state_key is not None:
            self.state[(type, state_key)] = event
        return event

    def _auth_events(
        self, sender: UserID, event_type: str, state_key: str | None, content: JsonObject
    ) -> list[VerifiedPDU]:
        keys = auth_keys_for(event_type, sender, state_key, content, self.rules)
        return [self.state[key] for key in keys if key in self.state]


def a_room(version: str = "11", *, creator: UserID = ALICE, join_rule: str = "public") -> Room:
    """A room with the events of its creation: create, the creator's join, power levels, join rules."""
    rules = get_rules(version)
    room = Room(rules)
    create: JsonObject = {"room_version": version}
    if not rules.implicit_creator:
        create["creator"] = creator
    room.add("m.room.create", creator, create, "")
    room.add("m.room.member", creator, {"membership": "join"}, creator)
    users = {} if rules.creators_have_infinite_power else {creator: 100}
    room.add("m.room.power_levels", creator, {"users": users}, "")
    room.add("m.room.join_rules", creator, {"join_rule": join_rule}, "")
    return room

"""What can be wrong with an event that another server makes: one `Fault` a row, for whatever way it arrives.

A fault gets an event that is right and not signed yet, and answers what goes over the wire. The forger signs with an
encoder of its own, so that what we would never sign is signed as a server without scruples would.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from federation.protocol.event_hashes import encode_base64
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject

MISSING = "x"
"""What IDs of events begin with that nobody has."""


_numbers = itertools.count(1)


class Fate(Enum):
    """What the specification does with such an event where it comes among others."""

    DROPPED = "dropped"
    """It is nowhere; what the room lacks because of that may be asked for later."""
    REDACTED = "redacted"
    """What redaction leaves of it is kept, as it is all that is proven."""
    REJECTED = "rejected"
    """It may be kept as rejected, and is neither shown nor state."""
    ANYTHING = "anything"
    """It may be right."""


@dataclass(frozen=True, slots=True)
class Forger:
    """Signs whatever it is given, in the name of one server."""

    name: str
    key: SigningKey
    rules: RoomVersionRules
    honest_user: str
    our_user: str
    other_room: str

    def seal(self, event: JsonObject, **by: Any) -> JsonObject:
        """The event with its hash and a signature."""
        event = {key: value for key, value in event.items() if key not in ("signatures", "hashes")}
        return self.sign({**event, "hashes": {"sha256": encode_base64(_digest(event, "unsigned"))}}, **by)

    def sign(
        self, event: JsonObject, *, name: str | None = None, key: SigningKey | None = None, key_id: str | None = None
    ) -> JsonObject:
        """The event with a signature, whatever its hash says."""
        key = key or self.key
        signature = key.sign(canonical(_without(self._redacted(event), "signatures", "unsigned")))
        return {**event, "signatures": {name or self.name: {key_id or key.key_id: signature}}}

    def id_of(self, event: JsonObject) -> str:
        """The ID by which the room would know the event."""
        if self.rules.event_id_format == "server":
            return str(event.get("event_id"))
        digest = _digest(self._redacted(event), "signatures", "unsigned")
        is_urlsafe = self.rules.event_id_format == "urlsafe_base64"
        return "$" + (base64.urlsafe_b64encode(digest).rstrip(b"=").decode() if is_urlsafe else encode_base64(digest))

    def reference(self, event_id: str) -> Any:
        """As events of the room's version refer to another."""
        return [event_id, {"sha256": "h" * 43}] if self.rules.references_carry_hashes else event_id

    def missing(self) -> str:
        """The ID of an event that nobody has, another one each time."""
        name = f"{MISSING}{next(_numbers)}".ljust(43, "x")
        return f"${name}:{self.name}" if self.rules.event_id_format == "server" else f"${name}"

    def _redacted(self, event: JsonObject) -> JsonObject:
        try:
            return redact(event, self.rules)
        except (TypeError, AttributeError):  # it is too strange for that
            return event


def canonical(value: object) -> bytes:
    """Canonical JSON, but of anything: floats, NaN and numbers of any size included."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8", "surrogatepass")


def _without(event: JsonObject, *names: str) -> JsonObject:
    return {key: value for key, value in event.items() if key not in names}


def _digest(event: JsonObject, *names: str) -> bytes:
    return hashlib.sha256(canonical(_without(event, *names))).digest()


Spoil = Callable[[Forger, JsonObject], Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    name: str
    spoil: Spoil
    """From a right, unsigned event to what is sent: JSON, or bytes that need not be."""
    fate: Fate = Fate.DROPPED
    spoils_body: bool = False
    """Whatever it stands in is no JSON any more."""
    only: Callable[[RoomVersionRules], bool] = lambda _rules: True
    """The room versions in which this is a fault."""
    of_place: bool = False
    """It concerns the event's place in the graph, which events of a state that is fetched do not need."""
    is_no_object: bool = False
    """Where an answer is taken apart while it arrives, it ends that."""
    needs_room: bool = False
    """Only who knows the room can tell."""


def set_(**changes: Any) -> Spoil:
    """The event signed with these members changed; None takes one away."""

    def spoil(forger: Forger, event: JsonObject) -> Any:
        return forger.seal({key: value for key, value in {**event, **changes}.items() if value is not None})

    return spoil


def content(**changes: Any) -> Spoil:
    """The event signed with this in its content."""
    return lambda forger, event: forger.seal({**event, "content": {**event["content"], **changes}})


def raw(text: bytes) -> Spoil:
    """The event with these bytes for a value in its content."""

    def spoil(forger: Forger, event: JsonObject) -> bytes:
        sealed = forger.seal({**event, "content": {**event["content"], "n": "@raw@"}})
        return canonical(sealed).replace(b'"@raw@"', text)

    return spoil


def after(**changes: Any) -> Spoil:
    """The event changed once it was signed."""
    return lambda forger, event: {**forger.seal(event), **changes}


def references(key: str, make: Callable[[Forger, JsonObject], list[Any]]) -> Spoil:
    """The event signed with these references."""
    return lambda forger, event: forger.seal({**event, key: make(forger, event)})


def _wrong_signature(forger: Forger, event: JsonObject) -> Any:
    return {**forger.seal(event), "signatures": {forger.name: {forger.key.key_id: "x" * 86}}}


def _another_key(forger: Forger, event: JsonObject) -> Any:
    return forger.seal(event, key=SigningKey.from_seed(forger.key.version, b"another" + bytes(25)))


def _unknown_key(forger: Forger, event: JsonObject) -> Any:
    return forger.seal(event, key=SigningKey.from_seed("nowhere", b"nowhere" + bytes(25)))


def _signatures(make: Callable[[Forger], Any]) -> Spoil:
    return lambda forger, event: {**forger.seal(event), "signatures": make(forger)}


def _wrong_hash(forger: Forger, event: JsonObject) -> Any:
    return forger.sign({**event, "hashes": {"sha256": encode_base64(bytes(32))}})


def _changed_afterwards(forger: Forger, event: JsonObject) -> Any:
    return {**forger.seal(event), "content": {**event["content"], "body": "changed", "displayname": "Mallory"}}


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _own_id(forger: Forger, event: JsonObject) -> list[Any]:
    return [forger.reference(event["event_id"])]


def _strict(rules: RoomVersionRules) -> bool:
    return rules.strict_canonical_json


def _names_itself(rules: RoomVersionRules) -> bool:
    return rules.event_id_format == "server"


def _is_hashed(rules: RoomVersionRules) -> bool:
    return rules.event_id_format != "server"


SIGNATURES = [
    Fault("a signature that does not hold", _wrong_signature),
    Fault("a signature by another key", _another_key),
    Fault("a signature by a key that nobody has", _unknown_key),
    Fault("no signature", _signatures(lambda _forger: {})),
    Fault("no signatures at all", lambda forger, event: _without(forger.seal(event), "signatures")),
    Fault("a signature of another server alone", lambda forger, event: forger.seal(event, name="elsewhere.test")),
    Fault("signatures as an array", _signatures(lambda _forger: [])),
    Fault("a signature that is a number", _signatures(lambda forger: {forger.name: {forger.key.key_id: 5}})),
    Fault("a signature that is no base64", _signatures(lambda forger: {forger.name: {forger.key.key_id: "\0=!"}})),
    Fault(
        "four hundred signatures",
        _signatures(lambda forger: {forger.name: {f"ed25519:k{number}": "x" * 86 for number in range(400)}}),
    ),
    Fault("another server's user", lambda forger, event: forger.seal(_by(event, forger.honest_user))),
    Fault("a user of ours", lambda forger, event: forger.seal(_by(event, forger.our_user))),
    Fault(
        "a user of ours, said to be signed by us",
        lambda forger, event: forger.seal(_by(event, forger.our_user), name=forger.our_user.partition(":")[2]),
    ),
]


def _by(event: JsonObject, user_id: str) -> JsonObject:
    """The event as another user's; who is their own state key stays that."""
    state_key = {"state_key": user_id} if event.get("state_key") == event["sender"] else {}
    return {**event, "sender": user_id, **state_key}


HASHES = [
    Fault("a wrong hash", _wrong_hash, Fate.REDACTED),
    Fault("content that was changed afterwards", _changed_afterwards, Fate.REDACTED),
    Fault("no hash", after(hashes={})),
    Fault("a hash that is a number", after(hashes={"sha256": 5})),
    Fault("hashes as text", after(hashes="x")),
]

SIZES = [
    Fault("more than 65,536 bytes", content(long="x" * 65_536)),
    Fault("a type of 256 bytes", set_(type="t" * 256)),
    Fault("a state key of 256 bytes", set_(state_key="k" * 256)),
    Fault("a sender of 300 bytes", lambda forger, event: forger.seal(_by(event, f"@{'e' * 300}:{forger.name}"))),
    Fault("a room ID of 300 bytes", set_(room_id="!" + "r" * 300 + ":x")),
    Fault("an event ID of 300 bytes", set_(event_id="$" + "e" * 300 + ":x"), only=_names_itself),
    Fault("an array of 40,000", content(many=[0] * 40_000)),
]

NUMBERS = [
    Fault("a float", content(n=1.5), only=_strict),
    Fault("a float that is whole", content(n=1.0), only=_strict),
    Fault("an integer of 2^53", content(n=2**53), only=_strict),
    Fault("an integer of -2^53", content(n=[{"n": -(2**53)}]), only=_strict),
    Fault("an integer of 300 digits", content(n=10**300), only=_strict),
    Fault("NaN", content(n=float("nan")), spoils_body=True),
    Fault("Infinity", content(n=float("-inf")), spoils_body=True),
    Fault("1e999", raw(b"1e999"), only=_strict, spoils_body=True),
    Fault("a number with a leading zero", raw(b"01"), spoils_body=True),
    Fault("a depth of -1", set_(depth=-1)),
    Fault("a depth of 2^63", set_(depth=2**63)),
    Fault("a depth of 2^53", set_(depth=2**53), only=_strict),
    Fault("a depth of 1.5", set_(depth=1.5)),
    Fault("a depth that is text", set_(depth="7")),
    Fault("a depth that is true", set_(depth=True)),
    Fault("no depth", set_(depth=None)),
    Fault("a time that is text", set_(origin_server_ts="7")),
    Fault("a time of 2^63", set_(origin_server_ts=2**63)),
    Fault("no time", set_(origin_server_ts=None)),
]

ROOMS = [
    Fault("another room", lambda forger, event: forger.seal({**event, "room_id": forger.other_room}), Fate.REJECTED),
    Fault("a room that is nowhere", set_(room_id="!nowhere:elsewhere.test")),
    Fault("no room", set_(room_id=None)),
    Fault("a room that is a number", set_(room_id=5)),
    Fault("a room that is an array", set_(room_id=["!a:b"])),
]

SHAPES = [
    Fault("a content that is an array", set_(content=[])),
    Fault("a content that is text", set_(content="x")),
    Fault("no content", set_(content=None)),
    Fault("a type that is a number", set_(type=5)),
    Fault("no type", set_(type=None)),
    Fault("no sender", set_(sender=None)),
    Fault("a sender that is no user ID", set_(sender="eve")),
    Fault("a sender that is an object", set_(sender={"a": 1})),
    Fault("a state key that is a number", set_(state_key=5)),
    Fault("NUL in the type", set_(type="t\0")),
    Fault("NUL in the state key", set_(state_key="k\0")),
    Fault("a membership that is a number", set_(type="m.room.member", state_key="@a:b", content={"membership": 5})),
    Fault("a member that is no user", set_(type="m.room.member", state_key="x", content={"membership": "join"})),
    Fault("no event ID", set_(event_id=None), only=_names_itself),
    Fault("an event ID that is a number", set_(event_id=5), only=_names_itself),
    Fault(
        "references as version 1 has them",
        references("prev_events", lambda _forger, event: [[each, {"sha256": "x"}] for each in event["prev_events"]]),
        only=_is_hashed,
    ),
    Fault(
        "references as version 3 has them",
        references("prev_events", lambda _forger, event: [each[0] for each in event["prev_events"]]),
        only=_names_itself,
    ),
    Fault("previous events as an object", set_(prev_events={})),
    Fault("previous events that are numbers", set_(prev_events=[1, 2])),
    Fault("no list of previous events", set_(prev_events=None)),
    Fault("auth events as text", set_(auth_events="$x")),
    Fault("no list of auth events", set_(auth_events=None)),
    Fault("what is an array", lambda _forger, _event: [], is_no_object=True),
    Fault("what is null", lambda _forger, _event: None, is_no_object=True),
    Fault("what is text", lambda _forger, _event: "x" * 1000, is_no_object=True),
    Fault("an empty object", lambda _forger, _event: {}),
]

REFERENCES = [
    Fault("21 previous events", references("prev_events", lambda f, _e: [f.reference(f.missing()) for _ in range(21)])),
    Fault("500 auth events", references("auth_events", lambda f, _e: [f.reference(f.missing()) for _ in range(500)])),
    Fault("an auth event twice", references("auth_events", lambda _f, event: event["auth_events"] * 2)),
    Fault("no auth events", set_(auth_events=[]), Fate.REJECTED, needs_room=True),
    Fault("no previous events", set_(prev_events=[]), Fate.REJECTED, of_place=True, needs_room=True),
    Fault(
        "previous events that never come",
        references("prev_events", lambda f, _e: [f.reference(f.missing()) for _ in range(20)]),
        of_place=True,
        needs_room=True,
    ),
    Fault(
        "auth events that never come",
        references("auth_events", lambda f, event: [*event["auth_events"][:2], f.reference(f.missing())]),
        needs_room=True,
    ),
    Fault(
        "itself before itself",
        references("prev_events", _own_id),
        only=_names_itself,
        of_place=True,
        needs_room=True,
    ),
    Fault(
        "itself as what allows it",
        references("auth_events", _own_id),
        Fate.REJECTED,
        only=_names_itself,
        needs_room=True,
    ),
]

RIGHTS = [
    Fault("a power that the sender lacks", set_(type="m.room.name", state_key=""), Fate.REJECTED),
    Fault("another creation", set_(type="m.room.create", state_key=""), Fate.REJECTED),
    Fault(
        "power levels of its own",
        set_(type="m.room.power_levels", state_key="", content={"users_default": 100}),
        Fate.REJECTED,
    ),
    Fault(
        "a ban of who has more power",
        lambda forger, event: forger.seal(
            {**event, "type": "m.room.member", "state_key": forger.our_user, "content": {"membership": "ban"}}
        ),
        Fate.REJECTED,
    ),
    Fault(
        "a user who is not in the room",
        lambda forger, event: forger.seal(_by(event, f"@stranger:{forger.name}")),
        Fate.REJECTED,
        needs_room=True,
    ),
    Fault("somebody else's state", set_(state_key="@somebody:else.test"), Fate.REJECTED),
]

TEXTS = [
    Fault("101 arrays in each other", content(deep=_nested(101))),
    Fault("200,000 arrays in each other", raw(b"[" * 200_000 + b"]" * 200_000), spoils_body=True),
    Fault("200,000 brackets that open", raw(b"[" * 200_000), spoils_body=True),
    Fault("a key twice", raw(b'1,"n":2'), spoils_body=True),
    Fault("a key twice, written in two ways", raw(b'1,"\\u006e":2'), spoils_body=True),
    Fault("half a surrogate pair", raw(b'"\\ud800"'), spoils_body=True),
    Fault("bytes that are no UTF-8", raw(b'"\xff\xfe"'), spoils_body=True),
    Fault("a comma too many", raw(b"1,"), spoils_body=True),
    Fault("an event that breaks off", raw(b'"'), spoils_body=True),
]

NONE = Fault("nothing", lambda forger, event: forger.seal(event))
"""What is tried beside the faults, to see that without one it would get in."""

FAULTS = [*SIGNATURES, *HASHES, *SIZES, *NUMBERS, *ROOMS, *SHAPES, *REFERENCES, *RIGHTS, *TEXTS]


def faults_of(rules: RoomVersionRules) -> list[Fault]:
    """The faults that there are in a room version."""
    return [fault for fault in FAULTS if fault.only(rules)]

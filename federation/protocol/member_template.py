"""What another server's template of our user's member event is good for (`/make_join`, `/make_leave`, `/make_knock`).

We sign only what we built: from the template come the event's place in the graph and, for a restricted room, who
vouches for the user; each is checked, and nothing else is copied.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from federation.protocol import event_builder, event_format
from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.event_builder import Placement
from federation.protocol.identifiers import is_event_id_of, is_user_id, server_name_of
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, UserID

_HASH_LENGTH = 43


class IncompatibleRoomVersion(MatrixError):
    """The room has a version that we do not know: M_INCOMPATIBLE_ROOM_VERSION."""

    def __init__(self, version: object) -> None:
        super().__init__(
            "M_INCOMPATIBLE_ROOM_VERSION", "The room's version is not supported here", 400, {"room_version": version}
        )


class Wish(Struct, frozen=True, kw_only=True):
    """The membership that one of our users wants in a room that we are not in."""

    room_id: RoomID
    user_id: UserID
    membership: str
    content: JsonObject
    """All that the event's content is to hold, `membership` included."""


class MemberTemplate(Struct, frozen=True, kw_only=True):
    """The place that another server offers for the event."""

    wish: Wish
    rules: RoomVersionRules
    prev_events: tuple[EventID, ...]
    auth_events: tuple[EventID, ...]
    depth: int
    hashes: Mapping[EventID, str]
    authoriser: UserID | None
    """For a restricted room: the user of a resident server who vouches for ours."""

    def build(
        self, *, server_name: ServerName, signing_key: SigningKey, now_ts: int, event_id_localpart: str
    ) -> VerifiedPDU:
        """Our user's event, signed by us."""
        content = self.wish.content
        if self.authoriser is not None:
            content = {**content, "join_authorised_via_users_server": self.authoriser}
        draft = Draft(
            room_id=self.wish.room_id,
            type="m.room.member",
            sender=self.wish.user_id,
            content=content,
            state_key=self.wish.user_id,
            names_origin=True,
        )
        placement = Placement(
            prev_events=self.prev_events,
            auth_events=self.auth_events,
            depth=self.depth,
            origin_server_ts=now_ts,
            hashes=self.hashes,
        )
        return event_builder.build(
            draft,
            self.rules,
            placement,
            server_name=server_name,
            signing_key=signing_key,
            event_id_localpart=event_id_localpart if self.rules.event_id_format == "server" else "",
        )


def read(answer: JsonObject, wish: Wish) -> MemberTemplate:
    """The template in this answer; raises IncompatibleRoomVersion, and InvalidInput for what does not fit the wish."""
    version = answer.get("room_version", "1")
    if not isinstance(version, str) or version not in ROOM_VERSIONS:
        raise IncompatibleRoomVersion(version)
    rules = ROOM_VERSIONS[version]
    event = answer.get("event")
    if not isinstance(event, dict):
        raise InvalidInput("The template is not an object", "M_BAD_JSON")
    expected = {
        "type": "m.room.member",
        "room_id": wish.room_id,
        "sender": wish.user_id,
        "state_key": wish.user_id,
    }
    for key, value in expected.items():
        if event.get(key) != value:
            raise InvalidInput(f"The template has another {key} than was asked for", "M_BAD_JSON")
    content = event.get("content")
    if not isinstance(content, dict) or content.get("membership") != wish.membership:
        raise InvalidInput("The template has another membership than was asked for", "M_BAD_JSON")
    hashes: dict[EventID, str] = {}
    return MemberTemplate(
        wish=wish,
        rules=rules,
        prev_events=_references(event, "prev_events", event_format.MAX_PREV_EVENTS, rules, hashes),
        auth_events=_references(event, "auth_events", event_format.MAX_AUTH_EVENTS, rules, hashes),
        depth=_depth(event, rules),
        hashes=hashes,
        authoriser=_authoriser(content, wish, rules),
    )


def _depth(event: JsonObject, rules: RoomVersionRules) -> int:
    depth = event.get("depth")
    if type(depth) is not int or not 0 <= depth <= event_format.max_depth(rules):
        raise InvalidInput("The template's depth is not one", "M_BAD_JSON")
    return depth


def _authoriser(content: Mapping[str, Any], wish: Wish, rules: RoomVersionRules) -> UserID | None:
    authoriser = content.get("join_authorised_via_users_server")
    if authoriser is None or wish.membership != "join" or not rules.restricted_joins:
        return None
    if not is_user_id(authoriser):
        raise InvalidInput("The template's join_authorised_via_users_server is not a user ID", "M_BAD_JSON")
    if server_name_of(authoriser) == server_name_of(wish.user_id):
        # Our signature on the join would be that user's word, which nobody asked for.
        raise InvalidInput("The template has a user of ours vouch for another", "M_BAD_JSON")
    return authoriser


def _references(
    event: JsonObject, key: str, most: int, rules: RoomVersionRules, hashes: dict[EventID, str]
) -> tuple[EventID, ...]:
    """The events that the template refers to; their hashes, where references carry them, go into `hashes`."""
    references = event.get(key)
    if type(references) is not list or not 1 <= len(references) <= most:
        raise InvalidInput(f"The template's {key} must be an array of 1 to {most}", "M_BAD_JSON")
    found: list[EventID] = []
    for reference in references:
        event_id, digest = reference, None
        if rules.references_carry_hashes:
            event_id, digest = _pair(reference, key)
        if not is_event_id_of(event_id, rules):
            raise InvalidInput(f"The template's {key} has what is no event ID", "M_BAD_JSON")
        found.append(event_id)
        if digest is not None:
            hashes[event_id] = digest
    if len(set(found)) != len(found):
        raise InvalidInput(f"The template's {key} has an event twice", "M_BAD_JSON")
    return tuple(found)


def _pair(reference: object, key: str) -> tuple[object, str | None]:
    """The event ID and its hash, of which nobody makes use: Synapse leaves it out."""
    if type(reference) is list and len(reference) == 2 and type(reference[1]) is dict:
        digest = reference[1].get("sha256")
        if digest is None or (type(digest) is str and len(digest) == _HASH_LENGTH):
            return reference[0], digest
    raise InvalidInput(f"In this room version {key} holds pairs of an event ID and its hash", "M_BAD_JSON")

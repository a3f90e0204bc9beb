"""Building events of our users on a room's head: without a query, so that nothing comes between."""

import secrets
import time
from collections.abc import Sequence

from msgspec.structs import replace

from federation.protocol import auth_rules, event_builder
from federation.protocol.auth_events import CREATE, auth_keys_for
from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.event_format import MAX_PREV_EVENTS
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.policy_server import POLICY
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName, StateKey
from federation.rooms.heads import RoomHead, described
from storage.rooms import Room


class Builder:
    """Makes events, authorised and signed."""

    def __init__(self, server_name: ServerName, signing_key: SigningKey) -> None:
        self._server_name = server_name
        self._signing_key = signing_key

    def build_create(self, rules: RoomVersionRules, draft: Draft, room_id: RoomID | None, now_ts: int) -> VerifiedPDU:
        """A room's first event; its ID is None where the event's hash makes it."""
        placement = event_builder.Placement(prev_events=(), auth_events=(), depth=1, origin_server_ts=now_ts)
        draft = replace(draft, room_id=room_id or RoomID(""))
        create = event_builder.build(
            draft,
            rules,
            placement,
            server_name=self._server_name,
            signing_key=self._signing_key,
            event_id_localpart=secrets.token_urlsafe(12),
        )
        auth_rules.check(create, {})
        return create

    def build_all(self, head: RoomHead, drafts: Sequence[Draft]) -> list[VerifiedPDU]:
        """The events, each authorised by the state that those before it leave."""
        if len(drafts) == 1:
            return [self.authorised(head, drafts[0])]
        ahead = RoomHead(head.room, head.version, dict(head.extremities), dict(head.state), head.joined)
        built = []
        for draft in drafts:
            pdu = self.authorised(ahead, draft)
            ahead.advance(pdu)
            built.append(pdu)
        return built

    def authorised(self, head: RoomHead, draft: Draft) -> VerifiedPDU:
        """The draft as an event at the room's end; raises AuthRuleViolated."""
        rules = head.room.rules
        if server_name_of(draft.sender) != self._server_name:
            raise Forbidden("Only our own users' events are made here")
        state, placement = _placement(head, draft)
        pdu = event_builder.build(
            draft,
            rules,
            placement,
            server_name=self._server_name,
            signing_key=self._signing_key,
            event_id_localpart=secrets.token_urlsafe(12) if rules.event_id_format == "server" else "",
        )
        auth_rules.check(pdu, state)
        return pdu


def keys_of(room: Room, drafts: Sequence[Draft]) -> list[StateKey]:
    """The entries of the state that decide on events, or that they replace."""
    keys: dict[StateKey, None] = {}
    for draft in drafts:
        keys.update(dict.fromkeys(auth_keys_for(draft.type, draft.sender, draft.state_key, draft.content, room.rules)))
        if draft.state_key is not None:
            keys[draft.type, draft.state_key] = None
    keys[CREATE] = keys[POLICY] = None
    return list(keys)


def template(head: RoomHead, draft: Draft) -> JsonObject:
    """As `RoomWriter.template` says."""
    state, placement = _placement(head, draft)
    pdu = event_builder.template(draft, head.room.rules, placement)
    authoriser = draft.content.get("join_authorised_via_users_server")
    signatures = {server_name_of(authoriser): {"": ""}} if is_user_id(authoriser) else {}
    auth_rules.check(replace(pdu, json={**pdu.json, "signatures": signatures}), state)
    return pdu.json


def _placement(head: RoomHead, draft: Draft) -> tuple[dict[StateKey, VerifiedPDU], event_builder.Placement]:
    """Where a draft would stand at the room's end, and the state that decides on it."""
    rules = head.room.rules
    keys = auth_keys_for(draft.type, draft.sender, draft.state_key, draft.content, rules)
    state = {key: pdu for key in keys if (pdu := head.state.get(key)) is not None}
    create = head.state.get(CREATE)
    if create is None:
        raise NotFound("There is no such room")
    prev_events = newest(head.extremities)
    hashes: dict[EventID, str] = {}
    if rules.references_carry_hashes:
        hashes = {event_id: head.extremities[event_id][1] for event_id in prev_events}
        hashes |= {pdu.event_id: described(pdu)[1] for pdu in state.values()}
    placement = event_builder.Placement(
        prev_events=prev_events,
        auth_events=[pdu.event_id for pdu in state.values()],
        depth=1 + max((depth for depth, _ in head.extremities.values()), default=0),
        origin_server_ts=_now_ms(),
        hashes=hashes,
    )
    state[CREATE] = create
    return state, placement


def newest(extremities: dict[EventID, tuple[int, str]]) -> list[EventID]:
    """What the next event refers to: all extremities, or the deepest where there are too many."""
    if len(extremities) <= MAX_PREV_EVENTS:
        return list(extremities)
    deepest = sorted(extremities, key=lambda event_id: -extremities[event_id][0])
    return deepest[:MAX_PREV_EVENTS]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

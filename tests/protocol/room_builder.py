"""A room as its rules see it: state and events made by hand, without signatures, for tests of the rules."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.auth_rules import check
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU
from federation.protocol.room_versions import get_rules
from federation.protocol.types import EventID, RoomID, StateKey, UserID

ALICE, BOB, CAROL, EVE = (UserID(f"@{name}:{name}.example") for name in ("alice", "bob", "carol", "eve"))
ALL_VERSIONS = tuple(str(number) for number in range(1, 13))


class ARoom:
    """A room that Alice created and joined; what is added is not authorised, only made."""

    def __init__(self, version: str, *, creator: UserID = ALICE, create: Mapping[str, Any] | None = None) -> None:
        self.rules = get_rules(version)
        self.events: dict[EventID, PDU] = {}
        self.state: dict[StateKey, PDU] = {}
        self.room_id = RoomID("!create" if self.rules.room_id_is_create_hash else "!room:alice.example")
        content: dict[str, Any] = {"room_version": version}
        if not self.rules.implicit_creator:
            content["creator"] = creator
        self.create = self.add("m.room.create", creator, {**content, **(create or {})}, event_id="$create")
        self.member(creator, "join")

    def event(
        self,
        event_type: str,
        sender: str,
        content: Mapping[str, Any] | None = None,
        *,
        state_key: str | None = None,
        event_id: str | None = None,
        prev: Sequence[str] | None = None,
        auth: Sequence[str] | None = None,
        ts: int | None = None,
        depth: int | None = None,
        redacts: str | None = None,
        json: Mapping[str, Any] | None = None,
    ) -> PDU:
        """An event on top of the state, citing what authorises it there; it is not in the room yet."""
        content = dict(content or {})
        number = len(self.events)
        keys = auth_keys_for(event_type, sender, state_key, content, self.rules)
        cited = [self.state[key].event_id for key in keys if key in self.state] if auth is None else auth
        last = [] if event_type == "m.room.create" else [next(reversed(self.events), "$create")]
        return PDU(
            event_id=EventID(event_id or f"$event{number}"),
            room_id=self.room_id,
            type=event_type,
            sender=UserID(sender),
            state_key=state_key,
            content=content,
            prev_event_ids=tuple(EventID(each) for each in (last if prev is None else prev)),
            auth_event_ids=tuple(EventID(each) for each in cited),
            depth=number if depth is None else depth,
            origin_server_ts=number if ts is None else ts,
            redacts=None if redacts is None else EventID(redacts),
            rules=self.rules,
            json=dict(json or {}),
        )

    def apply(self, pdu: PDU) -> PDU:
        """Add an event to the room, and to its state if it is state."""
        self.events[pdu.event_id] = pdu
        if pdu.state_key is not None:
            self.state[pdu.state_pair] = pdu
        return pdu

    def add(
        self,
        event_type: str,
        sender: str,
        content: Mapping[str, Any] | None = None,
        *,
        state_key: str = "",
        event_id: str | None = None,
        ts: int | None = None,
    ) -> PDU:
        """Make a state event and apply it."""
        return self.apply(self.event(event_type, sender, content, state_key=state_key, event_id=event_id, ts=ts))

    def member(self, target: str, membership: str, sender: str | None = None, **content: object) -> PDU:
        """Give a user a membership."""
        return self.add("m.room.member", sender or target, {"membership": membership, **content}, state_key=target)

    def power(self, sender: str = ALICE, **content: object) -> PDU:
        """Set the power levels."""
        return self.add("m.room.power_levels", sender, content)

    def join_rule(self, join_rule: str) -> PDU:
        """Set the join rule."""
        return self.add("m.room.join_rules", ALICE, {"join_rule": join_rule})

    def change(self, target: str, membership: str, sender: str | None = None, **content: object) -> PDU:
        """An event that would give a user a membership; not applied."""
        return self.event("m.room.member", sender or target, {"membership": membership, **content}, state_key=target)

    @property
    def state_ids(self) -> dict[StateKey, EventID]:
        """The state as event IDs."""
        return {key: pdu.event_id for key, pdu in self.state.items()}


def broken_rule(room: ARoom, pdu: PDU) -> str | None:
    """The number of the rule by which the room's state forbids an event, None if it allows it."""
    try:
        check(pdu, room.state)
    except AuthRuleViolated as violated:
        return violated.rule
    return None


def member_rule(version: str) -> int:
    """The number of the rule on `m.room.member`; the rules after it follow without gaps."""
    return 4 if 6 <= int(version) <= 11 else 5

"""Random rooms as several servers might write them: forks, merges, conflicts, evasions, in any order of arrival."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from federation.protocol import auth_rules
from federation.protocol.auth_events import auth_keys_for
from federation.protocol.errors import AuthRuleViolated
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.types import EventID, JsonObject, UserID
from tests.federation.room_model import RoomModel, State
from tests.protocol.builders import ALICE, BOB, EVE, NOW, Room, a_room

CAROL, DAVE = UserID("@carol:other.example"), UserID("@dave:other.example")
USERS = (ALICE, BOB, EVE, CAROL, DAVE)

Wish = tuple[str, str | None, JsonObject]
"""Type, state key, content."""


@dataclass
class RandomRoom:
    """A room that grows at random ends of its graph. `world` holds what an all-knowing server would make of it."""

    version: str
    random: random.Random
    room: Room = field(init=False)
    world: RoomModel = field(init=False)

    def __post_init__(self) -> None:
        self.room = a_room(self.version)
        self.world = RoomModel(self.room.rules)
        for pdu in self.room.events:
            self.world.receive(pdu)
        self.send([self.room.events[-1]], BOB, ("m.room.member", BOB, {"membership": "join"}))
        self.send([self.room.events[-1]], EVE, ("m.room.member", EVE, {"membership": "join"}))

    def grow(self, steps: int) -> None:
        """Take random steps."""
        for _ in range(steps):
            prev = self._choose_ends()
            sender, wish = self._choose_wish()
            for _attempt in range(4):  # usually until one is allowed
                if self._is_allowed(prev, sender, wish) or self.random.random() < 0.1:
                    break
                sender, wish = self._choose_wish()
            self.send(prev, sender, wish)

    def _choose_wish(self) -> tuple[UserID, Wish]:
        sender = self.random.choice(USERS)
        return sender, self._wish(sender)

    def _is_allowed(self, prev: Sequence[VerifiedPDU], sender: UserID, wish: Wish) -> bool:
        event_type, state_key, content = wish
        state = self.world.state_after([pdu.event_id for pdu in prev])
        draft = PDU(
            event_id=EventID("$draft"),
            room_id=self.room.events[0].room_id,
            type=event_type,
            sender=sender,
            state_key=state_key,
            content=content,
            prev_event_ids=tuple(pdu.event_id for pdu in prev),
            auth_event_ids=(),
            depth=1,
            origin_server_ts=NOW,
            redacts=None,
            rules=self.room.rules,
            json={},
        )
        try:
            auth_rules.check(draft, self.world.auth_state(draft, state))
        except AuthRuleViolated:
            return False
        return True

    def send(self, prev: Sequence[VerifiedPDU], sender: UserID, wish: Wish) -> VerifiedPDU:
        """An event after these, citing what authorises it there, or now and then something else."""
        event_type, state_key, content = wish
        state = self.world.state_after([pdu.event_id for pdu in prev])
        cited_state = state
        if self.random.random() < 0.05:
            cited_state = self.world.after[self.random.choice(list(self.world.pdus))]
        keys = auth_keys_for(event_type, sender, state_key, content, self.room.rules)
        auth = [self.world.pdus[cited_state[key]] for key in keys if key in cited_state]
        pdu = self.room.add(
            event_type,
            sender,
            content,
            state_key,
            prev_events=prev,
            auth_events=auth,
            origin_server_ts=NOW + self.random.randrange(200),
        )
        if pdu.event_id not in self.world.pdus:
            self.world.receive(pdu)
        return pdu

    def _choose_ends(self) -> list[VerifiedPDU]:
        """Usually the newest ends, at times older events or rejected ones."""
        pdus = self.world.pdus
        ends = [pdus[event_id] for event_id in sorted(self.world.extremities())]
        roll = self.random.random()
        if roll < 0.5:
            return self.random.sample(ends, self.random.randint(1, min(len(ends), 3)))
        if roll < 0.7:
            return ends[:10]
        recent = list(pdus.values())[5:][-8:]
        return self.random.sample(recent, min(len(recent), self.random.choice((1, 1, 2))))

    def _wish(self, sender: UserID) -> Wish:
        other = self.random.choice(USERS)
        number = self.random.randrange(1000)
        users: JsonObject = {} if self.room.rules.creators_have_infinite_power else {ALICE: 100}
        users |= {user: self.random.choice((0, 50, 75)) for user in (BOB, EVE)}
        wishes: list[tuple[int, Wish]] = [
            (6, ("m.room.message", None, {"body": f"{number}"})),
            (3, ("m.room.topic", "", {"topic": f"{number}"})),
            (1, ("m.room.name", "", {"name": f"{number}"})),
            (4, ("m.room.member", sender, {"membership": "join", "displayname": f"{number}"})),
            (1, ("m.room.member", sender, {"membership": "leave"})),
            (2, ("m.room.member", other, {"membership": self.random.choice(("ban", "leave", "invite"))})),
            (2, ("m.room.power_levels", "", {"users": users, "state_default": self.random.choice((0, 50))})),
            (1, ("m.room.join_rules", "", {"join_rule": self.random.choice(("public", "invite"))})),
            (
                1,
                (
                    "m.room.history_visibility",
                    "",
                    {"history_visibility": self.random.choice(("shared", "invited", "joined", "world_readable"))},
                ),
            ),
        ]
        weights = [weight for weight, _ in wishes]
        return self.random.choices([wish for _, wish in wishes], weights)[0]

    def arrivals(self) -> Iterator[VerifiedPDU]:
        """The events as they come in: roughly in order, some later than what refers to them."""
        delays = {
            pdu.event_id: index + (self.random.randrange(20) if index > 5 and self.random.random() < 0.3 else 0)
            for index, pdu in enumerate(self.world.pdus.values())
        }
        yield from sorted(self.world.pdus.values(), key=lambda pdu: (delays[pdu.event_id], pdu.depth))

    def state_before(self, pdu: VerifiedPDU) -> State:
        """What a server that knows the whole graph gives as the state before an event."""
        return self.world.before[pdu.event_id]

"""A room of the server under test as another server in it has it: it makes events there, honest ones and others.

remote = await joined_room(server, alice, peer)
event = remote.add("m.room.message", {"body": "hello"})
answer = await remote.push([event])
"""

import itertools
from collections.abc import Sequence
from typing import Any

from federation.protocol import event_hashes
from federation.protocol.auth_events import auth_keys_for
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersionRules, get_rules
from federation.protocol.types import EventID, JsonObject, StateKey, UserID
from tests.client import Client
from tests.federation.peer import Peer, now_ms, path_of
from tests.rooms import create_room

_transactions = itertools.count(1)


class RemoteRoom:
    """The room's events as the peer knows them. `add` builds on the newest event that it made or was told of."""

    def __init__(self, peer: Peer, room_id: str, rules: RoomVersionRules) -> None:
        self.peer = peer
        self.room_id = room_id
        self.rules = rules
        self.events: dict[EventID, JsonObject] = {}
        self.state: dict[StateKey, EventID] = {}
        self.before: dict[EventID, dict[StateKey, EventID]] = {}
        """The state before each event, where they came one after the other."""
        self.last: list[EventID] = []

    @property
    def user_id(self) -> UserID:
        """The peer's user in the room."""
        return self.peer.user()

    def id_of(self, event: JsonObject) -> EventID:
        """The event's ID."""
        return self.peer.id_of(event, self.rules)

    def keep(self, event: JsonObject) -> EventID:
        """Take an event as the room's newest; its ID."""
        event_id = self.id_of(event)
        self.events[event_id] = event
        self.before[event_id] = dict(self.state)
        if "state_key" in event:
            self.state[event["type"], event["state_key"]] = event_id
        self.last = [event_id]
        return event_id

    def prev_of(self, event_id: str) -> list[EventID]:
        """What an event follows."""
        return self._ids(self.events[EventID(event_id)]["prev_events"])

    def chain_of(self, event_ids: Sequence[EventID]) -> list[EventID]:
        """What authorises these events, and what authorises that."""
        chain: dict[EventID, None] = {}
        frontier = list(event_ids)
        while frontier:
            cited = self._ids(self.events[frontier.pop()]["auth_events"])
            frontier += [each for each in cited if each not in chain and each in self.events]
            chain.update(dict.fromkeys(cited))
        return list(chain)

    def _ids(self, references: Sequence[Any]) -> list[EventID]:
        return [each[0] for each in references] if self.rules.references_carry_hashes else list(references)

    def make(
        self,
        event_type: str = "m.room.message",
        content: JsonObject | None = None,
        *,
        prev: Sequence[str] | None = None,
        auth: Sequence[str] | None = None,
        **changes: Any,
    ) -> JsonObject:
        """An event that is not in the room yet; with these members changed, or added, before it is signed."""
        prev = self.last if prev is None else prev
        content = {"msgtype": "m.text", "body": "hello"} if content is None else content
        sender, state_key = changes.get("sender", self.user_id), changes.get("state_key")
        if auth is None:
            keys = auth_keys_for(event_type, sender, state_key, content, self.rules)
            auth = [self.state[key] for key in keys if key in self.state]
        depths = [self.events[EventID(each)]["depth"] for each in prev if each in self.events]
        event = {
            "type": event_type,
            "room_id": self.room_id,
            "sender": sender,
            "content": content,
            "prev_events": self._references(prev),
            "auth_events": self._references(auth),
            "depth": min(1 + max(depths, default=0), 2**53 - 1),
        }
        return self.peer.finish(event, self.rules, **changes)

    def add(self, event_type: str = "m.room.message", content: JsonObject | None = None, **more: Any) -> JsonObject:
        """As `make`, and it is the room's newest."""
        event = self.make(event_type, content, **more)
        self.keep(event)
        return event

    def messages(self, count: int) -> list[JsonObject]:
        """So many messages, each after the one before."""
        return [self.add(content={"msgtype": "m.text", "body": f"message {number}"}) for number in range(count)]

    def reference_hash(self, event_id: str) -> str:
        """As references in room versions 1 and 2 carry it."""
        event = self.events.get(EventID(event_id))
        return "h" * 43 if event is None else event_hashes.reference_hash(redact(event, self.rules), self.rules)

    def _references(self, event_ids: Sequence[str]) -> list[Any]:
        if not self.rules.references_carry_hashes:
            return list(event_ids)
        return [[event_id, {"sha256": self.reference_hash(event_id)}] for event_id in event_ids]

    async def push(
        self, pdus: Sequence[Any], edus: Sequence[Any] = (), *, txn_id: str | None = None, peer: Peer | None = None
    ) -> dict[EventID, JsonObject]:
        """Send a transaction, which must be taken: what is said of each PDU."""
        answer: JsonObject = await push(peer or self.peer, pdus, edus, txn_id=txn_id)
        return answer["pdus"]  # type: ignore[no-any-return]  # JSON


async def push(peer: Peer, pdus: Sequence[Any], edus: Sequence[Any] = (), *, txn_id: str | None = None) -> Any:
    """Send a transaction, which must be taken: the answer."""
    path = path_of("/v1/send/{}", txn_id or f"t{next(_transactions)}")
    return await peer.ok("PUT", path, transaction(peer, pdus, edus))


def transaction(peer: Peer, pdus: Sequence[Any], edus: Sequence[Any] = ()) -> JsonObject:
    """The body of a transaction."""
    return {"origin": peer.name, "origin_server_ts": now_ms(), "pdus": list(pdus), "edus": list(edus)}


async def joined_room(owner: Client, peer: Peer, version: str = "11", **fields: Any) -> RemoteRoom:
    """A new public room of the owner that the peer's user joined."""
    room_id = await create_room(owner, preset="public_chat", room_version=version, **fields)
    return await join_room(peer, room_id, version)


async def join_room(peer: Peer, room_id: str, version: str = "11") -> RemoteRoom:
    """The peer's user joins a room of the server."""
    remote = RemoteRoom(peer, room_id, get_rules(version))
    template = await peer.ok("GET", path_of("/v1/make_join/{}/{}", room_id, peer.user()), ver=[version])
    join = peer.finish(template["event"], remote.rules)
    told = await peer.ok("PUT", path_of("/v2/send_join/{}/{}", room_id, remote.id_of(join)), join)
    for event in (*told["auth_chain"], *told["state"]):
        remote.keep(event)
    remote.keep(join)
    return remote

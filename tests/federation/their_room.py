"""A room that is on a peer alone, as far as somebody outside hears of it."""

from typing import Any

from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject, RoomID
from tests.client import unique
from tests.federation.peer import Peer, path_of


class TheirRoom:
    """A room that is on the peer alone."""

    def __init__(self, peer: Peer, version: str = "11") -> None:
        self.peer = peer
        self.rules = get_rules(version)
        self.room_id = RoomID(f"!{unique('room')}:{peer.name}")
        self.state: dict[tuple[str, str], JsonObject] = {}
        create: JsonObject = {"room_version": version, "creator": peer.user(), "test": self.room_id}
        event = self.add("m.room.create", create)
        if self.rules.room_id_is_create_hash:
            self.room_id = RoomID("!" + peer.id_of(event, self.rules)[1:])
        self.add("m.room.member", {"membership": "join"}, peer.user())
        self.add("m.room.name", {"name": "Elsewhere"})

    def make(self, event_type: str, content: JsonObject, state_key: str | None = "", **changes: Any) -> JsonObject:
        template: JsonObject = {
            "type": event_type,
            "sender": self.peer.user(),
            "state_key": state_key,
            "content": content,
            "room_id": self.room_id,
            "depth": 5,
            "prev_events": [],
            "auth_events": [self.reference(event) for event in self.state.values()][:3],
        }
        if event_type == "m.room.create" and self.rules.room_id_is_create_hash:
            del template["room_id"]
        return self.peer.finish(template, self.rules, **changes)

    def reference(self, event: JsonObject) -> Any:
        event_id = self.peer.id_of(event, self.rules)
        return [event_id, {"sha256": "x"}] if self.rules.references_carry_hashes else event_id

    def add(self, event_type: str, content: JsonObject, state_key: str = "") -> JsonObject:
        event = self.state[event_type, state_key] = self.make(event_type, content, state_key)
        return event

    def invite(self, target: str, **changes: Any) -> JsonObject:
        return self.make("m.room.member", **{"content": {"membership": "invite"}, "state_key": target, **changes})

    def body(self, event: JsonObject, **changes: Any) -> JsonObject:
        told = [event for key, event in self.state.items() if key[0] != "m.room.member"]
        return {"room_version": self.rules.version, "event": event, "invite_room_state": told, **changes}

    def path(self, event: JsonObject, api: str = "v2") -> str:
        return path_of(f"/{api}/invite/{{}}/{{}}", self.room_id, self.peer.id_of(event, self.rules))

    async def send(self, event: JsonObject, **changes: Any) -> Any:
        return await self.peer.request("PUT", self.path(event), self.body(event, **changes))

    async def push(self, *events: JsonObject) -> Any:
        """Send events of the room in a transaction; the answer's `pdus`."""
        body = {"origin": self.peer.name, "origin_server_ts": 1, "pdus": list(events)}
        return (await self.peer.ok("PUT", f"/v1/send/{unique('txn')}", body))["pdus"]

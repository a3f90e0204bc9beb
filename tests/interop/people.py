"""People in stories: what they do is one request, what they see is what their syncs have brought.

room_id = await alice.create_room(invite=[bob])
await bob.sees_invite(room_id)
await bob.join(room_id)
event_id = await alice.says(room_id, "hello")
await bob.sees(room_id, event_id)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.client import Answer, Client, quote, unique

T = TypeVar("T")

PATIENCE_SECONDS = 25.0
_FILTER = '{"room": {"timeline": {"limit": 200}}}'


@dataclass(slots=True)
class SeenRoom:
    """What syncs have told of a room: the timeline, oldest first, and the state as it is now."""

    timeline: list[dict[str, Any]] = field(default_factory=list)
    state: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    ephemeral: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The contents of each type, oldest first."""
    unread: dict[str, int] = field(default_factory=dict)
    is_left: bool = False

    def take(self, section: Any) -> None:
        """Add what one sync says."""
        for event in section.get("state", {}).get("events", []):
            self.state[event["type"], event["state_key"]] = event
        for event in section.get("timeline", {}).get("events", []):
            self.timeline.append(event)
            if "state_key" in event:
                self.state[event["type"], event["state_key"]] = event
        self.unread = section.get("unread_notifications", self.unread)
        for event in section.get("ephemeral", {}).get("events", []):
            self.ephemeral.setdefault(event["type"], []).append(event["content"])


@dataclass(slots=True)
class Seen:
    """All that somebody's syncs have brought."""

    rooms: dict[str, SeenRoom] = field(default_factory=dict)
    invites: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Stripped state, of invites that are open."""
    knocks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    presence: dict[str, dict[str, Any]] = field(default_factory=dict)
    to_device: list[dict[str, Any]] = field(default_factory=list)
    devices_changed: set[str] = field(default_factory=set)
    devices_left: set[str] = field(default_factory=set)

    def take(self, body: Any) -> None:
        """Add one sync."""
        rooms = body.get("rooms", {})
        for kind in ("join", "leave"):
            for room_id, section in rooms.get(kind, {}).items():
                room = self.rooms.setdefault(room_id, SeenRoom())
                room.take(section)
                room.is_left = kind == "leave"
                self.invites.pop(room_id, None)
                self.knocks.pop(room_id, None)
        for room_id, section in rooms.get("invite", {}).items():
            self.invites[room_id] = section["invite_state"]["events"]
        for room_id, section in rooms.get("knock", {}).items():
            self.knocks[room_id] = section["knock_state"]["events"]
        for event in body.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]
        self.to_device += body.get("to_device", {}).get("events", [])
        self.devices_changed |= set(body.get("device_lists", {}).get("changed", []))
        self.devices_left |= set(body.get("device_lists", {}).get("left", []))


class Person:
    """A user of one server, with one device."""

    def __init__(self, client: Client, server_name: str, *, is_ours: bool = True) -> None:
        """`is_ours` says whether their server is a Hearth."""
        self.client = client
        self.is_ours = is_ours
        self.server_name = server_name
        self.seen = Seen()
        self.set_presence = "offline"
        self._since = ""

    @property
    def user_id(self) -> str:
        """Who they are."""
        return self.client.user_id

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The body of a request that must succeed, below /_matrix/client/v3 unless it names another."""
        return await self.client.ok(method, path if path.startswith("/_") else f"/v3{path}", body, **options)

    # --- what they do

    async def create_room(self, *, invite: Sequence["Person"] = (), **fields: Any) -> str:
        """A room's ID; everybody may join unless a `preset` says otherwise."""
        body = {"preset": "public_chat", "invite": [person.user_id for person in invite], **fields}
        return str((await self.ok("POST", "/createRoom", body))["room_id"])

    async def try_join(self, room: str, via: Sequence["Person"] = (), **fields: Any) -> Answer:
        """Join by ID or alias, by way of these people's servers; what the server answers."""
        servers = [(name, person.server_name) for person in via for name in ("via", "server_name")]
        return await self.client.request("POST", f"/v3/join/{quote(room)}", fields, params=servers)

    async def join(self, room: str, via: Sequence["Person"] = ()) -> str:
        """The same, with success; the room's ID."""
        status, body = await self.try_join(room, via)
        assert status == 200, body
        return str(body["room_id"])

    async def knock(self, room: str, via: Sequence["Person"] = (), reason: str = "") -> None:
        """Ask to be let in."""
        servers = [(name, person.server_name) for person in via for name in ("via", "server_name")]
        await self.ok("POST", f"/knock/{quote(room)}", {"reason": reason} if reason else {}, params=servers)

    async def invite(self, room_id: str, person: "Person", **fields: Any) -> None:
        """Ask them in."""
        await self._act(room_id, "invite", person, fields)

    async def kick(self, room_id: str, person: "Person", reason: str = "") -> None:
        """Have them leave."""
        await self._act(room_id, "kick", person, {"reason": reason})

    async def ban(self, room_id: str, person: "Person", reason: str = "") -> None:
        """Have them leave for good."""
        await self._act(room_id, "ban", person, {"reason": reason})

    async def unban(self, room_id: str, person: "Person") -> None:
        """Let them come again."""
        await self._act(room_id, "unban", person, {})

    async def _act(self, room_id: str, what: str, person: "Person", fields: dict[str, Any]) -> None:
        await self.ok("POST", f"/rooms/{quote(room_id)}/{what}", {"user_id": person.user_id, **fields})

    async def leave(self, room_id: str, reason: str = "") -> None:
        """Leave, or reject an invite."""
        await self.ok("POST", f"/rooms/{quote(room_id)}/leave", {"reason": reason} if reason else {})

    async def says(self, room_id: str, text: str, **content: Any) -> str:
        """Send a text; the event's ID."""
        return await self.sends(room_id, "m.room.message", {"msgtype": "m.text", "body": text, **content})

    async def sends(self, room_id: str, event_type: str, content: Any) -> str:
        """Send an event; its ID."""
        path = f"/rooms/{quote(room_id)}/send/{event_type}/{unique('t')}"
        return str((await self.ok("PUT", path, content))["event_id"])

    async def try_to_say(self, room_id: str, text: str) -> Answer:
        """What the server answers to a text."""
        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/{unique('t')}"
        return await self.client.request("PUT", path, {"msgtype": "m.text", "body": text})

    async def set_state(self, room_id: str, event_type: str, content: Any, state_key: str = "") -> str:
        """Change the room's state; the event's ID."""
        path = f"/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key)}"
        return str((await self.ok("PUT", path, content))["event_id"])

    async def redact(self, room_id: str, event_id: str) -> str:
        """Redact; the redaction's ID."""
        path = f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/{unique('t')}"
        return str((await self.ok("PUT", path, {}))["event_id"])

    # --- what they see

    async def sync(self, timeout: int = 0) -> Seen:
        """Hear what is new; returns all that was heard so far."""
        query = {"timeout": str(timeout), "set_presence": self.set_presence, "filter": _FILTER}
        if self._since:
            query["since"] = self._since
        body = await self.ok("GET", "/sync", params=query)
        self._since = body["next_batch"]
        self.seen.take(body)
        return self.seen

    async def until(self, look: Callable[[Seen], T | None], seconds: float = PATIENCE_SECONDS) -> T:
        """Sync until `look` finds something that is not false; returns that."""
        deadline = time.monotonic() + seconds
        seen = await self.sync()
        while not (found := look(seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"{self.user_id} has not seen it: {self._last_seen()}"
            seen = await self.sync(timeout=min(5000, max(100, int(left * 1000))))
        return found

    def _last_seen(self) -> str:
        rooms = {
            room_id: [f"{event['type']} {event['content']}" for event in room.timeline[-8:]]
            for room_id, room in self.seen.rooms.items()
        }
        return f"rooms {rooms}; invites {list(self.seen.invites)}"

    async def sees(self, room_id: str, event_id: str) -> dict[str, Any]:
        """Wait for an event of the room's timeline."""

        def look(seen: Seen) -> dict[str, Any] | None:
            timeline = seen.rooms[room_id].timeline if room_id in seen.rooms else []
            return next((event for event in timeline if event["event_id"] == event_id), None)

        return await self.until(look)

    async def sees_state(self, room_id: str, event_type: str, state_key: str = "", **content: Any) -> dict[str, Any]:
        """Wait until the state's content has these members; the event."""

        def look(seen: Seen) -> dict[str, Any] | None:
            event = seen.rooms[room_id].state.get((event_type, state_key)) if room_id in seen.rooms else None
            return event if event is not None and content.items() <= event["content"].items() else None

        return await self.until(look)

    async def sees_member(self, room_id: str, person: "Person", membership: str = "join") -> dict[str, Any]:
        """Wait until somebody's membership is this."""
        return await self.sees_state(room_id, "m.room.member", person.user_id, membership=membership)

    async def sees_invite(self, room_id: str) -> dict[str, dict[str, Any]]:
        """Wait for an invite; its stripped state by type."""
        events = await self.until(lambda seen: seen.invites.get(room_id))
        return {event["type"]: event for event in events}

    async def sees_leave(self, room_id: str) -> None:
        """Wait to hear that they are out of the room."""
        await self.until(lambda seen: room_id in seen.rooms and seen.rooms[room_id].is_left)

    async def state(self, room_id: str, event_type: str, state_key: str = "") -> Any:
        """The content of a state event as the server gives it now."""
        return await self.ok("GET", f"/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key)}")

    async def joined_members(self, room_id: str) -> set[str]:
        """Who is in the room by what the server says."""
        return set((await self.ok("GET", f"/rooms/{quote(room_id)}/joined_members"))["joined"])

    async def history(self, room_id: str, limit: int = 100) -> list[dict[str, Any]]:
        """All events that the server shows, oldest first."""
        events: list[dict[str, Any]] = []
        query = {"dir": "b", "limit": str(limit)}
        for _ in range(100):
            page = await self.ok("GET", f"/rooms/{quote(room_id)}/messages", params=query)
            events += page["chunk"]
            if "end" not in page:
                return events[::-1]
            query["from"] = page["end"]
        raise AssertionError("history does not end")

    async def texts(self, room_id: str) -> list[str]:
        """The bodies of all messages that the server shows, oldest first."""
        return [event["content"]["body"] for event in await self.history(room_id) if "body" in event["content"]]

"""A resident server of a room that our users want to join. It is honest unless a test has it lie.

async with resident(server, authority, "11") as other:
    other.answer = lambda answer: {**answer, "state": []}
    assert (await join(bob, other.room_id, other.name)).status == 502
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from federation.protocol import signatures
from federation.protocol.auth_events import auth_keys_for
from federation.protocol.room_versions import get_rules
from federation.protocol.types import JsonObject, RoomID
from tests.client import unique
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer
from tests.federation.peer import Reached
from tests.protocol import builders
from tests.protocol.builders import Room

Stream = Callable[[web.StreamResponse, bytes], Awaitable[None]]


async def whole(response: web.StreamResponse, body: bytes) -> None:
    """Send an answer as one does."""
    await response.write(body)
    await response.write_eof()


class LyingResident(ListeningPeer):
    """Another server with a room of its own."""

    def __init__(self, server: Reached, authority: Authority, version: str = "11") -> None:
        super().__init__(server, authority)
        builders.KEYS[self.name] = self.key
        self.asked: list[str] = []
        """The requests that came: method and kind."""
        self.template: Callable[[JsonObject], Any] = lambda answer: answer
        self.answer: Callable[[JsonObject], Any] = lambda answer: answer
        self.encode: Callable[[Any], bytes] = builders_json
        self.stream: Stream = whole
        self.answer_state: Callable[[JsonObject], Any] = lambda answer: answer
        """As `answer`, for `/state`."""
        self.answer_state_ids: Callable[[JsonObject], Any] = lambda answer: answer
        self.knows_v2 = True
        self.gives_all = True
        """Else who asks for the members of the room, too, gets nothing."""
        self.omits = False
        """Whether it leaves the members out, asked or not."""
        self.servers_in_room: list[str] = []
        self.status = 200
        self.refusal = {"errcode": "M_FORBIDDEN", "error": "no"}
        self._room = unique("room")  # another resident may have had this one's port, and so its name
        self.room = self.found_room(version)

    def found_room(self, version: str) -> Room:
        """A new room, with one ID before version 12."""
        rules, eve = get_rules(version), self.user()
        room = Room(rules, None if rules.room_id_is_create_hash else RoomID(f"!{self._room}:{self.name}"))
        create: JsonObject = {
            "room_version": version,
            "of": self._room,
            **({} if rules.implicit_creator else {"creator": eve}),
        }
        room.add("m.room.create", eve, create, "")
        room.add("m.room.member", eve, {"membership": "join"}, eve)
        users = {} if rules.creators_have_infinite_power else {eve: 100}
        room.add("m.room.power_levels", eve, {"users": users}, "")
        room.add("m.room.join_rules", eve, {"join_rule": "public"}, "")
        return room

    @property
    def room_id(self) -> str:
        """The room."""
        return self.room.events[0].room_id

    def add_members(self, count: int) -> None:
        """More users of the server in the room."""
        for number in range(count):
            user_id = self.user(f"member{number}")
            self.room.add("m.room.member", user_id, {"membership": "join", "displayname": f"M {number}"}, user_id)

    def routes(self, application: web.Application) -> None:
        """What else it serves."""
        v = "/_matrix/federation/{version}"
        application.router.add_get(v + "/make_{membership}/{room_id}/{user_id}", self._make)
        application.router.add_put(v + "/send_{membership}/{room_id}/{event_id}", self._send)
        application.router.add_get(v + "/state/{room_id}", self._state)
        application.router.add_get(v + "/state_ids/{room_id}", self._state_ids)
        application.router.add_put(v + "/invite/{room_id}/{event_id}", self._invite)
        application.router.add_get(v + "/backfill/{room_id}", self._backfill)

    def honest_template(self, user_id: str, membership: str = "join") -> JsonObject:
        """The template for a user."""
        content = {"membership": membership}
        rules = self.room.rules
        keys = auth_keys_for("m.room.member", user_id, user_id, content, rules)
        auth = [self.room.state[key].event_id for key in keys if key in self.room.state]
        prev = [self.room.events[-1].event_id]

        event = {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": content,
            "depth": self.room.events[-1].depth + 1,
            "prev_events": self.refer(prev),
            "auth_events": self.refer(auth),
        }
        return {"event": event, "room_version": rules.version}

    def refer(self, event_ids: list[Any]) -> list[Any]:
        """References to events as the room's version has them."""
        carry_hashes = self.room.rules.references_carry_hashes
        return [[each, {"sha256": "h" * 43}] if carry_hashes else each for each in event_ids]

    async def _make(self, request: web.Request) -> web.Response:
        self.asked.append(f"make_{request.match_info['membership']}")
        answer = self.honest_template(request.match_info["user_id"], request.match_info["membership"])
        return web.json_response(self.template(answer))

    async def _send(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["version"] == "v2" and not self.knows_v2:
            return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "?"}, status=404)
        self.asked.append(f"send_{request.match_info['membership']}")
        if self.status != 200:
            return web.json_response(self.refusal, status=self.status)
        self.sent = await request.json()
        omits = self.omits or request.query.get("omit_members") == "true"
        if not omits and not self.gives_all:
            return web.Response(status=504)
        state = [pdu.json for key, pdu in self.room.state.items() if not omits or key[0] != "m.room.member"]
        chain = [pdu.json for pdu in self.room.events[: 4 if omits else None] if pdu.state_key is not None]
        told = {"state": state, "auth_chain": chain, "event": self.sent, "origin": self.name}
        if omits:
            told |= {"members_omitted": True, "servers_in_room": self.servers_in_room}
        answer = self.answer(told)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        body = self.encode(answer)
        await self.stream(response, b"[200," + body + b"]" if request.match_info["version"] == "v1" else body)
        return response

    async def _state(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"state {request.query['event_id']}")
        state = [pdu.json for pdu in self.room.state.values()]
        chain = [pdu.json for pdu in self.room.events if pdu.state_key is not None]
        answer = self.answer_state({"pdus": state, "auth_chain": chain})
        if answer is None:
            return web.Response(status=504)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await self.stream(response, self.encode(answer))
        return response

    async def _state_ids(self, request: web.Request) -> web.Response:
        self.asked.append(f"state_ids {request.query['event_id']}")
        state = [pdu.event_id for pdu in self.room.state.values()]
        chain = [pdu.event_id for pdu in self.room.events if pdu.state_key is not None]
        return web.json_response(self.answer_state_ids({"pdu_ids": state, "auth_chain_ids": chain}))

    async def _backfill(self, _request: web.Request) -> web.Response:
        """All of the room, which is small."""
        pdus = [pdu.json for pdu in reversed(self.room.events)]
        return web.json_response({"origin": self.name, "origin_server_ts": 1, "pdus": pdus})

    async def _invite(self, request: web.Request) -> web.Response:
        version = request.match_info["version"]
        if version == "v2" and not self.knows_v2:
            return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "?"}, status=404)
        self.asked.append(f"invite {version}")
        if self.status != 200:
            return web.json_response(self.refusal, status=self.status)
        self.sent = await request.json()
        event = self.sent if version == "v1" else self.sent["event"]
        event = {key: value for key, value in event.items() if key != "unsigned"}
        rules = get_rules("1" if version == "v1" else self.sent["room_version"])
        answer = self.answer({"event": signatures.sign_event(event, rules, self.name, self.key)})
        return web.json_response([200, answer] if version == "v1" else answer)


def builders_json(value: Any) -> bytes:
    """The answer as JSON, whatever it is."""
    return web.json_response(value).body  # type: ignore[return-value]  # bytes


@asynccontextmanager
async def resident(server: Reached, authority: Authority, version: str = "11") -> AsyncIterator[LyingResident]:
    """A resident server that our server reaches, and whose key it knows."""
    peer = LyingResident(server, authority, version)
    await peer.trust()
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()

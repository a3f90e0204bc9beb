"""A policy server, over HTTPS: it signs what it is asked to sign, or does what a test asks for instead."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from federation.protocol import signatures
from federation.protocol.event_hashes import encode_base64
from federation.protocol.request_signing import SignedRequest, parse_header, verify
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject
from tests.client import Client, Server
from tests.federation.authority import Authority
from tests.federation.listening_peer import ListeningPeer
from tests.federation.remote_room import RemoteRoom, join_room
from tests.rooms import create_room, put_state

POLICY_KEY = SigningKey.from_seed("policy_server", b"p" * 32)
OTHER_KEY = SigningKey.from_seed("policy_server", b"q" * 32)

Judge = Callable[[JsonObject], tuple[int, JsonObject]]


class PolicyPeer(ListeningPeer):
    """Its key as a policy server is another than the one for its own events."""

    def __init__(self, server: Server, authority: Authority) -> None:
        super().__init__(server, authority)
        self.policy_key = POLICY_KEY
        self.asked: list[JsonObject] = []
        """The events that it was shown."""
        self.judge: Judge = self.sign_any
        self.rules: RoomVersionRules | None = None
        self.public_keys = {server.name: server.application.outbound.keys.signing_key.public_key}
        """Of those who may ask it."""

    def routes(self, application: web.Application) -> None:
        """The one endpoint that a policy server has to have."""
        application.router.add_post("/_matrix/policy/v1/sign", self._sign)

    async def _sign(self, request: web.Request) -> web.Response:
        content = await request.read()
        header = parse_header(request.headers["Authorization"])
        signed = SignedRequest(
            method="POST", uri="/_matrix/policy/v1/sign", origin=header.origin, destination=self.name, content=content
        )
        verify(header, signed, self.public_keys[header.origin])
        event = await request.json()
        self.asked.append(event)
        self._came.set()
        await self.answers.wait()
        status, answer = self.judge(event)
        return web.json_response(answer, status=status)

    @property
    def content(self) -> JsonObject:
        """An `m.room.policy` that names it."""
        return {"via": self.name, "public_keys": {"ed25519": encode_base64(self.policy_key.public_key)}}

    def recommend(self, event: JsonObject, key: SigningKey | None = None) -> JsonObject:
        """The event with the policy server's signature added."""
        assert self.rules is not None
        return signatures.sign_event(event, self.rules, self.name, key or self.policy_key)

    def sign_any(self, event: JsonObject) -> tuple[int, JsonObject]:
        """What it answers where it recommends the event: its own signature alone."""
        key_id = self.policy_key.key_id
        return 200, {self.name: {key_id: self.recommend(event)["signatures"][self.name][key_id]}}

    def refuse_any(self, _event: JsonObject) -> tuple[int, JsonObject]:
        """What it answers where it does not."""
        return 400, {"errcode": "M_FORBIDDEN", "error": "It looks like spam"}

    def signed(self, event: JsonObject) -> Any:
        """The policy server's signature of an event, if it has one."""
        return event["signatures"].get(self.name, {}).get("ed25519:policy_server")


async def guarded_room(owner: Client, policy: PolicyPeer, version: str = "11", **fields: Any) -> RemoteRoom:
    """A new public room of the owner with the policy server's user in it; as the policy server has it."""
    room_id = await create_room(owner, preset="public_chat", room_version=version, **fields)
    room = await join_room(policy, room_id, version)
    policy.rules = room.rules
    await put_state(owner, room_id, "m.room.policy", policy.content)
    return room

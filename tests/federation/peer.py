"""Another server, as tests need one: it holds a key, signs requests and events, and may lie in any of them.

    peer = await Peer(server, "peer.test").trust()
    template = await peer.ok("GET", path_of("/v1/make_join/{}/{}", room_id, eve), ver="11")
    join = peer.finish(template["event"], get_rules("11"))
    await peer.ok("PUT", path_of("/v2/send_join/{}/{}", room_id, peer.id_of(join, rules)), join)

It does not listen: `trust` tells the server its key as if it had been fetched.
"""

import io
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from yarl import URL

from federation.protocol import canonical_json, event_builder, event_hashes, server_keys, signatures
from federation.protocol.event_builder import Placement
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.redaction import redact
from federation.protocol.request_signing import SignedRequest, make_header
from federation.protocol.room_versions import RoomVersionRules
from federation.protocol.signatures import SigningKey
from federation.protocol.types import EventID, JsonObject, ServerName, UserID
from storage import server_keys as stored_keys
from tests.client import Answer, Client, Server
from tests.federation.specified import check_answer

_numbers = itertools.count(1)


def path_of(template: str, *segments: str) -> str:
    """A path below `/_matrix/federation` with these segments percent-encoded."""
    return template.format(*(quote(segment, safe="") for segment in segments))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Reached(Protocol):
    """A server that a peer speaks with, in this process or another one."""

    @property
    def name(self) -> str:
        """The server's name."""

    @property
    def base_url(self) -> str:
        """Where other servers find it."""

    @property
    def anonymous(self) -> Client:
        """Has the session for requests to it."""


class Peer:
    """One other server."""

    def __init__(self, server: Reached, name: str | None = None) -> None:
        number = next(_numbers)
        self.name = ServerName(name or f"peer-{number}.test")
        self.key = SigningKey.from_seed(f"k{number}", number.to_bytes(2, "big") * 16)
        self._server = server
        self.is_told_events = True
        """Whether the events that it is told must be as they are specified; not where it made others itself."""

    def user(self, localpart: str = "eve") -> UserID:
        """One of the peer's users."""
        return UserID(f"@{localpart}:{self.name}")

    async def trust(self) -> "Peer":
        """Let the server, if it is in this process, know the peer's key; the peer itself."""
        if not isinstance(self._server, Server):
            return self
        keys = server_keys.parse(self.key_answer(), self.name, now_ms())
        async with self._server.application.database.transaction() as tx:
            await stored_keys.save(tx, [keys])
        return self

    def key_answer(self, **changes: Any) -> JsonObject:
        """What the peer says of its key, signed; with these members changed before it is."""
        answer = {
            "server_name": self.name,
            "verify_keys": {self.key.key_id: {"key": event_hashes.encode_base64(self.key.public_key)}},
            "old_verify_keys": {},
            "valid_until_ts": now_ms() + 24 * 3600 * 1000,
            **changes,
        }
        return self.sign_json(answer)

    def sign_json(self, json: JsonObject) -> JsonObject:
        """The object with the peer's signature added."""
        return signatures.sign_json(json, self.name, self.key)

    # --- requests

    async def request(self, method: str, path: str, body: Any = None, /, **query: Any) -> Answer:
        """Send a signed request; `path` is below `/_matrix/federation`, `body` JSON or bytes."""
        return await self.request_as(self.name, method, path, body, **query)

    async def request_as(self, origin: str, method: str, path: str, body: Any = None, /, **query: Any) -> Answer:
        """As `request`, claiming to be another server."""
        uri = path if path.startswith("/_") else "/_matrix/federation" + path
        if encoded := urlencode(query, doseq=True):
            uri += "?" + encoded
        content = body if body is None or isinstance(body, bytes) else canonical_json.encode(body)
        return await self.send(method, uri, content, self.header(method, uri, content, origin=origin))

    def header(self, method: str, uri: str, content: bytes | None = None, *, origin: str | None = None) -> str:
        """The Authorization header of a request; `uri` is whole."""
        signed = SignedRequest(
            method=method,
            uri=uri,
            origin=ServerName(origin or self.name),
            destination=ServerName(self._server.name),
            content=content,
        )
        return make_header(signed, self.key)

    async def send(self, method: str, uri: str, content: bytes | None, *authorizations: str) -> Answer:
        """Send these bytes as they are, with these Authorization headers."""
        headers = [("Authorization", authorization) for authorization in authorizations]
        if content is not None:
            headers.append(("Content-Type", "application/json"))
        url = URL(self._server.base_url + uri, encoded=True)
        session = self._server.anonymous.session
        data = io.BytesIO(content) if content is not None and len(content) > 1_000_000 else content  # aiohttp warns
        async with session.request(method, url, data=data, headers=headers) as response:
            is_json = response.content_type == "application/json"
            body = await (response.json() if is_json else response.read())
            if self.is_told_events:
                check_answer(method, uri, response.status, body)
            return Answer(response.status, body, response.headers)

    async def ok(self, method: str, path: str, body: Any = None, /, **query: Any) -> Any:
        """The body of an answer that must be 200."""
        answer = await self.request(method, path, body, **query)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.body

    # --- events

    def finish(self, template: JsonObject, rules: RoomVersionRules, **changes: Any) -> JsonObject:
        """A template as an event of the peer: with these members changed (None: taken away), hashed and signed."""
        event = {**template, "origin": self.name, "origin_server_ts": now_ms(), **changes}
        event = {key: value for key, value in event.items() if value is not None and key not in ("unsigned", "hashes")}
        if rules.event_id_format == "server" and "event_id" not in changes:
            event["event_id"] = f"$made{next(_numbers)}:{self.name}"
        return self.sign(event, rules)

    def sign(self, event: JsonObject, rules: RoomVersionRules) -> JsonObject:
        """The event hashed and signed anew by the peer."""
        event = {key: value for key, value in event.items() if key != "signatures"}
        event["hashes"] = {"sha256": event_hashes.content_hash(event)}
        return signatures.sign_event({**event, "signatures": {}}, rules, self.name, self.key)

    def add_signature(self, event: JsonObject, rules: RoomVersionRules) -> JsonObject:
        """The event with the peer's signature added to those it has."""
        return signatures.sign_event(event, rules, self.name, self.key)

    def id_of(self, event: JsonObject, rules: RoomVersionRules) -> EventID:
        """The event's ID in a room of this version."""
        if rules.event_id_format == "server":
            return EventID(event["event_id"])
        return event_hashes.event_id_of(event, rules)

    def build(
        self,
        rules: RoomVersionRules,
        draft: Draft,
        *,
        prev_events: Sequence[VerifiedPDU] = (),
        auth_events: Sequence[VerifiedPDU] = (),
        hashes: Mapping[EventID, str] | None = None,
    ) -> VerifiedPDU:
        """An event of one of the peer's users after these events, authorised by those, true or not."""
        cited = {
            pdu.event_id: event_hashes.reference_hash(redact(pdu.json, rules), rules)
            for pdu in (*prev_events, *auth_events)
        }
        return event_builder.build(
            draft,
            rules,
            Placement(
                prev_events=[pdu.event_id for pdu in prev_events],
                auth_events=[pdu.event_id for pdu in auth_events],
                depth=1 + max((pdu.depth for pdu in prev_events), default=0),
                origin_server_ts=now_ms(),
                hashes={**cited, **(hashes or {})},
            ),
            server_name=self.name,
            signing_key=self.key,
            event_id_localpart=f"made{next(_numbers)}",
        )

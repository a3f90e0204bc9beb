"""Random requests, signed by a server that means no good, to every endpoint of the Server-Server API: whatever they
hold, the answer is one of the specification's, none is an internal error, and the server goes on as before."""

import contextlib
import itertools
import logging
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pytest
import yarl

from federation.protocol.signatures import sign_json
from federation.protocol.types import JsonObject
from homeserver.config import API
from tests.client import Client, Server, quote
from tests.every_endpoint.damage import BODIES, JUNK, SEGMENTS, encode
from tests.federation.peer import Peer, now_ms
from tests.federation.remote_room import RemoteRoom, join_room, joined_room, push, transaction
from tests.federation.their_room import TheirRoom
from tests.rooms import send
from tests.servers import running

ROUNDS = 10
"""Requests to each endpoint, for each seed."""
VERSIONS = ("2", "6", "11", "12")
PARAMETER = re.compile(r"\{(\w+)\}")
JOINING = re.compile(r"/(make|send)_(join|leave|knock)/")


class Attacker:
    """Makes requests that are right but for something."""

    def __init__(self, chance: random.Random, server: Server, victim: Client, room: RemoteRoom) -> None:
        self.chance = chance
        self.server, self.victim, self.room, self.peer = server, victim, room, room.peer
        self.numbers = itertools.count()

    def request(self, path: str) -> tuple[str, list[tuple[str, str]], Any]:
        """The path with its parameters, a query and a body, one of them damaged more often than not."""
        body, names = self._right(path)
        query = self._query(path)
        damaged = self.chance.choice(("path", "query", "body", "body", "body", "nothing"))
        if damaged == "path" and names:
            names[self.chance.choice(list(names))] = self.chance.choice(SEGMENTS)
        if damaged == "query":
            query.insert(0, (self.chance.choice([name for name, _ in query] or ["x"]), self.chance.choice(SEGMENTS)))
        if damaged == "body" and body is not None:
            body = self.chance.choice(BODIES) if self.chance.random() < 0.1 else self._changed(body)
        return PARAMETER.sub(lambda match: names[match[1]], path), query, body

    def _right(self, path: str) -> tuple[Any, dict[str, str]]:
        """A body and the path's parameters that go together."""
        names = {
            "room_id": quote(self.room.room_id),
            "event_id": quote(self.chance.choice(list(self.room.events)[-8:])),
            "user_id": quote(self.peer.user()),
            "server_name": self.chance.choice((self.peer.name, self.server.name)),
            "key_id": "ed25519%3Aa",
            "txn_id": f"t{next(self.numbers)}",
            "query_type": "profile",
            "media_id": "abc",
        }
        body: Any = {}
        if "/send/" in path:
            body = transaction(self.peer, [self._event() for _ in range(3)], [self._edu() for _ in range(3)])
        elif "/send_" in path:
            handshake = JOINING.search(path)
            body = self._event("m.room.member", handshake[2] if handshake else "join")
            with contextlib.suppress(Exception):  # it may be nothing that has an ID
                names["event_id"] = quote(self.room.id_of(body))
        elif "/invite/" in path:
            theirs = TheirRoom(self.peer, self.chance.choice(("1", "6", "11", "12")))
            event = theirs.invite(self.victim.user_id)
            body = theirs.body(event)
            if "/v1/" in path:
                body = {**event, "unsigned": {"invite_room_state": body["invite_room_state"]}}
            names |= {"room_id": quote(theirs.room_id), "event_id": quote(self.peer.id_of(event, theirs.rules))}
        elif "third_party" in path:
            content = {"membership": "invite", "third_party_invite": {"signed": self._signed(self.peer.user())}}
            body = self.room.make("m.room.member", content)
            body |= {"sender": self.victim.user_id, "state_key": self.peer.user()}
        elif "onbind" in path:
            invite = {"room_id": self.room.room_id, "sender": self.victim.user_id, "mxid": self.victim.user_id}
            body = {"invites": [{**invite, "signed": self._signed(self.victim.user_id)}], "mxid": self.victim.user_id}
        elif "get_missing_events" in path:
            body = {"latest_events": list(self.room.events)[-3:], "earliest_events": [], "limit": 10, "min_depth": 0}
        elif path.endswith("/query"):
            body = {"server_keys": {self.peer.name: {self.peer.key.key_id: {"minimum_valid_until_ts": now_ms()}}}}
        elif "/user/keys/" in path:
            what = {self.victim.user_id: {self.victim.device_id: "signed_curve25519"}}
            body = {"one_time_keys": what} if "claim" in path else {"device_keys": {self.victim.user_id: []}}
        elif "publicRooms" in path:
            body = {"limit": 3, "filter": {"generic_search_term": "a"}, "since": "x"}
        return body, names

    def _query(self, path: str) -> list[tuple[str, str]]:
        event_id = self.chance.choice(list(self.room.events)[-8:])
        right: Mapping[str, list[tuple[str, str]]] = {
            "backfill": [("v", event_id), ("limit", "5")],
            "state": [("event_id", event_id)],
            "make_": [("ver", self.room.rules.version)],
            "timestamp": [("ts", str(now_ms())), ("dir", "b")],
            "query/": [("user_id", self.victim.user_id), ("room_alias", "#a:" + self.server.name)],
        }
        return [(name, quote(value)) for part, query in right.items() if part in path for name, value in query]

    def _event(self, event_type: str = "m.room.message", membership: str = "join", **content: Any) -> JsonObject:
        is_member = event_type == "m.room.member"
        content = {"membership": membership, **content} if is_member else {"body": "hello", "msgtype": "m.text"}
        changes: JsonObject = {"state_key": self.peer.user()} if is_member else {}
        event = self.room.make(event_type, content, **changes)
        if self.chance.random() < 0.6:
            changed: JsonObject = self._changed(event)
            try:
                return self.peer.sign(changed, self.room.rules)  # signed as it is, however strange
            except Exception:  # it has no form that can be signed
                return changed
        return event

    def _signed(self, user_id: str) -> JsonObject:
        return sign_json({"mxid": user_id, "token": "t"}, self.peer.name, self.peer.key)

    def _edu(self) -> JsonObject:
        user, room_id = self.peer.user(), self.room.room_id
        contents: Mapping[str, JsonObject] = {
            "m.typing": {"room_id": room_id, "user_id": user, "typing": True},
            "m.receipt": {room_id: {"m.read": {user: {"data": {"ts": 1}, "event_ids": list(self.room.events)[-1:]}}}},
            "m.presence": {"push": [{"user_id": user, "presence": "online", "last_active_ago": 3}]},
            "m.direct_to_device": {
                "sender": user,
                "type": "m.test",
                "message_id": f"m{next(self.numbers)}",
                "messages": {self.victim.user_id: {"*": {"a": 1}}},
            },
            "m.device_list_update": {"user_id": user, "device_id": "D", "stream_id": 5, "prev_id": []},
            "m.signing_key_update": {"user_id": user, "master_key": {"user_id": user, "keys": {}}},
        }
        edu_type = self.chance.choice(list(contents))
        edu: JsonObject = {"edu_type": edu_type, "content": contents[edu_type]}
        return self._changed(edu) if self.chance.random() < 0.7 else edu

    def _changed(self, value: Any) -> Any:
        """The value with something in it replaced, left out or added."""
        if isinstance(value, dict) and value and self.chance.random() < 0.9:
            name = self.chance.choice(list(value))
            match self.chance.randrange(4):
                case 0:
                    return {key: member for key, member in value.items() if key != name}
                case 1:
                    return {**value, self.chance.choice(("", "a", "\0", "event_id", "unsigned")): self._junk()}
                case _:
                    return {**value, name: self._changed(value[name])}
        if isinstance(value, list) and value and self.chance.random() < 0.9:
            at = self.chance.randrange(len(value))
            return [*value[:at], self._changed(value[at]), *value[at + 1 :]]
        return self._junk()

    def _junk(self) -> Any:
        return self.chance.choice(JUNK)


def endpoints(server: Server) -> Iterator[tuple[str, str]]:
    """Method and path of every route of the federation API."""
    for route in server.application.listening.routes[API.FEDERATION]:
        yield route.method, route.path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
async def test_no_signed_request_is_an_internal_error(
    conninfo: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(conninfo) as server:
        alice = await server.register("alice")
        peer = await Peer(server, "127.0.0.1:1").trust()  # where nobody may ask
        version = VERSIONS[seed % len(VERSIONS)]
        room = await joined_room(alice, peer, version)
        attacker = Attacker(random.Random(seed), server, alice, room)
        wrong = []
        for number in range(ROUNDS):
            attacker.room = await join_room(peer, room.room_id, version)  # it may have left
            for method, path in endpoints(server):
                target, query, body = attacker.request(path)
                content = None if method == "GET" else body if isinstance(body, bytes) else encode(body)
                uri = target + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else "")
                uri = yarl.URL(server.base_url + uri, encoded=True).raw_path_qs
                answer = await peer.send(method, uri, content, peer.header(method, uri, content))
                if not is_specified(answer.status, answer.body):
                    wrong.append((number, method, uri, content and content[:2000], answer.status, answer.body))

        assert not wrong, "\n\n".join(map(str, wrong))
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        await push(peer, [(await join_room(peer, room.room_id, version)).add()])  # its events still arrive
        await send(alice, room.room_id, "and so do those of others")


def is_specified(status: int, body: Any) -> bool:
    """Whether this is an answer, or a refusal as the specification words it."""
    if isinstance(body, bytes):
        return False
    if status == 200:
        return isinstance(body, dict | list) and bool(orjson.dumps(body))
    return 400 <= status < 500 and isinstance(body, dict) and isinstance(body.get("errcode"), str)

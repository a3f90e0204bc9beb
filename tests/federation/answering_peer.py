"""A peer (`peer.py`) that can be asked too: over TLS, for the events of its rooms, honestly or not.

    async with answering_peer(server, authority) as peer:
        room = await joined_room(alice, peer)
        peer.rooms.append(room)
        peer.answers["state_ids"] = lambda _path, _query, _body: {"pdu_ids": []}

Every request is in `asked`, by the name of what was asked for.
"""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from aiohttp import web

from federation.protocol.types import EventID, JsonObject
from tests.federation.authority import Authority
from tests.federation.peer import Peer, Reached
from tests.federation.remote_room import RemoteRoom
from tests.federation.servers import free_port

Answerer = Callable[[list[str], dict[str, str], Any], Any]
"""From the path's segments after the name, the query and the body to the answer: JSON, or bytes that need be none, or
None for 404."""


class AnsweringPeer(Peer):
    """Another server that answers."""

    def __init__(self, server: Reached, name: str) -> None:
        super().__init__(server, name)
        self.rooms: list[RemoteRoom] = []
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, Answerer] = {
            "event": self._event,
            "event_auth": self._event_auth,
            "state_ids": self._state_ids,
            "state": self._state,
            "get_missing_events": self._missing_events,
            "send": self._take,
        }
        self.pause_seconds = 0.0
        self.release = asyncio.Event()
        """A request to a peer with endless pauses ends when it is set."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request."""
        segments = [unquote(segment) for segment in request.raw_path.partition("?")[0].split("/")]
        if segments[2] == "key":
            return web.json_response(self.key_answer())
        name, rest = segments[4], segments[5:]
        self.asked[name] += 1
        if self.pause_seconds:
            try:
                async with asyncio.timeout(self.pause_seconds):
                    await self.release.wait()
            except TimeoutError:
                pass
        body = json.loads(await request.read() or "null")
        answer = self.answers[name](rest, dict(request.query), body) if name in self.answers else None
        if answer is None:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "Not found"}, status=404)
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        return web.json_response(answer)

    # --- honest answers

    def find(self, event_id: str) -> JsonObject | None:
        """An event of any of the peer's rooms."""
        for room in self.rooms:
            if event_id in room.events:
                return room.events[EventID(event_id)]
        return None

    def room_of(self, event_id: str) -> RemoteRoom:
        """The room of an event."""
        return next(room for room in self.rooms if event_id in room.events)

    def _take(self, _path: Any, _query: Any, _body: Any) -> Any:
        """Whoever refuses transactions is asked for nothing, either."""
        return {"pdus": {}}

    def _event(self, path: list[str], _query: Any, _body: Any) -> Any:
        event = self.find(path[0])
        return None if event is None else {"origin": self.name, "origin_server_ts": 1, "pdus": [event]}

    def _event_auth(self, path: list[str], _query: Any, _body: Any) -> Any:
        room = self.room_of(path[1])
        return {"auth_chain": [room.events[each] for each in room.chain_of([EventID(path[1])])]}

    def _state_ids(self, _path: Any, query: dict[str, str], _body: Any) -> Any:
        room = self.room_of(query["event_id"])
        state = list(room.before[EventID(query["event_id"])].values())
        return {"pdu_ids": state, "auth_chain_ids": room.chain_of(state)}

    def _state(self, _path: Any, query: dict[str, str], _body: Any) -> Any:
        room = self.room_of(query["event_id"])
        ids = self._state_ids(None, query, None)
        return {
            "pdus": [room.events[each] for each in ids["pdu_ids"]],
            "auth_chain": [room.events[each] for each in ids["auth_chain_ids"]],
        }

    def _missing_events(self, _path: Any, _query: Any, body: Any) -> Any:
        """From the latest backwards, at most `limit` (and 20), the oldest first."""
        seen: list[EventID] = []
        room = self.room_of(body["latest_events"][0])
        frontier = [each for event_id in body["latest_events"] for each in room.prev_of(event_id)]
        while frontier and len(seen) < min(body["limit"], 20):
            event_id = frontier.pop(0)
            if event_id in room.events and event_id not in seen and event_id not in body["earliest_events"]:
                seen.append(event_id)
                frontier += room.prev_of(event_id)
        return {"events": [room.events[each] for each in reversed(seen)]}


P = TypeVar("P", bound=AnsweringPeer)


def without(answerer: Answerer, key: str, lost: Iterable[str]) -> Answerer:
    """The same answer with some IDs left out of one list."""
    lost = set(lost)

    def answer(path: list[str], query: dict[str, str], body: Any) -> Any:
        found = answerer(path, query, body)
        return {**found, key: [each for each in found[key] if each not in lost]}

    return answer


@asynccontextmanager
async def answering_peer(server: Reached, authority: Authority) -> AsyncIterator[AnsweringPeer]:
    """A peer that listens on loopback, with a certificate of the authority; the server must trust that."""
    port = free_port()
    async with listening(AnsweringPeer(server, f"127.0.0.1:{port}"), authority, port) as peer:
        yield peer


@asynccontextmanager
async def listening(peer: P, authority: Authority, port: int) -> AsyncIterator[P]:
    """The peer while it listens on the port."""
    certificate, key = authority.issue("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.ServerRunner(web.Server(peer.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        await peer.trust()
        yield peer
    finally:
        peer.release.set()
        await runner.cleanup()

"""The handshakes by which a peer's users join, leave and knock, as the peer makes them."""

from typing import Any

from federation.protocol.room_versions import ROOM_VERSIONS, get_rules
from federation.protocol.types import JsonObject
from tests.client import Answer, Client, Server
from tests.federation.peer import Peer, path_of
from tests.rooms import create_room, state_of

VERSIONS = list(ROOM_VERSIONS)


async def a_public_room(owner: Client, version: str = "11", **fields: Any) -> str:
    """A room that everybody may join."""
    return await create_room(owner, preset="public_chat", room_version=version, **fields)


async def make(peer: Peer, room_id: str, membership: str = "join", **query: Any) -> Answer:
    """Ask for a template."""
    path = path_of(f"/v1/make_{membership}/{{}}/{{}}", room_id, peer.user())
    return await peer.request("GET", path, **{"ver": VERSIONS, **query})


async def member_event(
    peer: Peer, room_id: str, version: str = "11", membership: str = "join", /, **changes: Any
) -> JsonObject:
    """An event of the peer's user from our own template, changed before it is signed."""
    answer = await make(peer, room_id, membership)
    assert answer.status == 200, answer.body
    return peer.finish(answer.body["event"], get_rules(version), **changes)


def path_for(peer: Peer, room_id: str, event: JsonObject, version: str = "11", what: str = "v2/send_join") -> str:
    """Where the event is to be brought."""
    return path_of(f"/{what}/{{}}/{{}}", room_id, peer.id_of(event, get_rules(version)))


async def send_join(peer: Peer, room_id: str, event: JsonObject, version: str = "11", **query: Any) -> Answer:
    """Bring a join."""
    return await peer.request("PUT", path_for(peer, room_id, event, version), event, **query)


async def send_leave(peer: Peer, room_id: str, event: JsonObject) -> Answer:
    """Bring a leave."""
    return await peer.request("PUT", path_for(peer, room_id, event, what="v2/send_leave"), event)


async def send_knock(peer: Peer, room_id: str, event: JsonObject) -> Answer:
    """Bring a knock."""
    return await peer.request("PUT", path_for(peer, room_id, event, what="v1/send_knock"), event)


async def joined(peer: Peer, room_id: str, version: str = "11") -> JsonObject:
    """Have the peer's user in the room; the answer to `send_join`."""
    answer = await send_join(peer, room_id, await member_event(peer, room_id, version), version)
    assert answer.status == 200, answer.body
    told: JsonObject = answer.body
    return told


async def membership_in(server: Server, room_id: str, user_id: str) -> Any:
    """A user's membership by the room's state."""
    member = (await state_of(server, room_id)).get(("m.room.member", user_id))
    return None if member is None else member["content"]["membership"]


def refusal(answer: Answer) -> tuple[int, str]:
    """How a request was refused."""
    assert answer.status >= 400, answer.body
    return answer.status, answer.body["errcode"]

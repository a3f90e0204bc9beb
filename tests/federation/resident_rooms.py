"""A room of the server under test that users of a peer are in, and what the peer is told of it.

    world = await SharedRoom.made(server, alice, peer)
    await world.join(peer.user())
    await world.send(peer.user(), "m.room.message", {"body": "x"})

The peer's events are put into the room as if they had been pushed and checked, built on the room as it is.
"""

from dataclasses import dataclass
from typing import Any

from federation.protocol.auth_events import auth_keys_for
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.types import EventID, JsonObject, UserID
from federation.rooms.append import Outcome
from federation.rooms.heads import to_pdu
from storage import events, rooms
from storage.events import StoredEvent
from storage.rooms import Room
from tests.client import Client, Server
from tests.federation.peer import Peer
from tests.homeserver.rooms import a_room


@dataclass
class SharedRoom:
    """A room of our user `owner`, with the peer."""

    server: Server
    owner: Client
    peer: Peer
    room: Room

    @classmethod
    async def made(cls, server: Server, owner: Client, peer: Peer, **fields: Any) -> "SharedRoom":
        """A new public room that the peer has nobody in yet."""
        room_id = await a_room(owner, **fields)
        return cls(server, owner, peer, await server.application.writer.get_room(room_id))

    @property
    def room_id(self) -> str:
        """Its ID."""
        return self.room.room_id

    async def send(
        self, sender: UserID, event_type: str, content: JsonObject, state_key: str | None = None, **options: Any
    ) -> VerifiedPDU:
        """An event of the peer's user at the room's end, which must be accepted."""
        pdu = await self.build(sender, event_type, content, state_key, **options)
        received = await self.server.application.writer.append_remote(pdu)
        assert received.outcome is Outcome.ACCEPTED, received
        return pdu

    async def build(
        self,
        sender: UserID,
        event_type: str,
        content: JsonObject,
        state_key: str | None = None,
        *,
        prev_events: list[VerifiedPDU] | None = None,
    ) -> VerifiedPDU:
        """As `send`, without sending it."""
        keys = auth_keys_for(event_type, sender, state_key, content, self.room.rules)
        state = await self.server.application.writer.state_for(self.room, keys)
        async with self.server.application.database.read() as tx:
            row = (await rooms.rows(tx, [self.room.number]))[self.room.number]
            ends = await events.by_id(tx, row.extremities)
        return self.peer.build(
            self.room.rules,
            Draft(room_id=self.room.room_id, type=event_type, sender=sender, content=content, state_key=state_key),
            prev_events=[to_pdu(end, self.room) for end in ends.values()] if prev_events is None else prev_events,
            auth_events=list(state.values()),
        )

    async def join(self, user_id: UserID) -> VerifiedPDU:
        """A user of the peer joins."""
        return await self.member(user_id, "join")

    async def member(self, user_id: UserID, membership: str) -> VerifiedPDU:
        """A user of the peer changes their own membership."""
        return await self.send(user_id, "m.room.member", {"membership": membership}, user_id)

    async def invite(self, user_id: UserID) -> None:
        """The owner invites a user of the peer, who hears of it by other means."""
        content = {"membership": "invite"}
        draft = Draft(
            room_id=self.room.room_id,
            type="m.room.member",
            sender=UserID(self.owner.user_id),
            content=content,
            state_key=user_id,
        )
        await self.server.application.writer.append([draft])

    async def stored(self, event_id: str) -> StoredEvent:
        """An event as the server holds it."""
        async with self.server.application.database.read() as tx:
            return (await events.by_id(tx, [event_id]))[EventID(event_id)]

    async def pdu(self, event_id: str) -> VerifiedPDU:
        """An event as a PDU."""
        return to_pdu(await self.stored(event_id), self.room)

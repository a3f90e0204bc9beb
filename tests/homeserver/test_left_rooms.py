"""What a reader is told of a room that they left, however much has happened since."""

from federation.protocol.types import EventID, UserID
from federation.rooms.room_news import Reading, Span
from federation.rooms.timelines import Timelines
from homeserver.services.sync_filter import RoomEventFilter
from homeserver.tokens import parse_stream_token
from storage import events, rooms
from tests.client import Client, Server, quote
from tests.rooms import create_room, join, pdus_of, put_state, send


async def test_a_leave_is_told_as_it_was_although_the_user_is_back(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    before = (await bob.ok("GET", "/v3/sync"))["next_batch"]
    await join(bob, room_id)
    seen = await send(alice, room_id, "while bob is here")
    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave")
    leave = (await pdus_of(server, room_id, "m.room.member"))[-1]["event_id"]
    await put_state(alice, room_id, "m.room.topic", {"topic": "without bob"})
    await join(bob, room_id)

    app = server.application
    timelines = Timelines(app.database, app.tail, app.reader)
    async with app.database.read() as tx:
        room = await rooms.find(tx, room_id)
        assert room is not None
        left_at = (await events.by_id(tx, [EventID(leave)]))[EventID(leave)].position
        span = Span(parse_stream_token(before).position, left_at, 2)
        news = await timelines.left(tx, Reading(UserID(bob.user_id), RoomEventFilter()), room, span)

    assert [each.event.event_id for each in news.timeline] == [seen, leave]
    assert "m.room.topic" not in {event.type for event in (*news.state, *news.state_after)}
    assert news.parted_from == {alice.user_id, bob.user_id}

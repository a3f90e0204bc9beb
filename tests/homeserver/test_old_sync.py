"""/initialSync and /events over HTTP, for members and for who looks into a room."""

import asyncio
from typing import Any

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, bodies, join, leave, page, set_state, set_visibility
from tests.rooms import send


async def test_a_room_as_a_snapshot(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="Den", visibility="shared")
    for text in ("one", "two", "three"):
        await send(bob, room_id, text)
    tag = f"/v3/user/{quote(alice.user_id)}/rooms/{quote(room_id)}/account_data/org.example"
    await alice.ok("PUT", tag, {"mine": True})

    snapshot = (await alice.get(f"/v3/rooms/{quote(room_id)}/initialSync", limit=2)).body

    assert (snapshot["room_id"], snapshot["membership"], snapshot["visibility"]) == (room_id, "join", "private")
    assert bodies(snapshot["messages"]["chunk"]) == ["two", "three"]
    assert {e["type"]: e["content"] for e in snapshot["state"]}["m.room.name"] == {"name": "Den"}
    assert snapshot["account_data"] == [{"type": "org.example", "content": {"mine": True}}]
    older = await page(alice, room_id, limit=1, from_=snapshot["messages"]["start"])
    assert bodies(older["chunk"]) == ["one"]


async def test_a_snapshot_for_who_left_is_of_their_leave(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="before")
    await leave(bob, room_id)
    await set_state(alice, room_id, "m.room.name", {"name": "after"})
    await send(alice, room_id, "secret")

    snapshot = (await bob.get(f"/v3/rooms/{quote(room_id)}/initialSync")).body

    assert snapshot["membership"] == "leave"
    assert {e["type"]: e["content"] for e in snapshot["state"]}["m.room.name"] == {"name": "before"}
    assert snapshot["messages"]["chunk"][-1]["state_key"] == bob.user_id
    assert bodies(snapshot["messages"]["chunk"]) == []


async def test_the_whole_account_as_a_snapshot(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, name="mine")
    await send(alice, room_id, "hello")
    invited = await a_room(bob)
    await act(bob, "invite", invited, alice)
    gone = await a_room(bob, alice)
    await send(bob, gone, "was")
    await leave(alice, gone)

    present = (await alice.get("/v3/initialSync", limit=1)).body
    archived = (await alice.get("/v3/initialSync", archived="true")).body

    rooms = {room["room_id"]: room for room in present["rooms"]}
    assert rooms.keys() == {room_id, invited}
    assert bodies(rooms[room_id]["messages"]["chunk"]) == ["hello"]
    assert any(event["content"] == {"name": "mine"} for event in rooms[room_id]["state"])
    assert rooms[invited]["membership"] == "invite"
    assert rooms[invited]["invite"]["content"]["membership"] == "invite"
    assert "messages" not in rooms[invited]
    assert {room["room_id"]: room["membership"] for room in archived["rooms"]}[gone] == "leave"


async def test_events_are_streamed_as_they_come(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    token = (await alice.get("/v3/initialSync")).body["end"]
    waiting = asyncio.ensure_future(alice.get("/v3/events", from_=token, timeout=20_000))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await send(bob, await a_room(bob), "elsewhere")
    await send(bob, room_id, "first")

    answer = (await waiting).body

    assert bodies(answer["chunk"]) == ["first"]
    await send(bob, room_id, "second")
    answer = (await alice.get("/v3/events", from_=answer["end"], timeout=20_000)).body
    assert bodies(answer["chunk"]) == ["second"]
    nothing = (await alice.get("/v3/events", from_=answer["end"], timeout=50)).body
    assert nothing["chunk"] == []
    assert nothing["start"] == answer["end"]


async def test_a_long_absence_is_made_up_for_in_parts_without_loss(alice: Client, bob: Client) -> None:
    room_id, other = await a_room(alice, bob), await a_room(bob, alice)
    token = (await alice.get("/v3/initialSync")).body["end"]
    expected = [f"m{number}" for number in range(110)]
    for number, text in enumerate(expected):
        await send(bob, room_id if number % 2 else other, text)

    got: list[str] = []
    for _ in range(2):
        answer = (await alice.get("/v3/events", from_=token, timeout=0)).body
        token = answer["end"]
        got += bodies(answer["chunk"])

    assert got == expected


async def test_who_is_removed_streams_up_to_that(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    token = (await bob.get("/v3/initialSync")).body["end"]
    await send(alice, room_id, "before")
    await act(alice, "kick", room_id, bob)
    await send(alice, room_id, "after")

    chunk = (await bob.get("/v3/events", from_=token, timeout=0)).body["chunk"]

    assert bodies(chunk) == ["before"]
    assert chunk[-1]["content"]["membership"] == "leave"


async def test_a_guest_looks_into_a_world_readable_room(alice: Client, server: Server) -> None:
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register", {}, params={"kind": "guest"}))
    room_id = await a_room(alice, visibility="world_readable")
    await send(alice, room_id, "one")

    snapshot = (await guest.get(f"/v3/rooms/{quote(room_id)}/initialSync")).body
    assert bodies(snapshot["messages"]["chunk"]) == ["one"]
    assert "membership" not in snapshot
    waiting = asyncio.ensure_future(
        guest.get("/v3/events", room_id=room_id, from_=snapshot["messages"]["end"], timeout=20_000)
    )
    await asyncio.sleep(0.1)
    await send(alice, room_id, "two")
    answer = (await waiting).body
    assert bodies(answer["chunk"]) == ["two"]

    await set_visibility(alice, room_id, "joined")
    await send(alice, room_id, "three")
    refused: Any = await guest.get("/v3/events", room_id=room_id, from_=answer["end"], timeout=0)
    assert (refused.status, refused.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_tokens_that_are_none_are_refused(alice: Client) -> None:
    for token in ("nonsense", "t" + "9" * 17, "s1_2"):
        answer = await alice.get("/v3/events", from_=token, timeout=0)
        assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_new_room_joins_the_stream(alice: Client, bob: Client) -> None:
    room_id = await a_room(bob)
    token = (await alice.get("/v3/initialSync")).body["end"]
    await join(alice, room_id)
    await send(bob, room_id, "welcome")

    assert bodies((await alice.get("/v3/events", from_=token, timeout=0)).body["chunk"]) == ["welcome"]


async def test_who_logged_out_meanwhile_is_told_nothing(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    end = (await bob.get("/v3/initialSync")).body["end"]
    waiting = asyncio.create_task(bob.get("/v3/events", from_=end, timeout=10_000))
    await asyncio.sleep(0.2)
    await bob.ok("POST", "/v3/logout")
    await send(alice, room_id, "secret")

    assert (await waiting).status == 401

"""Room summaries and mutual rooms over HTTP."""

from typing import Any

import pytest

from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, join, leave, set_state
from tests.rooms import create_room

PUBLIC, INVITE, KNOCK = {"join_rule": "public"}, {"join_rule": "invite"}, {"join_rule": "knock"}


async def summary(client: Client, room: str) -> tuple[int, dict[str, object]]:
    answer = await client.get(f"/v1/room_summary/{quote(room)}")
    return answer.status, answer.body


async def test_the_summary_of_a_public_room(alice: Client, bob: Client, server: Server) -> None:
    alias = f"summary-{alice.user_id[1:].partition(':')[0]}"
    room_id = await a_room(
        alice,
        bob,
        name="Den",
        topic="talk",
        room_alias_name=alias,
        creation_content={"type": "m.space"},
        visibility="world_readable",
    )
    await set_state(alice, room_id, "m.room.avatar", {"url": "mxc://hearth.test/abc"})
    version = (await alice.get(f"/v3/rooms/{quote(room_id)}/state/m.room.create")).body["room_version"]

    expected = {
        "room_id": room_id,
        "name": "Den",
        "topic": "talk",
        "avatar_url": "mxc://hearth.test/abc",
        "canonical_alias": f"#{alias}:hearth.test",
        "num_joined_members": 2,
        "world_readable": True,
        "guest_can_join": False,
        "join_rule": "public",
        "room_type": "m.space",
        "room_version": version,
    }
    assert await summary(server.anonymous, room_id) == (200, expected)
    assert await summary(server.anonymous, f"#{alias}:hearth.test") == (200, expected)
    assert await summary(bob, room_id) == (200, expected | {"membership": "join"})
    for path in (f"summary/{quote(room_id)}", f"rooms/{quote(room_id)}/summary"):
        old = await server.anonymous.get(f"/unstable/im.nheko.summary/{path}")
        assert old.body == expected | {"im.nheko.summary.room_version": version, "im.nheko.summary.version": version}


@pytest.mark.parametrize(
    ("join_rules", "membership", "status"),
    [
        (PUBLIC, None, 200),
        (KNOCK, None, 200),
        (INVITE, None, 404),
        (INVITE, "invite", 200),
        (INVITE, "join", 200),
        (INVITE, "leave", 404),
        (INVITE, "ban", 404),
    ],
)
async def test_who_may_have_a_summary(
    alice: Client, bob: Client, server: Server, join_rules: dict[str, object], membership: str | None, status: int
) -> None:
    room_id = await a_room(alice)
    if membership in ("join", "leave"):
        await join(bob, room_id)
    if membership == "leave":
        await leave(bob, room_id)
    if membership in ("invite", "ban"):
        await act(alice, membership, room_id, bob)
    await set_state(alice, room_id, "m.room.join_rules", join_rules)

    got, body = await summary(bob, room_id)

    assert got == status
    assert body.get("membership", body.get("errcode")) == ((membership or "leave") if status == 200 else "M_NOT_FOUND")
    anonymous, _ = await summary(server.anonymous, room_id)
    assert anonymous == (404 if join_rules is INVITE else 200)


async def test_a_restricted_room_is_known_to_members_of_its_rooms(alice: Client, bob: Client, server: Server) -> None:
    carol = await server.register("carol")
    space = await a_room(alice, bob)
    room_id = await a_room(alice)
    allow = [{"type": "m.room_membership", "room_id": space}, {"type": "org.example"}, 17]
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "restricted", "allow": allow})

    status, body = await summary(bob, room_id)

    assert (status, body["allowed_room_ids"]) == (200, [space])
    assert (await summary(carol, room_id))[0] == 404
    assert (await summary(server.anonymous, room_id))[0] == 404
    await set_state(alice, room_id, "m.room.join_rules", {"join_rule": "invite", "allow": allow})
    assert (await summary(bob, room_id))[0] == 404


async def test_rooms_that_are_not_there_have_no_summary(alice: Client) -> None:
    for room in ("!nowhere:hearth.test", "#nowhere:hearth.test"):
        assert (await summary(alice, room))[1]["errcode"] == "M_NOT_FOUND"


async def test_rooms_shared_with_another(alice: Client, bob: Client) -> None:
    shared = [await a_room(alice, bob), await a_room(bob, alice)]
    await a_room(alice)
    left = await a_room(alice, bob)
    await leave(bob, left)
    await act(alice, "invite", await a_room(alice), bob)

    body = (await alice.get("/v1/mutual_rooms", user_id=bob.user_id)).body

    assert body == {"joined": shared, "count": 2}
    nobody = (await alice.get("/v1/mutual_rooms", user_id="@nobody:elsewhere.test")).body
    assert nobody == {"joined": [], "count": 0}


@pytest.mark.one_process("pages are made short here")
async def test_mutual_rooms_come_in_pages(alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeserver.client_api.room_summaries.MUTUAL_ROOMS_PAGE", 2)
    shared = [await a_room(alice, bob) for _ in range(3)]

    first = (await alice.get("/v1/mutual_rooms", user_id=bob.user_id)).body
    second = (await alice.get("/v1/mutual_rooms", user_id=bob.user_id, from_=first["next_batch"])).body

    assert (first["joined"], first["count"]) == (shared[:2], 3)
    assert second == {"joined": shared[2:], "count": 3}


async def test_mutual_rooms_refuse_what_means_nothing(alice: Client) -> None:
    for query in ({}, {"user_id": alice.user_id}, {"user_id": "bob"}, {"user_id": "@b:c.test", "from_": "x"}):
        assert (await alice.get("/v1/mutual_rooms", **query)).status == 400


async def test_outsiders_are_shown_little_of_what_members_may_write(alice: Client, bob: Client) -> None:
    content: dict[str, dict[str, Any]] = {
        "m.room.avatar": {"url": "https://tracker.example/who-looks"},
        "m.room.topic": {"topic": "x" * 60_000},
        "m.room.name": {"name": "y" * 60_000},
        "m.room.canonical_alias": {"alias": ""},
    }
    state = [{"type": event_type, "content": each} for event_type, each in content.items()]
    room_id = await create_room(alice, preset="public_chat", visibility="public", initial_state=state)

    summary = await bob.ok("GET", f"/v1/room_summary/{quote(room_id)}")
    listed = await bob.ok("POST", "/v3/publicRooms", {"filter": {"generic_search_term": "y" * 900}})

    for shown in (summary, next(room for room in listed["chunk"] if room["room_id"] == room_id)):
        assert (len(shown["topic"]), len(shown["name"])) == (4000, 1000)
        assert not {"avatar_url", "canonical_alias"} & shown.keys()
    member = await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/state/m.room.avatar")
    assert member == content["m.room.avatar"]

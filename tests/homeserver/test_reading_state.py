"""State and members of rooms over HTTP."""

import pytest

from tests.client import Client, quote
from tests.homeserver.rooms import a_room, act, join, leave, page, redact, set_state
from tests.rooms import send


async def members(client: Client, room_id: str, **query: str) -> dict[str, str]:
    """Who is told to be what."""
    answer = await client.get(f"/v3/rooms/{quote(room_id)}/members", **query)
    assert answer.status == 200, answer.body
    return {event["state_key"]: event["content"]["membership"] for event in answer.body["chunk"]}


async def test_state_by_type_and_key_as_content_or_event(alice: Client) -> None:
    room_id = await a_room(alice, name="Den")
    event_id = await set_state(alice, room_id, "org.example", {"a": 1}, state_key="key with/slash")
    room = f"/v3/rooms/{quote(room_id)}/state"

    assert (await alice.get(f"{room}/m.room.name")).body == {"name": "Den"}
    assert (await alice.get(f"{room}/m.room.name/")).body == {"name": "Den"}
    assert (await alice.get(f"{room}/org.example/{quote('key with/slash')}")).body == {"a": 1}
    event = (await alice.get(f"{room}/org.example/{quote('key with/slash')}", format="event")).body
    assert (event["event_id"], event["content"], event["sender"]) == (event_id, {"a": 1}, alice.user_id)
    for missing in ("org.example", "org.example/other", "org.unheard-of"):
        answer = await alice.get(f"{room}/{missing}")
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
    refused = await alice.get(f"{room}/m.room.name", format="xml")
    assert (refused.status, refused.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_the_whole_state_holds_each_entry_once_and_no_messages(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob, name="old")
    await send(alice, room_id, "no state")
    await set_state(alice, room_id, "m.room.name", {"name": "new"})

    state = (await alice.get(f"/v3/rooms/{quote(room_id)}/state")).body

    keys = [(event["type"], event["state_key"]) for event in state]
    assert len(keys) == len(set(keys))
    assert {("m.room.member", alice.user_id), ("m.room.member", bob.user_id), ("m.room.create", "")} <= set(keys)
    assert [event["content"] for event in state if event["type"] == "m.room.name"] == [{"name": "new"}]


async def test_redacted_state_is_read_as_redacted(alice: Client) -> None:
    room_id = await a_room(alice)
    event_id = await set_state(alice, room_id, "m.room.topic", {"topic": "secret"})
    await redact(alice, room_id, event_id)

    assert (await alice.get(f"/v3/rooms/{quote(room_id)}/state/m.room.topic")).body == {}
    assert "secret" not in str((await alice.get(f"/v3/rooms/{quote(room_id)}/state")).body)


async def test_members_by_membership(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    carol = await alice.anonymous().register("carol")
    dave = await alice.anonymous().register("dave")
    await act(alice, "invite", room_id, carol)
    await act(alice, "ban", room_id, dave)
    joined = {alice.user_id: "join", bob.user_id: "join"}
    invited, banned = {carol.user_id: "invite"}, {dave.user_id: "ban"}

    assert await members(alice, room_id) == joined | invited | banned
    assert await members(alice, room_id, membership="join") == joined
    assert await members(alice, room_id, not_membership="join") == invited | banned
    assert await members(alice, room_id, membership="join", not_membership="ban") == joined | invited
    assert await members(alice, room_id, membership="knock") == {}
    refused = await alice.get(f"/v3/rooms/{quote(room_id)}/members", membership="guest")
    assert (refused.status, refused.body["errcode"]) == (400, "M_INVALID_PARAM")


async def test_members_at_a_place_in_the_past(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    before = (await page(alice, room_id, limit=1))["start"]
    await join(bob, room_id)
    during = (await alice.get("/v3/sync")).body["next_batch"]
    await leave(bob, room_id)

    assert await members(alice, room_id, at=before) == {alice.user_id: "join"}
    assert await members(alice, room_id, at=during) == {alice.user_id: "join", bob.user_id: "join"}
    assert await members(alice, room_id) == {alice.user_id: "join", bob.user_id: "leave"}
    refused = await alice.get(f"/v3/rooms/{quote(room_id)}/members", at="yesterday")
    assert (refused.status, refused.body["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(("visibility", "sees"), [("shared", True), ("joined", False)])
async def test_members_of_before_the_join_are_those_that_may_be_seen(
    alice: Client, bob: Client, visibility: str, sees: bool
) -> None:
    room_id = await a_room(alice, visibility=visibility)
    carol = await alice.anonymous().register("carol")
    await join(carol, room_id)
    before = (await page(alice, room_id, limit=1))["start"]
    await leave(carol, room_id)
    await join(bob, room_id)

    at_join = {alice.user_id: "join", carol.user_id: "leave", bob.user_id: "join"}
    expected = {alice.user_id: "join", carol.user_id: "join"} if sees else at_join
    assert await members(bob, room_id, at=before) == expected


async def test_joined_members_with_their_profiles(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    await act(alice, "invite", room_id, await alice.anonymous().register("carol"))
    own = {"membership": "join", "displayname": "Bob", "avatar_url": "mxc://hearth.test/b"}
    await set_state(bob, room_id, "m.room.member", own, state_key=bob.user_id)
    await set_state(
        alice, room_id, "m.room.member", {"membership": "join", "displayname": ["no text"]}, state_key=alice.user_id
    )

    joined = (await alice.get(f"/v3/rooms/{quote(room_id)}/joined_members")).body["joined"]

    assert joined == {
        alice.user_id: {},
        bob.user_id: {"display_name": "Bob", "avatar_url": "mxc://hearth.test/b"},
    }

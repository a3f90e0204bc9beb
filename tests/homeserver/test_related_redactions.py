"""What relates to an event is redacted with it, where a client asks for that (MSC3912)."""

from typing import Any

import pytest

from tests.client import Answer, Client, quote, unique
from tests.homeserver.relating import children, edit, event, react, refer, relates_to, reply
from tests.homeserver.rooms import a_room
from tests.homeserver.syncs import set_state
from tests.rooms import send

OLD, NEW = "org.matrix.msc3912.with_relations", "with_rel_types"


async def redact_with(client: Client, room_id: str, event_id: str, body: Any, txn_id: str | None = None) -> Answer:
    path = f"/v3/rooms/{quote(room_id)}/redact/{quote(event_id)}/{txn_id or unique()}"
    return await client.put(path, body)


async def is_redacted(client: Client, room_id: str, event_id: str) -> bool:
    return "redacted_because" in (await event(client, room_id, event_id))["unsigned"]


@pytest.mark.parametrize("version", ["10", "12"])
@pytest.mark.parametrize("name", [OLD, NEW])
async def test_what_relates_in_a_named_way_goes_with_the_event(alice: Client, name: str, version: str) -> None:
    room_id = await a_room(alice, room_version=version)
    root = await send(alice, room_id, "root")
    edited, liked, voted = (
        await edit(alice, room_id, root, "edited"),
        await react(alice, room_id, root),
        await refer(alice, room_id, root),
    )
    further = await refer(alice, room_id, edited)

    answer = await redact_with(alice, room_id, root, {"reason": "gone", name: ["m.replace", "m.annotation"]})

    assert answer.status == 200
    found = [await is_redacted(alice, room_id, each) for each in (root, edited, liked, voted, further)]
    assert found == [True, True, True, False, False]
    because = (await event(alice, room_id, edited))["unsigned"]["redacted_because"]
    assert because["content"] == {"reason": "gone", "redacts": edited}
    assert await children(alice, room_id, root) == [voted]


async def test_an_asterisk_means_every_way_and_many_are_redacted(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    related = [await reply(alice, room_id, root, f"{number}") for number in range(60)]
    related += [await refer(alice, room_id, root)]

    await redact_with(alice, room_id, root, {NEW: ["*"]})

    assert await children(alice, room_id, root) == []
    assert all([await is_redacted(alice, room_id, each) for each in related])


async def test_nobody_redacts_more_than_they_may(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(bob, room_id, "root")
    own, others = await reply(bob, room_id, root), await reply(alice, room_id, root)
    no_edit = await edit(alice, room_id, root, "not hers to edit")
    acl = await set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], **relates_to("m.thread", root)})

    assert (await redact_with(bob, room_id, root, {NEW: ["*"]})).status == 200
    assert [await is_redacted(alice, room_id, each) for each in (own, others, no_edit, acl)] == [True] + [False] * 3

    assert (await redact_with(alice, room_id, root, {NEW: ["*"]})).status == 200
    assert [await is_redacted(alice, room_id, each) for each in (others, no_edit, acl)] == [True, False, False]


async def test_a_repeated_request_goes_on_with_what_is_left(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    first = await redact_with(alice, room_id, root, {}, "again")
    late = await reply(alice, room_id, root)

    again = await redact_with(alice, room_id, root, {NEW: ["m.thread"]}, "again")

    assert again.body == first.body
    assert await is_redacted(alice, room_id, late)


@pytest.mark.parametrize("wrong", ["m.thread", {"m.thread": True}, [1], ["\0"], ["x"] * 101])
async def test_what_is_no_list_of_types_is_refused_before_anything_is_redacted(alice: Client, wrong: object) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")

    answer = await redact_with(alice, room_id, root, {NEW: wrong})

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert not await is_redacted(alice, room_id, root)

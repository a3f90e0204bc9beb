"""Sending messages and state (Client-Server API, "Sending events to a room", "Transaction identifiers")."""

import asyncio
from itertools import pairwise

import pytest

from federation.protocol.types import UserID
from tests.client import Client, Server, quote
from tests.homeserver.relating import event as one_event
from tests.homeserver.relating import reply
from tests.rooms import create_room, join, pdus_of, put_state, send, send_event, state_of

TEXT = {"msgtype": "m.text", "body": "hello"}


async def test_a_message_is_at_the_end_of_its_room(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)

    event_id = await send(bob, room_id, "hello")

    last = (await pdus_of(server, room_id))[-1]
    assert (last["event_id"], last["sender"], last["content"]["body"]) == (event_id, bob.user_id, "hello")


async def test_a_repeated_transaction_gets_the_first_answer(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"

    first = await alice.ok("PUT", path, TEXT)
    again = await alice.ok("PUT", path, {"msgtype": "m.text", "body": "something else"})

    assert again == first
    assert [event["content"] for event in await pdus_of(server, room_id, "m.room.message")] == [TEXT]


async def test_concurrent_requests_of_one_transaction_make_one_event(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"

    answers = await asyncio.gather(*(alice.ok("PUT", path, TEXT) for _ in range(10)))

    assert len({answer["event_id"] for answer in answers}) == 1
    assert len(await pdus_of(server, room_id, "m.room.message")) == 1


@pytest.mark.one_process("several that write make the graph fork")
async def test_many_concurrent_senders_make_a_line(server: Server, alice: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")

    sent = await asyncio.gather(*(send(alice, room_id, f"message {number}") for number in range(64)))

    events = await pdus_of(server, room_id)
    assert sorted(sent) == sorted(event["event_id"] for event in events if event["type"] == "m.room.message")
    for before, event in pairwise(events):
        assert (event["prev_events"], event["depth"]) == ([before["event_id"]], before["depth"] + 1)


async def test_state_is_set_and_read(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    for path in ("m.room.topic", "m.room.topic/"):
        body = {"topic": f"by {path}"}
        event_id = (await alice.ok("PUT", f"/v3/rooms/{room_id}/state/{path}", body))["event_id"]
        assert (await state_of(server, room_id))["m.room.topic", ""]["content"] == body
        again = (await alice.ok("PUT", f"/v3/rooms/{room_id}/state/{path}", body))["event_id"]
        assert again == event_id


async def test_a_transaction_is_remembered_over_a_restart(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"
    first = await alice.ok("PUT", path, TEXT)
    server.application.rooms.messages._transactions.clear()  # what a restart forgets

    assert await alice.ok("PUT", path, TEXT) == first
    assert await send(alice, room_id, "and it goes on")
    assert len(await pdus_of(server, room_id, "m.room.message")) == 2


async def test_a_repeated_transaction_is_answered_to_who_has_left(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"
    first = await bob.ok("PUT", path, TEXT)
    await bob.ok("POST", f"/v3/rooms/{room_id}/leave")
    server.application.rooms.messages._transactions.clear()

    assert await bob.ok("PUT", path, TEXT) == first


async def test_transactions_of_other_devices_types_and_rooms_are_others(server: Server, alice: Client) -> None:
    room_id, other = await create_room(alice), await create_room(alice)
    phone = await alice.login()
    paths = [f"/v3/rooms/{room}/send/{kind}/txn1" for room in (room_id, other) for kind in ("m.room.message", "x.y")]

    answers = [await who.ok("PUT", path, TEXT) for who in (alice, phone) for path in paths]

    assert len({answer["event_id"] for answer in answers}) == 8


async def test_a_failed_transaction_may_be_tried_again(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    path = f"/v3/rooms/{room_id}/send/m.room.message/txn1"
    assert (await bob.put(path, TEXT)).status == 403

    await join(bob, room_id)

    assert (await bob.put(path, TEXT)).status == 200


@pytest.mark.one_process("several that write make the graph fork")
async def test_many_senders_with_state_among_them_lose_nothing(server: Server, alice: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    users = [await server.register() for _ in range(8)]

    async def life(user: Client) -> list[str]:
        await join(user, room_id)
        sent = await asyncio.gather(*(send(user, room_id, f"{number}") for number in range(8)))
        await user.ok("POST", f"/v3/rooms/{room_id}/leave")
        return sent

    sent = [event_id for ids in await asyncio.gather(*map(life, users)) for event_id in ids]

    pdus = await pdus_of(server, room_id)
    assert sorted(sent) == sorted(pdu["event_id"] for pdu in pdus if pdu["type"] == "m.room.message")
    for before, pdu in pairwise(pdus):
        assert pdu["prev_events"] == [before["event_id"]]


REDACTIONS = ["path", "content"]


@pytest.mark.parametrize("version", ["1", "3", "10", "11", "12"])
@pytest.mark.parametrize("by", REDACTIONS)
async def test_a_redaction_names_its_target_as_the_version_wants(
    server: Server, alice: Client, version: str, by: str
) -> None:
    room_id = await create_room(alice, room_version=version)
    target = await send(alice, room_id, "oops")

    if by == "path":
        path = f"/v3/rooms/{room_id}/redact/{quote(target)}/r1"
        event_id = (await alice.ok("PUT", path, {"reason": "typo"}))["event_id"]
    else:
        event_id = await send_event(alice, room_id, "m.room.redaction", {"redacts": target, "reason": "typo"})

    pdu = (await pdus_of(server, room_id))[-1]
    assert (pdu["event_id"], pdu["type"], pdu["content"]["reason"]) == (event_id, "m.room.redaction", "typo")
    if version in ("11", "12"):
        assert (pdu["content"]["redacts"], "redacts" in pdu) == (target, False)
    else:
        assert (pdu["redacts"], "redacts" in pdu["content"]) == (target, False)


async def test_others_events_are_redacted_by_who_may(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    by_alice, by_bob = await send(alice, room_id, "mine"), await send(bob, room_id, "mine")

    status, body = await bob.put(f"/v3/rooms/{room_id}/redact/{quote(by_alice)}/r1")

    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")
    await bob.ok("PUT", f"/v3/rooms/{room_id}/redact/{quote(by_bob)}/r2", {})
    await alice.ok("PUT", f"/v3/rooms/{room_id}/redact/{quote(by_bob)}/r3", {})


async def test_what_cannot_be_redacted(server: Server, alice: Client) -> None:
    room_id, other = await create_room(alice), await create_room(alice)
    elsewhere = await send(alice, other, "elsewhere")
    create = (await pdus_of(server, room_id))[0]["event_id"]

    for target, status in [("$" + "a" * 43, 404), (elsewhere, 404), (create, 403), ("nothing", 400)]:
        assert (await alice.put(f"/v3/rooms/{room_id}/redact/{quote(target)}/x{status}")).status == status
    status, body = await alice.put(f"/v3/rooms/{room_id}/send/m.room.redaction/t1", {"reason": "none"})
    assert (status, body["errcode"]) == (400, "M_BAD_JSON")


def reaction(parent: str, key: str = "+") -> dict[str, object]:
    """The content of a reaction."""
    return {"m.relates_to": {"rel_type": "m.annotation", "event_id": parent, "key": key}}


async def test_an_event_is_annotated_once_with_the_same(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    parent = await send(alice, room_id, "what do you think?")
    first = await send_event(alice, room_id, "m.reaction", reaction(parent))

    answer = await alice.put(f"/v3/rooms/{room_id}/send/m.reaction/again", reaction(parent))

    assert (answer.status, answer.body["errcode"]) == (400, "M_DUPLICATE_ANNOTATION")
    await send_event(alice, room_id, "m.reaction", reaction(parent, "-"))
    await send_event(bob, room_id, "m.reaction", reaction(parent))
    await alice.ok("PUT", f"/v3/rooms/{room_id}/redact/{quote(first)}/r1", {})
    await send_event(alice, room_id, "m.reaction", reaction(parent))


@pytest.mark.one_process("of the same moment in several processes both are made")
async def test_the_same_annotation_at_once_is_made_once(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    parent = await send(alice, room_id, "what do you think?")
    path = f"/v3/rooms/{room_id}/send/m.reaction"

    answers = await asyncio.gather(*(alice.put(f"{path}/{number}", reaction(parent)) for number in range(8)))

    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    assert len(await pdus_of(server, room_id, "m.reaction")) == 1


async def test_a_thread_does_not_start_within_a_thread(alice: Client) -> None:
    room_id = await create_room(alice)
    root = await send(alice, room_id, "root")
    thread = {"rel_type": "m.thread", "event_id": root}
    child = await send(alice, room_id, "child", **{"m.relates_to": thread})
    await send(alice, room_id, "second child", **{"m.relates_to": thread})

    content = {**TEXT, "m.relates_to": {"rel_type": "m.thread", "event_id": child}}
    answer = await alice.put(f"/v3/rooms/{room_id}/send/m.room.message/nested", content)

    assert (answer.status, answer.body["errcode"]) == (400, "M_UNKNOWN")


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        (b"nothing", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'{"a": 1.5}', 400, "M_BAD_JSON"),
        (b'{"a": 9007199254740992}', 400, "M_BAD_JSON"),
        (b'{"body": "' + b"x" * 66_000 + b'"}', 413, "M_TOO_LARGE"),
        (b'{"body": "' + b"x" * 200_000 + b'"}', 413, "M_TOO_LARGE"),
    ],
)
async def test_what_is_no_event_is_refused(alice: Client, body: bytes, status: int, errcode: str) -> None:
    room_id = await create_room(alice)

    for path in ("send/m.room.message/t1", "state/m.room.topic"):
        answer = await alice.request("PUT", f"/v3/rooms/{room_id}/{path}", body)
        assert (answer.status, answer.body["errcode"]) == (status, errcode)


async def test_only_ones_own_state_has_ones_user_id(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat")
    await put_state(alice, room_id, "org.example.mine", {"a": 1}, alice.user_id)

    path = f"/v3/rooms/{room_id}/state/org.example.mine/{quote(bob.user_id)}"
    answer = await alice.put(path, {"a": 1})

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


async def test_redacted_state_is_set_anew(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    first = await put_state(alice, room_id, "m.room.topic", {"topic": "again"})
    await alice.ok("PUT", f"/v3/rooms/{room_id}/redact/{quote(first)}/r1", {})

    assert await put_state(alice, room_id, "m.room.topic", {"topic": "again"}) != first


async def test_a_room_that_is_not_there(alice: Client) -> None:
    for path in ("send/m.room.message/t1", "state/m.room.topic", "redact/$a:b/t1"):
        assert (await alice.put(f"/v3/rooms/!none:hearth.test/{path}", TEXT)).status == 404


async def test_a_suspended_user_reads_and_leaves(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat", power_level_content_override={"users": {bob.user_id: 50}})
    other = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    own, others = await send(bob, room_id, "mine"), await send(alice, room_id, "hers")
    answer_to_own = await reply(alice, room_id, own)
    await server.application.accounts.service.set_suspended(UserID(bob.user_id), is_suspended=True)

    for method, path, body in [
        ("PUT", f"/v3/rooms/{room_id}/send/m.room.message/suspended", TEXT),
        ("PUT", f"/v3/rooms/{room_id}/state/m.room.topic", {"topic": "x"}),
        ("POST", f"/v3/join/{quote(other)}", {}),
        ("POST", f"/v3/rooms/{room_id}/invite", {"user_id": alice.user_id}),
        ("POST", "/v3/createRoom", {}),
        ("PUT", f"/v3/rooms/{room_id}/redact/{quote(others)}/suspended", {}),
        ("PUT", f"/v3/rooms/{room_id}/send/m.room.redaction/suspended", {"redacts": others}),
    ]:
        answer = await bob.request(method, path, body)
        assert (answer.status, answer.body["errcode"]) == (403, "M_USER_SUSPENDED")
    await bob.ok("PUT", f"/v3/rooms/{room_id}/redact/{quote(own)}/suspended", {"with_rel_types": ["*"]})
    assert "redacted_because" in (await one_event(alice, room_id, own))["unsigned"]
    assert "redacted_because" not in (await one_event(alice, room_id, answer_to_own))["unsigned"]
    await bob.ok("POST", f"/v3/rooms/{room_id}/leave")

"""To-device messages (Client-Server API, "Send-to-Device messaging")."""

import asyncio
import json
from typing import Any

import pytest
from yarl import URL

from homeserver.services import send_to_device as send_to_device_service
from storage import send_to_device
from storage.database import Tx
from tests.client import Client, Server, unique

PATH = "/v3/sendToDevice/m.test"


async def device_number(tx: Tx, client: Client) -> int:
    """What the database calls a client's device."""
    row = await tx.fetch_one(
        "select device from devices where user_id = %s and device_id = %s", (client.user_id, client.device_id)
    )
    assert row is not None
    number: int = row[0]
    return number


async def inbox(server: Server, client: Client, after: int = 0, limit: int = 100) -> list[Any]:
    """The contents that wait for a device, as /sync would list them."""
    application = server.application
    async with application.database.read() as tx:
        number = await device_number(tx, client)
        events, _ = await send_to_device.pending(tx, number, after, application.tail.position, limit)
    return [json.loads(event) for event in events]


async def send(sender: Client, messages: Any, txn_id: str | None = None) -> int:
    """Send and give the status."""
    return (await sender.put(f"{PATH}/{txn_id or unique('txn')}", {"messages": messages})).status


async def test_a_message_reaches_the_device_that_it_is_for(server: Server, alice: Client, bob: Client) -> None:
    other = await bob.login()

    assert await send(alice, {bob.user_id: {bob.device_id: {"hello": "bob"}}}) == 200

    event = {"type": "m.test", "sender": alice.user_id, "content": {"hello": "bob"}}
    assert await inbox(server, bob) == [event]
    assert await inbox(server, other) == []


async def test_a_star_reaches_all_devices_and_a_name_goes_before_it(server: Server, alice: Client, bob: Client) -> None:
    other = await bob.login()

    await send(alice, {bob.user_id: {"*": {"to": "all"}, bob.device_id: {"to": "one"}}, alice.user_id: {"*": {}}})

    assert [event["content"] for event in await inbox(server, bob)] == [{"to": "one"}]
    assert [event["content"] for event in await inbox(server, other)] == [{"to": "all"}]
    assert [event["content"] for event in await inbox(server, alice)] == [{}]


async def test_unknown_devices_and_users_are_ignored(server: Server, alice: Client, bob: Client) -> None:
    messages: dict[str, Any] = {
        bob.user_id: {"NOSUCH": {}, bob.device_id: {"n": 1}},
        "@nobody:hearth.test": {"*": {}},
        "@carol:elsewhere.test": {"*": {}},
    }

    assert await send(alice, messages) == 200
    assert [event["content"] for event in await inbox(server, bob)] == [{"n": 1}]


async def test_a_repeated_transaction_sends_once(server: Server, alice: Client, bob: Client) -> None:
    messages: dict[str, Any] = {bob.user_id: {bob.device_id: {}}}

    assert await asyncio.gather(*(send(alice, messages, "same") for _ in range(5))) == [200] * 5

    assert len(await inbox(server, bob)) == 1


async def test_transactions_are_told_apart_by_device_and_event_type(server: Server, alice: Client, bob: Client) -> None:
    body: dict[str, Any] = {"messages": {bob.user_id: {bob.device_id: {}}}}

    await alice.ok("PUT", "/v3/sendToDevice/m.one/same", body)
    await alice.ok("PUT", "/v3/sendToDevice/m.two/same", body)
    await (await alice.login()).ok("PUT", "/v3/sendToDevice/m.one/same", body)

    assert [event["type"] for event in await inbox(server, bob)] == ["m.one", "m.two", "m.one"]


async def test_messages_come_in_order_a_page_at_a_time(server: Server, alice: Client, bob: Client) -> None:
    for number in range(5):
        await send(alice, {bob.user_id: {bob.device_id: {"n": number}}})
    database, upto = server.application.database, server.application.tail.position

    async with database.read() as tx:
        number = await device_number(tx, bob)
        first, token = await send_to_device.pending(tx, number, 0, upto, 3)
        second, end = await send_to_device.pending(tx, number, token, upto, 3)

    assert [json.loads(event)["content"]["n"] for event in first + second] == [0, 1, 2, 3, 4]
    assert (len(first), end) == (3, upto)


async def test_what_a_token_proves_received_is_deleted(server: Server, alice: Client, bob: Client) -> None:
    for number in range(3):
        await send(alice, {bob.user_id: {bob.device_id: {"n": number}}})

    async with server.application.database.transaction() as tx:
        number = await device_number(tx, bob)
        _, token = await send_to_device.pending(tx, number, 0, server.application.tail.position, 2)
        assert await send_to_device.delete_upto(tx, number, token) == 2

    assert [event["content"]["n"] for event in await inbox(server, bob)] == [2]


async def test_a_deleted_device_leaves_no_inbox(server: Server, alice: Client, bob: Client) -> None:
    phone = await bob.login()
    await send(alice, {bob.user_id: {phone.device_id: {}}})
    await phone.ok("POST", "/v3/logout")

    again = await bob.login(device_id=phone.device_id)

    assert await inbox(server, again) == []


async def test_a_small_message_is_in_the_window_and_a_large_one_is_not(
    server: Server, alice: Client, bob: Client
) -> None:
    tail = server.application.tail
    after = tail.position
    await send(alice, {bob.user_id: {bob.device_id: {"n": 1}}})
    async with server.application.database.read() as tx:
        number = await device_number(tx, bob)

    small = send_to_device.from_window(tail.for_user(bob.user_id, after), number, upto=tail.position)  # type: ignore[arg-type] # plain text
    await send(alice, {bob.user_id: {bob.device_id: {"n": "x" * 5000}}})
    large = send_to_device.from_window(tail.for_user(bob.user_id, after), number, upto=tail.position)  # type: ignore[arg-type] # plain text

    assert small is not None
    assert [json.loads(event)["content"] for event in small[0]] == [{"n": 1}]
    assert large is None
    assert send_to_device.from_window(tail.for_user(bob.user_id, after), number, upto=after) == ([], None)  # type: ignore[arg-type] # plain text
    assert len(await inbox(server, bob)) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": {"nobody": {}}},
        {"messages": {"@a:hearth.test": []}},
        {"messages": {"@a:hearth.test": {"*": None}}},
        {"messages": {"@a:hearth.test": {"*": "text"}}},
        {"messages": {"@a:hearth.test": {"\0": {}}}},
        {"messages": {"@a:hearth.test": {"*": {"n": 1.5}}}},
        {"messages": {"@a:hearth.test": {"*": {"n": 2**60}}}},
    ],
    ids=repr,
)
async def test_malformed_messages_are_refused(alice: Client, body: Any) -> None:
    assert (await alice.put(f"{PATH}/{unique()}", body)).status == 400


async def test_a_refused_transaction_can_be_repeated_in_good_form(server: Server, alice: Client, bob: Client) -> None:
    assert await send(alice, {bob.user_id: {bob.device_id: {"text": "x" * 70_000}}}, "once") == 413
    assert await send(alice, {bob.user_id: {bob.device_id: {}}}, "once") == 200

    assert len(await inbox(server, bob)) == 1


async def test_too_many_messages_are_refused(alice: Client) -> None:
    assert await send(alice, {alice.user_id: {str(number): {} for number in range(5001)}}) == 413


@pytest.mark.parametrize("path", ["/v3/sendToDevice/%00/t", "/v3/sendToDevice/m.test/%00"])
async def test_impossible_names_in_the_path_are_refused(alice: Client, path: str) -> None:
    url = URL(f"{alice.base_url}/_matrix/client{path}", encoded=True)
    headers = {"Authorization": f"Bearer {alice.access_token}"}
    async with alice.session.put(url, headers=headers, json={"messages": {}}) as response:
        assert response.status == 400


@pytest.mark.one_process("a limit is lowered here")
async def test_what_one_request_puts_into_all_inboxes_is_limited(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_to_device_service, "MAX_TOTAL_BYTES", 2500)
    content = {"a": "x" * 1000}
    assert await send(alice, {bob.user_id: {"*": content}, alice.user_id: {"*": content}}) == 200
    await bob.login()

    assert await send(alice, {bob.user_id: {"*": content}, alice.user_id: {"*": content}}) == 413
    assert [event["content"] for event in await inbox(server, bob)] == [content]

"""What is left of devices and their messages is deleted in time, and nothing else is."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from homeserver.services import key_upkeep
from tests.client import Client, Server
from tests.devices import Device
from tests.servers import running


@pytest_asyncio.fixture
async def server(conninfo: str) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with running(conninfo) as server:
        yield server


async def rows(server: Server, table: str) -> int:
    """How many a table has."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one(f"select count(*) from {table}")  # noqa: S608  # a name from below
    assert row is not None
    count: int = row[0]
    return count


async def send(sender: Client, receiver: Client, count: int) -> None:
    """To-device messages."""
    for number in range(count):
        messages = {receiver.user_id: {receiver.device_id: {"n": number}}}
        await sender.ok("PUT", f"/v3/sendToDevice/m.test/{receiver.device_id}{number}", {"messages": messages})


async def test_inboxes_of_deleted_devices_go_and_others_stay(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_upkeep, "ROWS_AT_ONCE", 2)
    alice = await server.register("alice")
    phone, tablet = await alice.login(), await alice.login()
    for receiver in (alice, phone, tablet):
        await send(alice, receiver, 5)
    for gone in (phone, tablet):
        await gone.ok("POST", "/v3/logout")

    await server.application.keys.upkeep.run_once()

    assert await rows(server, "to_device_messages") == 5
    assert len((await alice.ok("GET", "/v3/sync"))["to_device"]["events"]) == 5


async def test_old_transactions_are_forgotten_and_new_ones_are_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await server.register("alice")
    await send(alice, alice, 3)

    await server.application.keys.upkeep.run_once()
    await send(alice, alice, 3)
    assert await rows(server, "to_device_messages") == 3

    monkeypatch.setattr(key_upkeep, "TRANSACTIONS_KEPT_MS", -1000)
    await server.application.keys.upkeep.run_once()
    assert await rows(server, "to_device_transactions") == 0


async def test_one_change_of_a_device_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_upkeep, "CHANGES_KEPT", 0)
    alice = await server.register("alice")
    phone = await alice.login()
    token = (await alice.ok("GET", "/v3/sync"))["next_batch"]
    for client in (alice, phone, alice, phone, alice):
        device = Device(client)
        await device.upload(device_keys=device.identity())
        await server.application.keys.upkeep.run_once()

    assert await rows(server, "device_list_changes") == 2
    changed = await alice.ok("GET", "/v3/keys/changes", params={"from": token})
    assert changed["changed"] == [alice.user_id]

"""Two matrix-nio clients talk in an encrypted room: a client that other people wrote finds all that it needs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nio
import pytest
import pytest_asyncio

from tests.clients import Client, Server
from tests.servers import running

pytestmark = pytest.mark.interoperability


@pytest_asyncio.fixture
async def server(conninfo: str) -> AsyncIterator[Server]:
    """A server of the test's own."""
    async with running(conninfo) as server:
        yield server


@asynccontextmanager
async def a_nio_client(client: Client, store: Path) -> AsyncIterator[nio.AsyncClient]:
    """nio with the login of a test client."""
    config = nio.AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
    nio_client = nio.AsyncClient(client.base_url, client.user_id, client.device_id, str(store), config)
    nio_client.restore_login(client.user_id, client.device_id, client.access_token)
    try:
        yield nio_client
    finally:
        await nio_client.close()


async def settle(*clients: nio.AsyncClient) -> None:
    """Sync, and do what clients do between syncs: upload, query, claim, send."""
    for client in clients:
        response = await client.sync(timeout=0)
        assert isinstance(response, nio.SyncResponse), response
        if client.should_upload_keys:
            assert isinstance(await client.keys_upload(), nio.KeysUploadResponse)
        if client.should_query_keys:
            assert isinstance(await client.keys_query(), nio.KeysQueryResponse)
        if client.should_claim_keys:
            assert isinstance(await client.keys_claim(client.get_users_for_key_claiming()), nio.KeysClaimResponse)
        await client.send_to_device_messages()


async def test_nio_clients_read_each_other_in_an_encrypted_room(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    async with (
        a_nio_client(alice, tmp_path_factory.mktemp("alice")) as alices,
        a_nio_client(bob, tmp_path_factory.mktemp("bob")) as bobs,
    ):
        await settle(alices, bobs)
        created = await alices.room_create(
            invite=[bob.user_id],
            initial_state=[
                {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
            ],
        )
        assert isinstance(created, nio.RoomCreateResponse), created
        assert isinstance(await bobs.join(created.room_id), nio.JoinResponse)
        received: dict[str, list[str]] = {alice.user_id: [], bob.user_id: []}

        def note(client: nio.AsyncClient) -> None:
            async def on_text(_room: nio.MatrixRoom, event: nio.Event) -> None:
                assert isinstance(event, nio.RoomMessageText)
                assert event.decrypted
                received[client.user_id].append(event.body)

            client.add_event_callback(on_text, nio.RoomMessageText)

        async def say(client: nio.AsyncClient, text: str) -> Any:
            content = {"msgtype": "m.text", "body": text}
            return await client.room_send(created.room_id, "m.room.message", content, ignore_unverified_devices=True)

        for client in (alices, bobs):
            note(client)
        for _ in range(2):
            await settle(alices, bobs)
        assert isinstance(await say(alices, "hello bob"), nio.RoomSendResponse)
        await settle(alices, bobs)
        assert isinstance(await say(bobs, "hello alice"), nio.RoomSendResponse)
        async with asyncio.timeout(20):
            while len(received[alice.user_id]) < 2 or len(received[bob.user_id]) < 2:
                await settle(alices, bobs)

    assert set(received[alice.user_id]) == set(received[bob.user_id]) == {"hello bob", "hello alice"}

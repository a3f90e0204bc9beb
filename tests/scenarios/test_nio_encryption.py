"""matrix-nio, a client that other people wrote, with encryption of its own: two users with two devices each.

They verify each other by comparing emoji (SAS), talk in an encrypted room, and who joins later reads what history
allows. All of it over HTTP to a real server, which must keep nothing that it could read.
"""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nio
import pytest
import pytest_asyncio

from tests.client import Client
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving
from tests.scenarios.plaintext import places_of

pytestmark = pytest.mark.interoperability

ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


@pytest_asyncio.fixture(scope="module")
async def server() -> AsyncIterator[HearthProcess]:
    """One real server for this module."""
    async with serving() as server:
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


async def settle(*clients: nio.AsyncClient, turns: int = 1) -> None:
    """Sync, and do what clients do between syncs: upload, query, claim, send."""
    for client in clients * turns:
        response = await client.sync(timeout=0)
        assert isinstance(response, nio.SyncResponse), response
        if client.should_upload_keys:
            assert isinstance(await client.keys_upload(), nio.KeysUploadResponse)
        if client.should_query_keys:
            assert isinstance(await client.keys_query(), nio.KeysQueryResponse)
        if client.should_claim_keys:
            assert isinstance(await client.keys_claim(client.get_users_for_key_claiming()), nio.KeysClaimResponse)
        await client.send_to_device_messages()


async def verify(first: nio.AsyncClient, second: nio.AsyncClient) -> None:
    """Compare emoji; afterwards each device trusts the other."""
    device = first.device_store[second.user_id][second.device_id]
    assert isinstance(await first.start_key_verification(device), nio.ToDeviceResponse)
    await settle(second)
    (transaction_id,) = [
        number for number, sas in second.key_verifications.items() if not sas.verified and not sas.canceled
    ]
    assert isinstance(await second.accept_key_verification(transaction_id), nio.ToDeviceResponse)
    await settle(first, second, first)
    sides = [client.key_verifications[transaction_id] for client in (first, second)]
    assert sides[0].get_emoji() == sides[1].get_emoji()
    for client in (first, second):
        assert isinstance(await client.confirm_short_auth_string(transaction_id), nio.ToDeviceResponse)
    await settle(second, first)
    assert all(side.verified for side in sides)
    assert first.device_store[second.user_id][second.device_id].verified
    assert second.device_store[first.user_id][first.device_id].verified


class Party:
    """Two users with two devices each, who have verified one another."""

    def __init__(self, alices: Sequence[nio.AsyncClient], bobs: Sequence[nio.AsyncClient]) -> None:
        self.alices = alices
        self.bobs = bobs
        self.everybody = (*alices, *bobs)
        self.received: dict[str, list[str]] = {}
        for client in self.everybody:
            self._note(client)

    def _note(self, client: nio.AsyncClient) -> None:
        texts = self.received.setdefault(client.device_id, [])

        async def on_text(_room: nio.MatrixRoom, event: nio.Event) -> None:
            assert isinstance(event, nio.RoomMessageText)
            assert event.decrypted
            texts.append(event.body)

        client.add_event_callback(on_text, nio.RoomMessageText)

    async def say(self, client: nio.AsyncClient, room_id: str, text: str) -> None:
        """Send an encrypted message; nio refuses where a device of the room is not verified."""
        content = {"msgtype": "m.text", "body": text}
        response = await client.room_send(room_id, "m.room.message", content)
        assert isinstance(response, nio.RoomSendResponse), response


@pytest_asyncio.fixture
async def party(server: HearthProcess, tmp_path: Path) -> AsyncIterator[Party]:
    """The party, met in a room of their own so that each knows of the others' devices."""
    async with a_visitor(server) as visitor, AsyncExitStack() as stack:
        alice, bob = await visitor.register("alice"), await visitor.register("bob")
        clients = []
        for number, client in enumerate((alice, await alice.login(), bob, await bob.login())):
            (tmp_path / str(number)).mkdir()
            clients.append(await stack.enter_async_context(a_nio_client(client, tmp_path / str(number))))
        party = Party(clients[:2], clients[2:])
        await settle(*clients)
        met = await create(party.alices[0], "shared", invite=[bob.user_id])
        assert isinstance(await party.bobs[0].join(met), nio.JoinResponse)
        await settle(*clients, turns=2)
        for first, second in itertools.combinations(clients, 2):
            await verify(first, second)
        yield party


async def create(client: nio.AsyncClient, visibility: str, **options: Any) -> str:
    """A new encrypted room."""
    shown = {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": visibility}}
    created = await client.room_create(initial_state=[ENCRYPTED, shown], **options)
    assert isinstance(created, nio.RoomCreateResponse), created
    room_id: str = created.room_id
    return room_id


async def history(client: nio.AsyncClient, room_id: str) -> list[str | None]:
    """The messages that the server shows, oldest first; None for those that the device has no key for."""
    page = await client.room_messages(room_id, start="", limit=100)
    assert isinstance(page, nio.RoomMessagesResponse), page
    shown = [event for event in page.chunk if isinstance(event, nio.RoomMessageText | nio.MegolmEvent)]
    return [event.body if isinstance(event, nio.RoomMessageText) else None for event in reversed(shown)]


async def test_verified_devices_talk_and_who_joins_later_reads_what_history_allows(
    server: HearthProcess, party: Party, tmp_path: Path
) -> None:
    alice, bob = party.alices[0], party.bobs[0]
    said: dict[str, list[str]] = {}
    for visibility in ("shared", "joined"):
        said[visibility] = [f"{visibility}: confided {when}" for when in ("early", "late", "in reply")]
        early, late, reply = said[visibility]
        room_id = await create(alice, visibility)
        await settle(*party.alices)
        await party.say(alice, room_id, early)
        assert isinstance(await alice.room_invite(room_id, bob.user_id), nio.RoomInviteResponse)
        assert isinstance(await bob.join(room_id), nio.JoinResponse)
        await settle(*party.everybody, turns=2)
        await party.say(alice, room_id, late)
        await settle(*party.everybody)
        await party.say(bob, room_id, reply)
        await settle(*party.everybody, turns=2)

        assert party.received[party.alices[1].device_id][-3:] == [early, late, reply]
        for client in party.bobs:
            assert party.received[client.device_id][-2:] == [late, reply]
            assert await history(client, room_id) == ([None] if visibility == "shared" else []) + [late, reply]
        await alice.export_keys(str(tmp_path / f"keys-{visibility}"), "a passphrase")
        await bob.import_keys(str(tmp_path / f"keys-{visibility}"), "a passphrase")
        assert await history(bob, room_id) == said[visibility][visibility != "shared" :]

    texts = [text for texts in said.values() for text in texts]
    places = places_of([*texts, "m.megolm.v1.aes-sha2"], server)
    assert all(places[text] == set() for text in texts), places
    assert "table events" in places["m.megolm.v1.aes-sha2"], "the search finds nothing at all"

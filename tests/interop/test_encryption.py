"""Encrypted conversation over the border by matrix-nio."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import nio
import pytest_asyncio

from tests.interop.people import PATIENCE_SECONDS, Person
from tests.scenarios.test_nio_encryption import Party, a_nio_client, create, settle


async def settle_until(party: Party, found: Callable[[], bool]) -> None:
    """Go on syncing, and doing what clients do between syncs, until it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found():
        assert time.monotonic() < deadline, party.received
        await settle(*party.everybody)


async def compare_emoji(party: Party, first: nio.AsyncClient, second: nio.AsyncClient) -> None:
    """Verify one another over the border, as the first begins; afterwards each device trusts the other."""
    device = first.device_store[second.user_id][second.device_id]
    assert isinstance(await first.start_key_verification(device), nio.ToDeviceResponse)
    await settle_until(party, lambda: bool(second.key_verifications))
    (transaction_id,) = second.key_verifications
    assert isinstance(await second.accept_key_verification(transaction_id), nio.ToDeviceResponse)
    sides = [client.key_verifications[transaction_id] for client in (first, second)]
    await settle_until(party, lambda: all(side.established_sas is not None for side in sides))
    assert sides[0].get_emoji() == sides[1].get_emoji()
    assert isinstance(await first.confirm_short_auth_string(transaction_id), nio.ToDeviceResponse)
    # Not at once: what a user of Synapse sends while it takes a message stays there until it has more to send. It looks
    # for what to send up to the newest position of its stream that is complete, and nothing wakes it when that is.
    await settle_until(party, lambda: sides[1].state == nio.crypto.SasState.mac_received)
    assert isinstance(await second.confirm_short_auth_string(transaction_id), nio.ToDeviceResponse)
    await settle_until(party, lambda: all(side.verified for side in sides))
    assert first.device_store[second.user_id][second.device_id].verified
    assert second.device_store[first.user_id][first.device_id].verified


@pytest_asyncio.fixture
async def party(alice: Person, bob: Person, tmp_path: Path) -> AsyncIterator[Party]:
    """Two devices of each."""
    async with AsyncExitStack() as stack:
        people = [
            (person, client) for person in (alice, bob) for client in (person.client, await person.client.login())
        ]
        clients = []
        for number, (_, client) in enumerate(people):
            (tmp_path / str(number)).mkdir()
            clients.append(await stack.enter_async_context(a_nio_client(client, tmp_path / str(number))))
        yield Party(clients[:2], clients[2:])


async def meet(party: Party, host: Person, guest: Person) -> str:
    """An encrypted room of the host that everybody is in, all devices known to one another."""
    await settle(*party.everybody)
    room_id = await create(devices_of(party, host)[0], "shared", invite=[guest.user_id])
    await guest.sees_invite(room_id)
    assert isinstance(await devices_of(party, guest)[0].join(room_id), nio.JoinResponse)
    await host.sees_member(room_id, guest)

    def all_are_known() -> bool:
        return all(
            other.device_id in client.device_store[other.user_id]
            for client in party.everybody
            for other in party.everybody
            if other is not client
        )

    await settle_until(party, all_are_known)
    return room_id


def devices_of(party: Party, person: Person) -> Sequence[nio.AsyncClient]:
    """Both of them."""
    return [client for client in party.everybody if client.user_id == person.user_id]


def trust(party: Party) -> None:
    """Every device takes every other one for what it says."""
    for client in party.everybody:
        for other in party.everybody:
            if other is not client:
                client.verify_device(client.device_store[other.user_id][other.device_id])


async def test_devices_of_both_talk(host: Person, guest: Person, party: Party) -> None:
    room_id = await meet(party, host, guest)
    trust(party)

    for person in (host, guest):
        speaker, text = devices_of(party, person)[0], f"confided by {person.user_id}"
        await party.say(speaker, room_id, text)
        await until_read(party, text, [client for client in party.everybody if client is not speaker])


async def test_devices_of_both_compare_emoji(host: Person, guest: Person, party: Party) -> None:
    room_id = await meet(party, host, guest)
    first, second = devices_of(party, host)[0], devices_of(party, guest)[0]

    await compare_emoji(party, first, second)

    # nio keeps what it says from devices that its user has not verified.
    trust(party)
    await party.say(second, room_id, "it is really me")
    await until_read(party, "it is really me", [first])


async def until_read(party: Party, text: str, listeners: Sequence[nio.AsyncClient]) -> None:
    """Go on until all of these devices have read it."""
    await settle_until(party, lambda: all(text in party.received[client.device_id] for client in listeners))


async def test_a_file_in_an_encrypted_room(host: Person, guest: Person, party: Party, tmp_path: Path) -> None:
    room_id = await meet(party, host, guest)
    trust(party)
    sender, listener = devices_of(party, host)[0], devices_of(party, guest)[1]
    shown: list[nio.RoomEncryptedFile] = []

    async def note(_room: nio.MatrixRoom, event: nio.Event) -> None:
        assert isinstance(event, nio.RoomEncryptedFile)
        shown.append(event)

    listener.add_event_callback(note, nio.RoomEncryptedFile)
    plan = tmp_path / "plan.txt"
    plan.write_bytes(b"what only we may know " * 1000)
    # Not by nio's own upload, which loses the keys if the server answers before it has come to its end.
    sealed, keys = nio.crypto.encrypt_attachment(plan.read_bytes())
    (tmp_path / "sealed").write_bytes(sealed)
    uploaded, _ = await sender.upload(lambda *_: str(tmp_path / "sealed"), filesize=len(sealed))
    assert isinstance(uploaded, nio.UploadResponse), uploaded
    content = {"msgtype": "m.file", "body": "plan.txt", "file": {**keys, "url": uploaded.content_uri}}
    assert isinstance(await sender.room_send(room_id, "m.room.message", content), nio.RoomSendResponse)
    await settle_until(party, lambda: bool(shown))

    place = shown[0].url.removeprefix("mxc://")
    encrypted = await guest.client.ok("GET", f"/v1/media/download/{place}")
    assert encrypted != plan.read_bytes()
    key, sha256, iv = shown[0].key["k"], shown[0].hashes["sha256"], shown[0].iv
    assert nio.crypto.decrypt_attachment(encrypted, key, sha256, iv) == plan.read_bytes()


async def test_a_new_device_reads_what_is_said_after_it_came(
    host: Person, guest: Person, party: Party, tmp_path: Path
) -> None:
    room_id = await meet(party, host, guest)
    trust(party)
    speaker = devices_of(party, host)[0]
    await party.say(speaker, room_id, "before there is a new device")

    store = tmp_path / "new"
    store.mkdir()
    async with a_nio_client(await guest.client.login(), store) as new:
        await greet(party, new, speaker, room_id)


async def greet(party: Party, new: nio.AsyncClient, speaker: nio.AsyncClient, room_id: str) -> None:
    """Have the speaker hear of a device, trust it, and say something that it can read."""
    newest = Party([new], [client for client in party.everybody if client.user_id != new.user_id])
    await settle_until(newest, lambda: new.device_id in speaker.device_store[new.user_id])
    speaker.verify_device(speaker.device_store[new.user_id][new.device_id])
    await newest.say(speaker, room_id, "welcome, device")
    await until_read(newest, "welcome, device", [new])


async def test_a_device_that_is_logged_out_is_written_to_no_more(host: Person, guest: Person, party: Party) -> None:
    room_id = await meet(party, host, guest)
    trust(party)
    speaker, (remaining, lost) = devices_of(party, host)[0], devices_of(party, guest)
    await party.say(speaker, room_id, "to all")
    await until_read(party, "to all", [remaining, lost])

    assert isinstance(await lost.logout(), nio.LogoutResponse)
    others = Party([client for client in party.everybody if client is not lost], [])
    await settle_until(others, lambda: lost.device_id not in active(speaker, guest.user_id))
    await party.say(speaker, room_id, "among us")

    await settle_until(others, lambda: "among us" in party.received[remaining.device_id])
    assert remaining.device_id in active(speaker, guest.user_id)


def active(client: nio.AsyncClient, user_id: str) -> set[str]:
    """The devices of a user that a device would write to."""
    return {device.id for device in client.device_store.active_user_devices(user_id)}

"""Who hears of changed devices and keys, in each process (Client-Server API, "Tracking the device list for a user")."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import UserID
from homeserver.tokens import StreamToken
from storage import device_lists
from storage.database import Tx
from storage.device_lists import DeviceListChanged
from storage.end_to_end_keys import KeyCounts
from storage.send_to_device import ToDeviceMessages
from tests.client import Client, Server, quote
from tests.devices import CrossSigning, Device, a_device, claim, cross_signing
from tests.servers import running

UPLOAD = "/v3/keys/device_signing/upload"
SIGNATURES = "/v3/keys/signatures/upload"


@pytest_asyncio.fixture
async def processes(conninfo: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two processes on one database."""
    async with running(conninfo) as one, running(conninfo) as other:
        yield one, other


async def share_a_room(server: Server, *clients: Client) -> int:
    """A room with these users joined, written straight into the state: what counts is who is where."""
    async with server.application.database.transaction() as tx:
        row = await tx.fetch_one(
            "insert into rooms (room_id, room_version) values (%s, '12') returning room",
            (f"!of-{clients[0].user_id}-and-{len(clients)}-others",),
        )
        assert row is not None
        for client in clients:
            await tx.execute("insert into strings (value) values (%s) on conflict do nothing", (client.user_id,))
            await tx.execute(
                "insert into room_state (event, room, line, since_version, type, state_key, membership)"
                " select 1, %s, 0, 1, 3, id, 1 from strings where value = %s",
                (row[0], client.user_id),
            )
        number: int = row[0]
        return number


class Watch:
    """Whose changes a user would be told of, since it was made."""

    def __init__(self, server: Server, client: Client) -> None:
        self._server = server
        self._user_id = UserID(client.user_id)
        self._after = server.application.tail.position

    async def changed(self) -> set[str]:
        """As /sync and /keys/changes ask."""
        application = self._server.application
        await application.tail.catch_up()
        async with application.database.read() as tx:
            found = await device_lists.changed_between(tx, self._user_id, self._after, application.tail.position)
        return set(found)


async def test_who_shares_a_room_hears_of_new_device_keys(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    await share_a_room(server, alice, bob)
    watches = [Watch(server, client) for client in (alice, bob, carol)]

    await a_device(alice)

    assert [await watch.changed() for watch in watches] == [{alice.user_id}, {alice.user_id}, set()]


async def test_the_same_device_keys_again_are_no_change(server: Server, alice: Client) -> None:
    device = Device(alice)
    identity = device.identity()
    await device.upload(device_keys=identity)
    watch = Watch(server, alice)

    await device.upload(device_keys=identity, one_time_keys=device.one_time_keys(1))

    assert await watch.changed() == set()


async def test_renaming_and_deleting_a_device_are_changes(server: Server, alice: Client) -> None:
    phone = await alice.login()
    await a_device(phone)

    watch = Watch(server, alice)
    await phone.ok("PUT", f"/v3/devices/{phone.device_id}", {"display_name": "phone"})
    assert await watch.changed() == {alice.user_id}

    watch = Watch(server, alice)
    await phone.ok("POST", "/v3/logout")
    assert await watch.changed() == {alice.user_id}


async def test_new_cross_signing_keys_and_signatures_are_changes(server: Server, alice: Client, bob: Client) -> None:
    await share_a_room(server, alice, bob)
    device = await a_device(alice)

    watch = Watch(server, bob)
    keys = await cross_signing(alice)
    assert await watch.changed() == {alice.user_id}

    watch = Watch(server, bob)
    await alice.ok("POST", UPLOAD, keys.body())
    assert await watch.changed() == set()

    watch = Watch(server, bob)
    signed = keys.sign("self_signing", device.identity())
    for expected in ({alice.user_id}, set()):  # the second time nothing is new
        await alice.ok("POST", SIGNATURES, {alice.user_id: {alice.device_id: signed}})
        assert await watch.changed() == expected
        watch = Watch(server, bob)


async def test_only_the_signer_hears_of_a_verified_user(server: Server, alice: Client, bob: Client) -> None:
    await share_a_room(server, alice, bob)
    keys, bobs = await cross_signing(alice), await cross_signing(bob)
    watches = [Watch(server, alice), Watch(server, bob)]

    signed = keys.sign("user_signing", bobs.key("master"))
    await alice.ok("POST", SIGNATURES, {bob.user_id: {bobs.public_key("master"): signed}})

    assert [await watch.changed() for watch in watches] == [{bob.user_id}, set()]


async def test_only_the_user_hears_of_a_new_user_signing_key(server: Server, alice: Client, bob: Client) -> None:
    await share_a_room(server, alice, bob)
    keys = await cross_signing(alice)
    watches = [Watch(server, alice), Watch(server, bob)]
    keys.pairs["user_signing"] = CrossSigning(alice).pairs["user_signing"]

    session = (await alice.post(UPLOAD, keys.body())).body["session"]
    await alice.ok("POST", UPLOAD, {**keys.body(), "auth": alice.password_auth(session)})

    assert [await watch.changed() for watch in watches] == [{alice.user_id}, set()]


async def test_a_change_wakes_the_rooms_of_its_user(server: Server, alice: Client, bob: Client) -> None:
    room = await share_a_room(server, alice, bob)
    after = server.application.tail.position

    await a_device(alice)

    found = [change for _, change in server.application.tail.in_room(room, after)]
    expected = DeviceListChanged(UserID(alice.user_id), (room,), (alice.device_id,))  # type: ignore[arg-type] # plain text
    assert found == [expected]


async def test_still_sharing_tells_who_is_in_a_common_room(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    carol, dave = await server.register("carol"), await server.register("dave")
    await share_a_room(server, alice, bob)
    await share_a_room(server, bob, carol, dave)
    others = [UserID(client.user_id) for client in (bob, carol, dave)]

    async def sharing(tx: Tx) -> set[UserID]:
        return await device_lists.still_sharing(tx, UserID(alice.user_id), others)

    async with server.application.database.read() as tx:
        assert await sharing(tx) == {bob.user_id}
        monkeypatch.setattr(device_lists, "_FEW", 1)  # the way for many
        assert await sharing(tx) == {bob.user_id}


# --- other processes


async def test_another_process_follows_device_lists_and_inboxes(processes: tuple[Server, Server]) -> None:
    one, other = processes
    alice = await one.register("alice")
    room = await share_a_room(one, alice)
    await other.application.tail.catch_up()
    after = other.application.tail.position

    await a_device(alice)
    messages = {alice.user_id: {alice.device_id: {"n": 1}}}
    await alice.ok("PUT", "/v3/sendToDevice/m.test/1", {"messages": messages})
    await alice.ok("PUT", "/v3/sendToDevice/m.test/2", {"messages": {alice.user_id: {"*": {"n": "x" * 5000}}}})
    await other.application.tail.catch_up()

    def seen(server: Server) -> list[Any]:
        changes = server.application.tail.for_user(UserID(alice.user_id), after)
        return [change for _, change in changes if isinstance(change, DeviceListChanged | ToDeviceMessages)]

    assert seen(other) == seen(one)
    assert [change.rooms for change in seen(other)] == [(room,), (), ()]


@pytest.mark.one_process("each of its two servers is one")
async def test_counts_are_the_same_in_every_process(processes: tuple[Server, Server]) -> None:
    one, other = processes
    alice = await one.register("alice")
    device = await a_device(alice, one_time_keys=2)
    alice_at_other = Client(other.base_url, alice.session, alice.user_id, alice.device_id, alice.access_token)
    assert await counts(other, alice) == await counts(one, alice) == {"signed_curve25519": 2}

    await claim(alice, alice)
    assert await counts(one, alice) == {"signed_curve25519": 1}
    await other.application.tail.catch_up()
    assert await counts(other, alice) == {"signed_curve25519": 1}

    await claim(alice_at_other, alice)
    await device.upload(one_time_keys=device.one_time_keys(3))
    assert await counts(one, alice) == {"signed_curve25519": 3}


async def counts(server: Server, client: Client) -> dict[str, int]:
    """As /sync asks for them; twice, so that the second answer comes from memory."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one("select device from devices where device_id = %s", (client.device_id,))
    assert row is not None
    found: KeyCounts | None = None
    for _ in range(2):
        found = await server.application.keys.counts.get(client.user_id, client.device_id, row[0])  # type: ignore[arg-type] # plain texts
    assert found is not None
    return found.one_time_keys


# --- /keys/changes


def token(server: Server) -> str:
    """What /sync would give out now."""
    return str(StreamToken(server.application.tail.position))


async def test_keys_changes_names_who_changed_between_two_tokens(server: Server, alice: Client, bob: Client) -> None:
    carol = await server.register("carol")
    await share_a_room(server, alice, bob, carol)
    before = token(server)
    await a_device(alice)
    between = token(server)
    await a_device(carol)

    answers = [
        await bob.ok("GET", "/v3/keys/changes", params={"from": start, "to": end})
        for start, end in ((before, between), (between, token(server)), (before, token(server)), (between, between))
    ]

    expected = [{alice.user_id}, {carol.user_id}, {alice.user_id, carol.user_id}, set()]
    assert [(set(answer["changed"]), answer["left"]) for answer in answers] == [(users, []) for users in expected]
    assert await bob.ok("GET", "/v3/keys/changes", params={"from": between}) == answers[1]


@pytest.mark.parametrize("params", [{}, {"from": "x"}, {"from": "s1_1_1_1", "to": "y"}, {"from": ""}])
async def test_keys_changes_needs_tokens(alice: Client, params: dict[str, str]) -> None:
    assert (await alice.get("/v3/keys/changes", **params)).status == 400


async def test_claims_in_two_processes_never_give_a_key_twice(processes: tuple[Server, Server]) -> None:
    one, other = processes
    alice = await one.register("alice")
    alice_at_other = Client(other.base_url, alice.session, alice.user_id, alice.device_id, alice.access_token)
    device = Device(alice)
    uploaded = device.one_time_keys(40)
    await device.upload(device_keys=device.identity(), one_time_keys=uploaded)

    claims = [claim(client, alice) for client in (alice, alice_at_other) for _ in range(25)]
    given = [each for each in await asyncio.gather(*claims) if each is not None]

    assert len(given) == 40
    assert dict(given) == uploaded


async def test_keys_changes_names_who_began_and_who_ceased_to_share_a_room(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = (await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    join, leave = f"/v3/join/{quote(room_id)}", f"/v3/rooms/{quote(room_id)}/leave"
    await carol.ok("POST", join)
    tokens = [token(server)]
    for path in (join, leave):
        await bob.ok("POST", path)
        tokens.append(token(server))

    async def changes(client: Client, start: str, end: str) -> tuple[set[str], set[str]]:
        answer = await client.ok("GET", "/v3/keys/changes", params={"from": start, "to": end})
        return set(answer["changed"]), set(answer["left"])

    before, joined, left = tokens
    assert await changes(alice, joined, left) == (set(), {bob.user_id})
    assert await changes(bob, joined, left) == (set(), {alice.user_id, carol.user_id})
    await bob.ok("POST", join)
    assert await changes(alice, left, token(server)) == ({bob.user_id}, set())
    others = await changes(bob, left, token(server))
    assert (others[0] - {bob.user_id}, others[1]) == ({alice.user_id, carol.user_id}, set())
    assert await changes(carol, before, before) == (set(), set())


async def test_who_shares_another_room_has_not_left(server: Server, alice: Client, bob: Client) -> None:
    rooms = [(await alice.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"] for _ in range(2)]
    for room_id in rooms:
        await bob.ok("POST", f"/v3/join/{quote(room_id)}")
    before = token(server)

    await bob.ok("POST", f"/v3/rooms/{quote(rooms[0])}/leave")

    for client in (alice, bob):
        assert (await client.ok("GET", "/v3/keys/changes", params={"from": before}))["left"] == []


async def test_a_client_that_moves_between_processes_gets_each_message_once(processes: tuple[Server, Server]) -> None:
    one, other = processes
    alice = await one.register("alice")
    alice_at_other = Client(other.base_url, alice.session, alice.user_id, alice.device_id, alice.access_token)
    received: list[int] = []
    token = (await alice.ok("GET", "/v3/sync"))["next_batch"]
    for number in range(12):
        sender, reader = (alice, alice_at_other) if number % 3 else (alice_at_other, alice)
        messages = {alice.user_id: {alice.device_id: {"n": number}}}
        await sender.ok("PUT", f"/v3/sendToDevice/m.test/{number}", {"messages": messages})
        body = await reader.ok("GET", "/v3/sync", params={"since": token, "timeout": "2000"})
        received += [event["content"]["n"] for event in body.get("to_device", {}).get("events", [])]
        token = body["next_batch"]

    for reader in (alice, alice_at_other):
        body = await reader.ok("GET", "/v3/sync", params={"since": token})
        received += [event["content"]["n"] for event in body.get("to_device", {}).get("events", [])]
        token = body["next_batch"]
    assert received == list(range(12))

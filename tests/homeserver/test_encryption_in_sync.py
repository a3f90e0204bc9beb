"""What /sync tells of keys, devices and to-device messages (Client-Server API, "Extensions to /sync")."""

import asyncio
from typing import Any

from olm.session import InboundSession, OlmPreKeyMessage, OutboundSession

from tests.client import Client, Server, quote, unique
from tests.devices import CrossSigning, a_device, claim, cross_signing, query
from tests.homeserver.rooms import a_room

UPLOAD = "/v3/keys/device_signing/upload"


class Syncing:
    """A client that syncs: each call goes on where the one before stopped."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.token = ""

    async def sync(self, timeout_ms: int = 0) -> Any:
        """The next answer."""
        params = {"timeout": str(timeout_ms)} | ({"since": self.token} if self.token else {})
        body = await self.client.ok("GET", "/v3/sync", params=params)
        self.token = body["next_batch"]
        return body

    async def wait_for(self, name: str) -> Any:
        """A part of the first answer that has it; others (somebody's presence) are passed over."""
        async with asyncio.timeout(10):
            while True:
                body = await self.sync(timeout_ms=30_000)
                if name in body:
                    return body[name]

    async def changed(self) -> tuple[set[str], set[str]]:
        """The next answer's `device_lists`."""
        lists = (await self.sync()).get("device_lists", {})
        return set(lists.get("changed", [])), set(lists.get("left", []))

    async def to_device(self) -> list[Any]:
        """The contents of the next answer's to-device messages."""
        return [event["content"] for event in (await self.sync()).get("to_device", {}).get("events", [])]


async def send(sender: Client, receiver: Client, content: Any) -> None:
    """A to-device message."""
    messages = {receiver.user_id: {receiver.device_id: content}}
    await sender.ok("PUT", f"/v3/sendToDevice/m.test/{unique()}", {"messages": messages})


async def test_an_encrypted_message_reaches_a_device_by_way_of_claim_and_sync(alice: Client, bob: Client) -> None:
    alices, bobs = await a_device(alice), await a_device(bob, one_time_keys=1)
    found = (await query(alice, bob))["device_keys"][bob.user_id][bob.device_id]["keys"]
    given = await claim(alice, bob)
    session = OutboundSession(alices.account, found[f"curve25519:{bob.device_id}"], given[1]["key"])
    sent = session.encrypt("the room key")

    await send(alice, bob, {"type": sent.message_type, "body": sent.ciphertext})

    event = (await Syncing(bob).sync())["to_device"]["events"][0]
    assert (event["sender"], event["type"]) == (alice.user_id, "m.test")
    message = OlmPreKeyMessage(event["content"]["body"])
    assert InboundSession(bobs.account, message).decrypt(message) == "the room key"


async def test_each_to_device_message_is_delivered_once_and_again_if_the_answer_was_lost(
    alice: Client, bob: Client
) -> None:
    syncing = Syncing(bob)
    await syncing.sync()
    for number in range(3):
        await send(alice, bob, {"n": number})
    before = syncing.token

    first = await syncing.to_device()
    syncing.token = before  # the answer was lost
    again = await syncing.to_device()

    assert first == again == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert await syncing.to_device() == []
    await send(alice, bob, {"n": 3})
    assert await syncing.to_device() == [{"n": 3}]


async def test_many_to_device_messages_come_in_order_over_several_syncs(alice: Client, bob: Client) -> None:
    syncing = Syncing(bob)
    await syncing.sync()
    for number in range(130):
        await send(alice, bob, {"n": number})

    first, second, third = [await syncing.to_device() for _ in range(3)]

    assert [content["n"] for content in first + second] == list(range(130))
    assert (len(first) <= 100, third) == (True, [])


async def test_messages_sent_while_syncing_are_each_delivered_once(alice: Client, bob: Client) -> None:
    syncing = Syncing(bob)
    await syncing.sync()
    received: list[int] = []

    async def receive() -> None:
        while len(received) < 60:
            body = await syncing.sync(timeout_ms=5000)
            received.extend(event["content"]["n"] for event in body.get("to_device", {}).get("events", []))

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(receive())
        for start in range(0, 60, 10):
            await asyncio.gather(*(send(alice, bob, {"n": number}) for number in range(start, start + 10)))

    assert sorted(received) == list(range(60))
    assert await syncing.to_device() == []


async def test_a_to_device_message_wakes_a_waiting_sync(alice: Client, bob: Client) -> None:
    syncing = Syncing(bob)
    await syncing.sync()
    waiting = asyncio.create_task(syncing.wait_for("to_device"))
    await asyncio.sleep(0.1)

    await send(alice, bob, {"hello": "bob"})

    assert [event["content"] for event in (await waiting)["events"]] == [{"hello": "bob"}]


async def test_sync_counts_keys_and_names_unused_fallback_keys(alice: Client, bob: Client) -> None:
    syncing = Syncing(alice)
    device = await a_device(alice, one_time_keys=2)
    await device.upload(fallback_keys=device.fallback_key())

    async def told() -> tuple[int, list[str]]:
        body = await syncing.sync()
        return body["device_one_time_keys_count"]["signed_curve25519"], body["device_unused_fallback_key_types"]

    assert await told() == (2, ["signed_curve25519"])
    for expected in ((1, ["signed_curve25519"]), (0, ["signed_curve25519"]), (0, [])):
        await claim(bob, alice)
        assert await told() == expected


async def test_a_waiting_sync_is_woken_when_keys_run_low(alice: Client, bob: Client) -> None:
    syncing = Syncing(alice)
    await a_device(alice, one_time_keys=2)
    await syncing.sync()

    async def wait_for_count(count: int) -> None:
        while (await syncing.sync(timeout_ms=30_000))["device_one_time_keys_count"]["signed_curve25519"] != count:
            pass

    waiting = asyncio.create_task(wait_for_count(1))
    await asyncio.sleep(0.1)
    await claim(bob, alice)

    async with asyncio.timeout(5):
        await waiting


async def test_sync_tells_who_shares_a_room_of_changed_devices_and_nobody_else(server: Server) -> None:
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    await a_room(alice, bob)
    syncing = [Syncing(client) for client in (alice, bob, carol)]
    for each in syncing:
        await each.sync()

    device = await a_device(alice)
    assert [await each.changed() for each in syncing] == [({alice.user_id}, set())] * 2 + [(set(), set())]

    keys = await cross_signing(alice)
    assert [await each.changed() for each in syncing] == [({alice.user_id}, set())] * 2 + [(set(), set())]

    signed = keys.sign("self_signing", device.identity())
    await alice.ok("POST", "/v3/keys/signatures/upload", {alice.user_id: {alice.device_id: signed}})
    assert [await each.changed() for each in syncing] == [({alice.user_id}, set())] * 2 + [(set(), set())]

    phone = await alice.login()
    await a_device(phone)
    assert [await each.changed() for each in syncing] == [({alice.user_id}, set())] * 2 + [(set(), set())]
    await phone.ok("POST", "/v3/logout")
    assert [await each.changed() for each in syncing] == [({alice.user_id}, set())] * 2 + [(set(), set())]


async def test_a_waiting_sync_is_woken_by_new_devices_in_its_rooms(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    syncing = Syncing(bob)
    await syncing.sync()
    waiting = asyncio.create_task(syncing.wait_for("device_lists"))
    await asyncio.sleep(0.1)

    await a_device(alice)

    assert (await waiting)["changed"] == [alice.user_id]


async def test_only_the_signer_is_told_of_a_verified_user(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    keys, bobs = await cross_signing(alice), await cross_signing(bob)
    syncing = [Syncing(alice), Syncing(bob)]
    for each in syncing:
        await each.sync()

    signed = keys.sign("user_signing", bobs.key("master"))
    await alice.ok("POST", "/v3/keys/signatures/upload", {bob.user_id: {bobs.public_key("master"): signed}})

    assert [await each.changed() for each in syncing] == [({bob.user_id}, set()), (set(), set())]


async def test_only_the_user_is_told_of_a_new_user_signing_key(alice: Client, bob: Client) -> None:
    await a_room(alice, bob)
    keys = await cross_signing(alice)
    syncing = [Syncing(alice), Syncing(bob)]
    for each in syncing:
        await each.sync()
    keys.pairs["user_signing"] = CrossSigning(alice).pairs["user_signing"]

    session = (await alice.post(UPLOAD, keys.body())).body["session"]
    await alice.ok("POST", UPLOAD, {**keys.body(), "auth": alice.password_auth(session)})

    assert [await each.changed() for each in syncing] == [({alice.user_id}, set()), (set(), set())]


async def test_sync_tells_who_begins_and_ceases_to_share_a_room(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    syncing = [Syncing(alice), Syncing(bob)]
    for each in syncing:
        await each.sync()

    await bob.ok("POST", f"/v3/join/{quote(room_id)}")
    changed = [await each.changed() for each in syncing]
    assert bob.user_id in changed[0][0]
    assert alice.user_id in changed[1][0]

    await bob.ok("POST", f"/v3/rooms/{quote(room_id)}/leave")
    assert [await each.changed() for each in syncing] == [(set(), {bob.user_id}), (set(), {alice.user_id})]

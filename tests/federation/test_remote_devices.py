"""What is held of the devices of another server's users, and what becomes of it when updates come, or do not
(Server-Server API, "Device Management")."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import JsonObject
from homeserver.services import remote_devices
from tests.client import Client, Server, quote
from tests.devices import CrossSigning, a_device, cross_signing, query
from tests.federation.answering_peer import AnsweringPeer, answering_peer
from tests.federation.authority import Authority
from tests.federation.peer import Peer, path_of
from tests.federation.remote_room import RemoteRoom, joined_room, push
from tests.federation.servers import Pair
from tests.federation.test_sending_again import Installation


class Devices:
    """The devices of the peer's user."""

    def __init__(self, peer: AnsweringPeer, room: RemoteRoom) -> None:
        self.peer = peer
        self.user_id = room.user_id
        self.room_id = room.room_id
        self.stream_id = 10
        self.names: dict[str, str] = {"PHONE": "one"}
        self.asked: list[str] = []
        self.is_there = True
        peer.answers["user"] = self.answer

    def keys(self, device_id: str) -> JsonObject:
        """The keys of a device, which carry what it is called."""
        return {
            "user_id": self.user_id,
            "device_id": device_id,
            "algorithms": [],
            "keys": {},
            "signatures": {},
            "note": self.names[device_id],
        }

    def answer(self, rest: list[str], _query: dict[str, str], _body: Any) -> Any:
        """Answer /user/devices and /user/keys/query."""
        self.asked.append(rest[0] if rest[0] == "devices" else rest[1])
        if not self.is_there:
            return None
        by_id = {device_id: self.keys(device_id) for device_id in self.names}
        if rest[0] == "devices":
            devices = [{"device_id": device_id, "keys": keys} for device_id, keys in by_id.items()]
            return {"user_id": self.user_id, "stream_id": self.stream_id, "devices": devices}
        return {"device_keys": {self.user_id: by_id}}

    def change(self, device_id: str, name: str | None) -> JsonObject:
        """Change a device, or delete it; the EDU."""
        content: JsonObject = {"user_id": self.user_id, "device_id": device_id, "prev_id": [self.stream_id]}
        self.stream_id += 1
        content["stream_id"] = self.stream_id
        if name is None:
            del self.names[device_id]
            content["deleted"] = True
        else:
            self.names[device_id] = name
            content["keys"] = self.keys(device_id)
        return {"edu_type": "m.device_list_update", "content": content}

    async def tell(self, *edus: JsonObject) -> None:
        """Send these EDUs."""
        await push(self.peer, [], list(edus))

    async def seen_by(self, client: Client) -> dict[str, str]:
        """What a client finds: device -> what it is called."""
        answer = await client.ok("POST", "/v3/keys/query", {"device_keys": {self.user_id: []}})
        devices = answer["device_keys"].get(self.user_id, {})
        return {device_id: keys["note"] for device_id, keys in devices.items()}

    async def is_held(self, server: Server) -> bool:
        """Whether the server has the whole list."""
        async with server.application.database.read() as tx:
            row = await tx.fetch_one(
                "select from remote_device_lists where user_id = %s and not is_stale and position is not null",
                (self.user_id,),
            )
        return row is not None


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 20
    while not await check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@asynccontextmanager
async def followed(server: Server, authority: Authority, alice: Client) -> AsyncIterator[Devices]:
    """A peer whose user's devices are held, as alice asked for them."""
    async with answering_peer(server, authority) as peer:
        devices = Devices(peer, await joined_room(alice, peer))
        await devices.seen_by(alice)
        await eventually(lambda: devices.is_held(server))
        devices.asked.clear()
        yield devices


@pytest_asyncio.fixture
async def alice(pair: Pair) -> Client:
    return await pair.near.register("alice")


@pytest_asyncio.fixture
async def devices(pair: Pair, alice: Client) -> AsyncIterator[Devices]:
    async with followed(pair.near, pair.authority, alice) as devices:
        yield devices


async def token(client: Client) -> str:
    """Of now."""
    return str((await client.ok("GET", "/v3/sync"))["next_batch"])


async def changed_since(client: Client, since: str) -> list[str]:
    """Whose devices a sync says are new, which waits a little."""
    answer = await client.ok("GET", "/v3/sync", params={"since": since, "timeout": 1000})
    return list(answer.get("device_lists", {}).get("changed", []))


async def test_what_is_held_is_not_asked_for_again(alice: Client, devices: Devices) -> None:
    assert await devices.seen_by(alice) == {"PHONE": "one"}
    assert devices.asked == []


async def test_what_is_held_is_told_to_no_other_server(pair: Pair, devices: Devices) -> None:
    stranger = await Peer(pair.near).trust()

    answer = await stranger.ok("POST", "/v1/user/keys/query", {"device_keys": {devices.user_id: []}})
    listed = await stranger.request("GET", path_of("/v1/user/devices/{}", devices.user_id))

    assert not answer["device_keys"].get(devices.user_id)
    assert listed.status == 404


async def test_updates_that_follow_are_applied(alice: Client, devices: Devices) -> None:
    since = await token(alice)

    await devices.tell(devices.change("TABLET", "new"), devices.change("PHONE", "two"))
    assert await devices.seen_by(alice) == {"PHONE": "two", "TABLET": "new"}
    assert devices.user_id in await changed_since(alice, since)

    await devices.tell(devices.change("PHONE", None))
    assert await devices.seen_by(alice) == {"TABLET": "new"}
    assert devices.asked == []


async def test_what_changed_before_the_list_was_fetched_and_after_a_client_was_answered_is_told(
    pair: Pair, alice: Client
) -> None:
    async with answering_peer(pair.near, pair.authority) as peer:
        devices = Devices(peer, await joined_room(alice, peer))
        updates: list[JsonObject] = []

        def answer(rest: list[str], asked: dict[str, str], body: Any) -> Any:
            told = devices.answer(rest, asked, body)
            if not updates:
                updates.append(devices.change("PHONE", "two"))
            return told

        peer.answers["user"] = answer
        assert await devices.seen_by(alice) == {"PHONE": "one"}
        await eventually(lambda: devices.is_held(pair.near))
        since = await token(alice)

        await devices.tell(*updates)

        assert await changed_since(alice, since) == [devices.user_id]
        assert await devices.seen_by(alice) == {"PHONE": "two"}
        since = await token(alice)
        await devices.tell(*updates)
        assert await changed_since(alice, since) == []
        assert devices.asked == ["query", "devices"]


async def test_an_update_that_came_before_changes_nothing(alice: Client, devices: Devices) -> None:
    update = devices.change("PHONE", "two")
    await devices.tell(update)
    since = await token(alice)

    await devices.tell(update)

    assert await changed_since(alice, since) == []
    assert devices.asked == []


async def test_an_update_that_comes_after_a_newer_one_does_not_undo_it(alice: Client, devices: Devices) -> None:
    older, newer = devices.change("PHONE", "two"), devices.change("PHONE", "three")
    newer["content"]["prev_id"] = older["content"]["prev_id"]  # by processes that did not hear of each other

    await devices.tell(newer)
    await devices.tell(older)

    assert await devices.seen_by(alice) == {"PHONE": "three"}


async def test_after_a_gap_the_whole_list_is_fetched(pair: Pair, alice: Client, devices: Devices) -> None:
    devices.change("TABLET", "never told")
    await devices.tell(devices.change("PHONE", "two"))

    assert await devices.seen_by(alice) == {"PHONE": "two", "TABLET": "never told"}
    await eventually(lambda: devices.is_held(pair.near))
    assert "devices" in devices.asked
    devices.asked.clear()

    await devices.tell(devices.change("PHONE", "three"))
    assert await devices.seen_by(alice) == {"PHONE": "three", "TABLET": "never told"}
    assert devices.asked == []


async def test_a_server_that_is_silent_holds_up_no_other(
    pair: Pair, alice: Client, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_devices, "AT_ONCE", 1)
    async with followed(pair.near, pair.authority, alice) as silent:
        silent.peer.pause_seconds = 3600
        silent.change("TABLET", "never told")
        before = silent.peer.asked["user"]
        await silent.tell(silent.change("PHONE", "two"))
        async with asyncio.timeout(10):
            while silent.peer.asked["user"] == before:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.02)
        devices.change("TABLET", "never told")
        await devices.tell(devices.change("PHONE", "two"))

        async with asyncio.timeout(5):
            await eventually(lambda: devices.is_held(pair.near))
        assert not await silent.is_held(pair.near)
        silent.peer.release.set()


async def test_malformed_keys_make_the_list_be_fetched(pair: Pair, alice: Client, devices: Devices) -> None:
    update = devices.change("PHONE", "two")
    update["content"]["keys"]["algorithms"] = 1

    await devices.tell(update)

    assert await devices.seen_by(alice) == {"PHONE": "two"}
    await eventually(lambda: devices.is_held(pair.near))
    assert "devices" in devices.asked


@pytest.mark.one_process("its patience is shortened here")
async def test_a_list_that_cannot_be_fetched_is_fetched_later(
    pair: Pair, alice: Client, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_devices, "FIRST_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(remote_devices, "LOOK_SECONDS", 0.1)
    devices.is_there = False
    devices.change("TABLET", "never told")
    await devices.tell(devices.change("PHONE", "two"))

    answer = await alice.ok("POST", "/v3/keys/query", {"device_keys": {devices.user_id: []}})
    assert list(answer["failures"]) == [devices.peer.name]
    assert answer["device_keys"][devices.user_id]["PHONE"]["note"] == "one"
    await eventually(lambda: _times(devices, "devices", 2))

    since = await token(alice)
    devices.is_there = True
    await eventually(lambda: devices.is_held(pair.near))
    assert devices.user_id in await changed_since(alice, since)
    assert await devices.seen_by(alice) == {"PHONE": "two", "TABLET": "never told"}


async def _times(devices: Devices, what: str, count: int) -> bool:
    return devices.asked.count(what) >= count


async def test_what_changed_while_nobody_shared_a_room_is_not_missed(
    pair: Pair, alice: Client, devices: Devices
) -> None:
    bob = await pair.near.register("bob")
    await alice.ok("POST", f"/v3/rooms/{quote(devices.room_id)}/leave", {})
    devices.change("TABLET", "never told")

    # Who shares no room with the user, or no longer does, gets what the server itself says.
    assert await devices.seen_by(bob) == {"PHONE": "one", "TABLET": "never told"}
    assert await devices.seen_by(alice) == {"PHONE": "one", "TABLET": "never told"}


async def test_lists_of_who_shares_no_room_are_dropped(pair: Pair, alice: Client) -> None:
    service = pair.near.application.keys.remote_devices
    async with followed(pair.near, pair.authority, alice) as devices:
        await service.sweep()
        assert await devices.is_held(pair.near)

        async def is_dropped() -> bool:
            await service.sweep()  # which leaves a list that is being fetched to the next time
            return not await devices.is_held(pair.near)

        await alice.ok("POST", f"/v3/rooms/{quote(devices.room_id)}/leave", {})
        await eventually(is_dropped)
        since = await token(alice)
        await devices.tell(devices.change("PHONE", "two"))
        assert await changed_since(alice, since) == []


async def test_a_stale_list_is_fetched_after_a_restart(conninfo: str, authority: Authority) -> None:
    installation = Installation(conninfo, authority)
    async with AsyncExitStack() as stack:
        async with installation.running() as server:
            devices = await stack.enter_async_context(followed(server, authority, await server.register("alice")))
            devices.is_there = False
            devices.change("TABLET", "never told")
            await devices.tell(devices.change("PHONE", "two"))
            await eventually(lambda: _times(devices, "devices", 1))
        devices.is_there = True

        async with installation.running() as server:
            async with server.application.database.transaction() as tx:
                await tx.execute("update remote_device_lists set retry_ts = 0")
            await eventually(lambda: devices.is_held(server))
            async with server.application.database.read() as tx:
                rows = await tx.fetch("select device_id from remote_devices order by device_id")
    assert rows == [("PHONE",), ("TABLET",)]


async def test_new_cross_signing_keys_are_held(pair: Pair, alice: Client) -> None:
    bob = await pair.far.register("bob")
    room_id = (await bob.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    await alice.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"server_name": pair.far.name})
    await a_device(bob)
    old, own = await cross_signing(bob), await cross_signing(alice)
    await query(alice, bob)

    async def is_held() -> bool:
        async with pair.near.application.database.read() as tx:
            return bool(await tx.fetch("select from cross_signing_keys where user_id = %s", (bob.user_id,)))

    await eventually(is_held)
    signed = own.sign("user_signing", old.key("master"))
    body = {bob.user_id: {old.public_key("master"): signed}}
    assert await alice.ok("POST", "/v3/keys/signatures/upload", body) == {"failures": {}}
    seen = (await query(alice, bob))["master_keys"][bob.user_id]
    assert seen["signatures"][alice.user_id] == signed["signatures"][alice.user_id]

    since = await token(alice)
    new = CrossSigning(bob)
    await bob.ok("POST", "/v3/keys/device_signing/upload", {**new.body(), "auth": bob.password_auth()})
    await eventually(lambda: _is_changed(alice, since, bob.user_id))

    async def is_new() -> bool:
        seen = (await query(alice, bob))["master_keys"][bob.user_id]
        assert seen["keys"] == new.key("master")["keys"]
        return alice.user_id not in seen.get("signatures", {})

    await eventually(is_new)


async def _is_changed(client: Client, since: str, user_id: str) -> bool:
    return user_id in await changed_since(client, since)

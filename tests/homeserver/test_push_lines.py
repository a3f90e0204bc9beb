"""A gateway that goes away and comes back, and one that does not answer for one key."""

from pathlib import Path

import pytest

from storage.pushes import SHARDS
from tests.federation.authority import Authority
from tests.federation.servers import free_port
from tests.homeserver.rooms import a_room
from tests.push_gateway import Gateway, Pushing, a_gateway, set_pusher
from tests.rooms import send


async def test_what_a_gateway_missed_it_is_told_in_order_when_it_is_back(pushing: Pushing) -> None:
    alice = await pushing.server.register("alice")
    users = [await pushing.server.register("bob") for _ in range(20)]
    room_id = await a_room(alice, *users)
    away = Gateway(free_port())
    keys = [await set_pusher(user, away) for user in users]
    sent = [await send(alice, room_id, str(number)) for number in range(3)]

    async with a_gateway(pushing.authority, away.port) as gateway:
        for key in keys:
            assert await gateway.until_event(key, sent[-1]) == sent


@pytest.mark.one_process("its memory is made small")
async def test_what_does_not_fit_into_memory_is_read_again_in_order(
    pushing: Pushing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("homeserver.followers.push_lines.MAX_HELD", 2)
    monkeypatch.setattr("homeserver.followers.push_delivery.READ_AT_ONCE", 2)
    alice = await pushing.server.register("alice")
    users = [await pushing.server.register("bob") for _ in range(3)]
    room_id = await a_room(alice, *users)
    async with a_gateway(Authority(tmp_path)) as untrusted:
        port = untrusted.port
        keys = [await set_pusher(user, untrusted) for user in users]
        sent = [await send(alice, room_id, str(number)) for number in range(7)]

    async with a_gateway(pushing.authority, port) as gateway:
        for key in keys:
            assert await gateway.until_event(key, sent[-1]) == sent


@pytest.mark.one_process("its memory is made small")
async def test_lines_that_wait_are_resumed_a_few_at_a_time(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery, gateway = pushing.server.application.push.delivery, pushing.gateway
    monkeypatch.setattr("homeserver.followers.push_delivery.MAX_LINES", 2)
    monkeypatch.setattr("homeserver.followers.push_delivery.FIRST_WAIT_SECONDS", 900)
    alice = await pushing.server.register("alice")
    users = [await pushing.server.register("bob") for _ in range(8)]
    room_id = await a_room(alice, *users)
    keys = [await set_pusher(user, gateway) for user in users]
    gateway.statuses.update(dict.fromkeys(keys, 503))
    event_id = await send(alice, room_id, "hello")
    await gateway.until(lambda: _asked_for(gateway, event_id) >= set(keys))
    gateway.statuses.clear()
    for shard in range(SHARDS):
        await delivery.resume(shard)  # as another process would after the death of this one
    for _ in keys:
        for shard, last in list(delivery._resumed.items()):
            await delivery._open_lines(shard, after=last)

    for key in keys:
        assert await gateway.until_event(key, event_id) == [event_id]


def _asked_for(gateway: Gateway, event_id: str) -> set[str]:
    return {
        each["notification"]["devices"][0]["pushkey"]
        for each in gateway.requests
        if each["notification"].get("event_id") == event_id
    }

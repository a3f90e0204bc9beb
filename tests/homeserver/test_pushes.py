"""What push gateways are told, and of what ("Push Notifications", server behaviour; Push Gateway API)."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import UserID
from tests.client import Client, quote
from tests.homeserver.rooms import a_room, act, join, leave, redact
from tests.homeserver.syncs import ignore, read
from tests.push_gateway import Gateway, Pushing, a_gateway, pusher, reaching, set_pusher
from tests.rooms import create_room, send, send_event
from tests.servers import running


@pytest_asyncio.fixture
async def alice(pushing: Pushing) -> Client:
    """A user who sends."""
    return await pushing.server.register("alice")


@pytest_asyncio.fixture
async def bob(pushing: Pushing) -> Client:
    """A user who is to be told."""
    return await pushing.server.register("bob")


@pytest_asyncio.fixture
async def gateway(pushing: Pushing) -> Gateway:
    """The gateway that all tests share."""
    return pushing.gateway


async def eventually(find: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Look until it is found."""
    for _ in range(600):
        if await find() == wanted:
            return
        await asyncio.sleep(0.05)
    assert await find() == wanted


async def call(client: Client, room_id: str) -> str:
    """Send what everybody is told of with a sound."""
    return await send_event(client, room_id, "m.call.invite", {"call_id": "1", "version": "1", "lifetime": 1})


async def test_a_gateway_is_told_of_a_message(alice: Client, bob: Client, gateway: Gateway) -> None:
    await alice.ok("PUT", f"/v3/profile/{quote(alice.user_id)}/displayname", {"displayname": "Alice"})
    room_id = await a_room(alice, bob, name="Kitchen")
    pushkey = await set_pusher(bob, gateway, data={"mine": {"a": 1}})
    event_id = await send(alice, room_id, "hello")

    told = await gateway.next(pushkey)
    device = told.pop("devices")[0]
    assert told == {
        "event_id": event_id,
        "room_id": room_id,
        "type": "m.room.message",
        "sender": alice.user_id,
        "sender_display_name": "Alice",
        "room_name": "Kitchen",
        "prio": "high",
        "content": {"msgtype": "m.text", "body": "hello"},
        "counts": {"unread": 1},
    }
    assert device.pop("pushkey_ts") > 1_600_000_000
    assert device == {
        "app_id": "org.example.app",
        "pushkey": pushkey,
        "data": {"mine": {"a": 1}},
        "tweaks": {"sound": "default"},
    }


async def test_of_an_event_only_its_id_is_told_where_that_is_asked_for(
    alice: Client, bob: Client, gateway: Gateway
) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third, name="Kitchen")
    pushkey = await set_pusher(bob, gateway, data={"format": "event_id_only"})
    event_id = await send(alice, room_id, "hello")

    told = await gateway.next(pushkey)
    device = told.pop("devices")[0]
    assert told == {"event_id": event_id, "room_id": room_id, "prio": "low", "counts": {"unread": 1}}
    assert (device["data"], "tweaks" in device) == ({"format": "event_id_only"}, False)


async def test_everybody_with_a_pusher_is_told_and_each_of_their_own_count(
    alice: Client, bob: Client, gateway: Gateway
) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third)
    other = await a_room(alice, bob)
    keys = [await set_pusher(bob, gateway), await set_pusher(bob, gateway), await set_pusher(third, gateway)]
    await send(alice, other, "first")
    event_id = await send(alice, room_id, "second")

    counts = []
    for key in keys:
        told = await gateway.next(key)
        if told["room_id"] == other:
            told = await gateway.next(key)
        counts.append((told["event_id"], told["counts"]["unread"]))
    assert counts == [(event_id, 2), (event_id, 2), (event_id, 1)]


async def test_nobody_is_told_of_what_their_rules_silence(alice: Client, bob: Client, gateway: Gateway) -> None:
    muted, room_id = await a_room(alice, bob), await a_room(alice, bob)
    pushkey = await set_pusher(bob, gateway)
    await bob.ok("PUT", f"/v3/pushrules/global/room/{quote(muted)}", {"actions": []})
    await send(alice, muted, "quiet")
    await send(alice, room_id, "a note", msgtype="m.notice")
    await send_event(alice, room_id, "org.example.other", {})
    await send(bob, room_id, "from himself")
    last = await call(alice, room_id)

    assert await gateway.until_event(pushkey, last) == [last]


async def test_own_rules_decide_how(alice: Client, bob: Client, gateway: Gateway) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third)
    pushkey = await set_pusher(bob, gateway)
    rule = {
        "pattern": "cake",
        "actions": ["notify", {"set_tweak": "sound", "value": "yum"}, {"set_tweak": "highlight"}],
    }
    await bob.ok("PUT", "/v3/pushrules/global/content/cake", rule)
    await send(alice, room_id, "there is cake")

    told = await gateway.next(pushkey)
    assert (told["prio"], told["devices"][0]["tweaks"]) == ("high", {"sound": "yum", "highlight": True})


async def test_who_is_named_is_told_with_a_highlight(alice: Client, bob: Client, gateway: Gateway) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third)
    named, other = await set_pusher(bob, gateway), await set_pusher(third, gateway)
    mention = {"m.mentions": {"user_ids": [bob.user_id, ""]}}
    await send(alice, room_id, "look", **mention)

    assert (await gateway.next(named))["devices"][0]["tweaks"] == {"sound": "default", "highlight": True}
    assert "tweaks" not in (await gateway.next(other))["devices"][0]
    everybody = await send(alice, room_id, "all", **{"m.mentions": {"room": True}})
    told = await gateway.next(other)
    assert (told["event_id"], told["devices"][0]["tweaks"]) == (everybody, {"highlight": True})


async def test_nobody_is_told_of_whom_they_ignore(alice: Client, bob: Client, gateway: Gateway) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third)
    pushkey = await set_pusher(bob, gateway)
    await ignore(bob, alice)
    await send(alice, room_id, "hello")
    await act(alice, "invite", await create_room(alice), bob)
    last = await send(third, room_id, "hello")

    assert await gateway.until_event(pushkey, last) == [last]


async def test_an_invite_is_told(alice: Client, bob: Client, gateway: Gateway) -> None:
    pushkey = await set_pusher(bob, gateway)
    room_id = await create_room(alice, name="Cellar")
    await act(alice, "invite", room_id, bob)

    told = await gateway.next(pushkey)
    assert (told["room_id"], told["type"], told["user_is_target"]) == (room_id, "m.room.member", True)
    assert (told["room_name"], told["prio"], "counts" in told) == ("Cellar", "high", False)


async def test_who_left_is_told_no_more_and_who_comes_is_not_told_of_before(
    alice: Client, bob: Client, gateway: Gateway
) -> None:
    room_id, other = await a_room(alice, bob), await a_room(alice, bob)
    pushkey = await set_pusher(bob, gateway)
    await send(alice, room_id, "first")
    await gateway.next(pushkey)
    await leave(bob, room_id)
    await send(alice, room_id, "while he is away")
    await join(bob, room_id)
    again = await send(alice, room_id, "again")
    assert await gateway.until_event(pushkey, again) == [again]
    await act(alice, "ban", room_id, bob)
    await send(alice, room_id, "banned")
    last = await send(alice, other, "elsewhere")
    assert await gateway.until_event(pushkey, last) == [last]


async def test_a_redacted_event_is_not_told_later(alice: Client, bob: Client, gateway: Gateway) -> None:
    room_id = await a_room(alice, bob)
    whole, only_id = await set_pusher(bob, gateway), await set_pusher(bob, gateway, data={"format": "event_id_only"})
    follows = await set_pusher(bob, gateway)
    gateway.statuses |= dict.fromkeys((whole, only_id), 503)
    event_id = await send(alice, room_id, "oops")
    for pushkey in (whole, only_id):
        await gateway.until(lambda key=pushkey: any(_names(each, event_id, key) for each in gateway.requests))
    await redact(alice, room_id, event_id)
    last = await send(alice, room_id, "better")
    await gateway.until_event(follows, last)
    for pushkey in (whole, only_id):
        del gateway.statuses[pushkey]

    assert await gateway.until_event(whole, last) == [last]
    assert await gateway.until_event(only_id, last) == [last]


def _names(body: Any, event_id: str, pushkey: str | None = None) -> bool:
    told = body["notification"]
    return told.get("event_id") == event_id and pushkey in (None, told["devices"][0]["pushkey"])


async def test_reading_elsewhere_takes_the_count_away(alice: Client, bob: Client, gateway: Gateway) -> None:
    room_id = await a_room(alice, bob)
    pushkey = await set_pusher(bob, gateway)
    silent = await set_pusher(bob, gateway, data={"org.matrix.msc4076.disable_badge_count": True})
    event_id = await send(alice, room_id, "hello")
    assert (await gateway.next(pushkey))["counts"] == {"unread": 1}
    assert "counts" not in await gateway.next(silent)
    await read(bob, room_id, event_id)

    told = await gateway.next(pushkey)
    assert (told["counts"], told["prio"], "event_id" in told) == ({"unread": 0}, "low", False)
    assert [set(device) for device in told["devices"]] == [{"app_id", "pushkey", "pushkey_ts", "data"}]
    again = await send(alice, room_id, "again")
    assert (await gateway.next(silent))["event_id"] == again


async def test_what_is_read_while_a_gateway_is_away_is_not_told(alice: Client, bob: Client, gateway: Gateway) -> None:
    room_id = await a_room(alice, bob)
    pushkey, follows = await set_pusher(bob, gateway), await set_pusher(bob, gateway)
    gateway.holds.add(pushkey)
    first = await send(alice, room_id, "first")
    await gateway.until(lambda: any(_names(each, first) for each in gateway.requests))
    seen = await send(alice, room_id, "seen")
    await read(bob, room_id, seen)
    last = await send(alice, room_id, "unseen")
    await gateway.until_event(follows, last)
    gateway.holds.discard(pushkey)
    gateway.is_open.set()

    assert await gateway.until_event(pushkey, last) == [first, last]
    gateway.is_open.clear()


async def test_a_rejected_key_ends_its_pusher(alice: Client, bob: Client, gateway: Gateway) -> None:
    room_id = await a_room(alice, bob)
    pushkey, other = await set_pusher(bob, gateway), await set_pusher(bob, gateway)
    gateway.rejects.add(pushkey)
    await send(alice, room_id, "hello")
    await gateway.next(other)

    async def left() -> list[str]:
        return [each["pushkey"] for each in (await bob.ok("GET", "/v3/pushers"))["pushers"]]

    await eventually(left, [other])


async def test_a_pusher_that_is_switched_off_or_gone_is_told_nothing(
    alice: Client, bob: Client, gateway: Gateway
) -> None:
    room_id = await a_room(alice, bob)
    phone = await bob.login()
    gone, off, stays = await set_pusher(phone, gateway), await set_pusher(bob, gateway), await set_pusher(bob, gateway)
    for number, key in enumerate((gone, off, stays)):
        event_id = await send(alice, room_id, f"{number}")
        await gateway.until_event(key, event_id)
    await phone.ok("POST", "/v3/logout", {})
    await bob.ok("POST", "/v3/pushers/set", pusher(gateway, off, **{"org.matrix.msc3881.enabled": False}))
    last = await send(alice, room_id, "after")
    await gateway.until_event(stays, last)
    again = await send(alice, room_id, "again")
    await gateway.until_event(stays, again)

    for key in (gone, off):
        assert last not in [each.get("event_id") for each in gateway.told[key]]


async def test_an_error_is_tried_again_and_another_user_does_not_wait(
    alice: Client, bob: Client, gateway: Gateway
) -> None:
    third = await bob.anonymous().register("third")
    room_id = await a_room(alice, bob, third)
    failing, other = await set_pusher(bob, gateway), await set_pusher(third, gateway)
    gateway.statuses[failing] = 500
    event_id = await send(alice, room_id, "hello")
    await gateway.until_event(other, event_id)
    await gateway.until(lambda: sum(_names(each, event_id) for each in gateway.requests) > 2)
    del gateway.statuses[failing]

    assert await gateway.until_event(failing, event_id) == [event_id]


async def test_a_gateway_that_hangs_holds_up_no_other(alice: Client, bob: Client, pushing: Pushing) -> None:
    gateway = pushing.gateway
    users = [await bob.anonymous().register("slow") for _ in range(4)]
    room_id = await a_room(alice, bob, *users)
    slow = [await set_pusher(user, gateway) for user in users]
    quick = await set_pusher(bob, gateway)
    gateway.holds.update(slow)
    events = [await send(alice, room_id, str(number)) for number in range(3)]

    assert await gateway.until_event(quick, events[-1]) == events
    gateway.holds.difference_update(slow)
    gateway.is_open.set()
    for key in slow:
        assert await gateway.until_event(key, events[-1]) == events
    gateway.is_open.clear()


async def test_a_process_that_comes_or_goes_has_nobody_told_twice(conninfo: str, pushing: Pushing) -> None:
    settings = reaching(pushing.authority)
    async with a_gateway(pushing.authority) as gateway, running(conninfo, federation=settings) as first:
        alice, bobs = await first.register("alice"), [await first.register("bob") for _ in range(8)]
        room_id = await a_room(alice, *bobs)
        keys = [await set_pusher(bob, gateway) for bob in bobs]
        begun = await send(alice, room_id, "begun")
        for key in keys:
            await gateway.until_event(key, begun)
        gateway.delay_seconds = 1.5  # so that much is under way when the other process takes over
        async with running(conninfo, federation=settings):
            sent = []
            for number in range(14):
                sent.append(await send(alice, room_id, f"message {number}"))
                await asyncio.sleep(0.4)
                if number == 8:
                    gateway.delay_seconds = 0.5  # its end waits for some seconds only
        gateway.delay_seconds = 0.0
        for key in keys:
            assert await gateway.until_event(key, sent[-1]) == sent

    told = Counter(
        (told["event_id"], told["devices"][0]["pushkey"])
        for told in (body["notification"] for body in gateway.requests)
        if "event_id" in told
    )
    assert [times for times in told.values() if times != 1] == []


@pytest.mark.one_process("the one that is asked is told what it does not reach")
async def test_private_addresses_are_not_asked(conninfo: str, pushing: Pushing) -> None:
    async with running(conninfo) as server, a_gateway(pushing.authority) as private:  # no other process tells of it
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await a_room(alice, bob)
        await set_pusher(bob, private)
        await send(alice, room_id, "hello")

        async def is_failing() -> bool:
            return f"127.0.0.1:{private.port}" in server.application.push.delivery.failing_gateways()

        await eventually(is_failing, True)
        assert private.requests == []


async def test_who_is_locked_out_is_told_nothing_until_they_are_let_in(pushing: Pushing) -> None:
    alice, bob = await pushing.server.register("alice"), await pushing.server.register("bob")
    third = await pushing.server.register("third")
    room_id = await a_room(alice, bob, third)
    pushkey, other = await set_pusher(bob, pushing.gateway), await set_pusher(third, pushing.gateway)
    accounts = pushing.server.application.accounts.service
    await accounts.set_locked(UserID(bob.user_id), is_locked=True)
    hidden = await send(alice, room_id, "while he is locked out")
    await pushing.gateway.until_event(other, hidden)
    await accounts.set_locked(UserID(bob.user_id), is_locked=False)
    last = await send(alice, room_id, "welcome back")

    assert await pushing.gateway.until_event(pushkey, last) == [last]

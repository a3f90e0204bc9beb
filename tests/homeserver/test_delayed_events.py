"""Delayed events (MSC4140)."""

import asyncio
import time
from typing import Any

import pytest

from federation.protocol.types import UserID
from homeserver.services.delayed_events import AT_ONCE, DelayedEventService
from storage.delayed_events import DelayedEvent
from tests.client import Client, Server, quote
from tests.rooms import create_room, join, pdus_of, put_state, state_of

TYPE = "org.matrix.msc3401.call.member"
BASE = "/unstable/org.matrix.msc4140/delayed_events"


async def delayed_state(client: Client, room_id: str, delay_ms: int, state_key: str = "call") -> str:
    """Have a state event sent later: the delay's ID."""
    path = f"/v3/rooms/{quote(room_id)}/state/{TYPE}/{quote(state_key)}"
    params = {"org.matrix.msc4140.delay": str(delay_ms)}
    delay_id: str = (await client.ok("PUT", path, {"left": True}, params=params))["delay_id"]
    return delay_id


async def sent(server: Server, room_id: str, *, within: float = 5.0) -> list[Any]:
    """The events of `TYPE`, once there is one."""
    for _ in range(int(within / 0.02)):
        if found := await pdus_of(server, room_id, TYPE):
            return found
        await asyncio.sleep(0.02)
    return []


async def nothing_waits(client: Client) -> None:
    """Return once no event of the user's waits."""
    for _ in range(200):
        if not (await client.ok("GET", BASE))["delayed_events"]:
            return
        await asyncio.sleep(0.02)
    pytest.fail("an event still waits")


async def test_an_event_is_sent_when_its_delay_is_over(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    await delayed_state(alice, room_id, 300)

    assert await pdus_of(server, room_id, TYPE) == []
    [pdu] = await sent(server, room_id)
    assert (pdu["content"], pdu["state_key"], pdu["sender"]) == ({"left": True}, "call", alice.user_id)
    assert (await alice.ok("GET", BASE))["delayed_events"] == []


async def test_a_message_is_delayed_too(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)

    answer = await alice.put(
        f"/v3/rooms/{quote(room_id)}/send/{TYPE}/t1", {"a": 1}, **{"org.matrix.msc4140.delay": "1"}
    )

    assert (answer.status, list(answer.body)) == (200, ["delay_id"])
    assert "state_key" not in (await sent(server, room_id))[0]


async def test_what_waits_is_listed(alice: Client, bob: Client) -> None:
    room_id = await create_room(alice)

    delay_id = await delayed_state(alice, room_id, 60_000)

    [event] = (await alice.ok("GET", BASE))["delayed_events"]
    assert event.pop("running_since") <= time.time() * 1000 + 100
    assert event == {
        "delay_id": delay_id,
        "room_id": room_id,
        "type": TYPE,
        "state_key": "call",
        "delay": 60_000,
        "content": {"left": True},
    }
    assert (await bob.ok("GET", BASE))["delayed_events"] == []


@pytest.mark.parametrize("in_path", [True, False])
async def test_an_event_is_sent_at_once_or_never(server: Server, alice: Client, *, in_path: bool) -> None:
    room_id = await create_room(alice)

    async def act(delay_id: str, action: str) -> int:
        path, body = (f"{BASE}/{delay_id}/{action}", {}) if in_path else (f"{BASE}/{delay_id}", {"action": action})
        return (await server.anonymous.post(path, body)).status

    first, second = await delayed_state(alice, room_id, 60_000), await delayed_state(alice, room_id, 60_000, "other")
    assert [await act(first, "cancel"), await act(second, "send")] == [200, 200]

    assert [pdu["state_key"] for pdu in await pdus_of(server, room_id, TYPE)] == ["other"]
    assert [await act(first, "send"), await act(second, "restart"), await act("none", "cancel")] == [404] * 3
    assert await act(first, "explode") == 400


async def test_a_delay_that_is_restarted_begins_again(server: Server, alice: Client) -> None:
    room_id = await create_room(alice)
    delay_id = await delayed_state(alice, room_id, 1000)

    for _ in range(4):
        await asyncio.sleep(0.4)
        await alice.ok("POST", f"{BASE}/{delay_id}", {"action": "restart"})

    assert await pdus_of(server, room_id, TYPE) == []
    assert len(await sent(server, room_id)) == 1


async def test_state_set_by_somebody_else_takes_its_place(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat", power_level_content_override={"events": {TYPE: 0}})
    await join(bob, room_id)
    await delayed_state(alice, room_id, 60_000)
    await delayed_state(bob, room_id, 60_000)

    await put_state(alice, room_id, TYPE, {"in": True}, "call")

    await nothing_waits(bob)
    assert len((await alice.ok("GET", BASE))["delayed_events"]) == 1
    assert (await state_of(server, room_id))[TYPE, "call"]["content"] == {"in": True}


async def test_what_may_not_be_sent_any_longer_is_given_up(server: Server, alice: Client, bob: Client) -> None:
    room_id = await create_room(alice, preset="public_chat", power_level_content_override={"events": {TYPE: 0}})
    await join(bob, room_id)
    await delayed_state(bob, room_id, 500)

    await alice.ok("POST", f"/v3/rooms/{quote(room_id)}/ban", {"user_id": bob.user_id})

    await nothing_waits(bob)
    assert await pdus_of(server, room_id, TYPE) == []


@pytest.mark.parametrize(
    ("event_type", "delay", "extra"),
    [
        (TYPE, "0", None),
        (TYPE, "x", None),
        (TYPE, "86400001", "M_MAX_DELAY_EXCEEDED"),
        ("m.room.member", "1000", None),
    ],
)
async def test_what_cannot_be_delayed(alice: Client, event_type: str, delay: str, extra: str | None) -> None:
    room_id = await create_room(alice)
    path = f"/v3/rooms/{quote(room_id)}/state/{event_type}/{quote(alice.user_id)}"

    answer = await alice.put(path, {"membership": "leave"}, **{"org.matrix.msc4140.delay": delay})

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert answer.body.get("org.matrix.msc4140.errcode") == extra


async def test_a_user_has_a_limit(alice: Client) -> None:
    room_id = await create_room(alice)
    await asyncio.gather(*(delayed_state(alice, room_id, 60_000, f"{number}") for number in range(90)))
    for number in range(90, 100):
        await delayed_state(alice, room_id, 60_000, f"{number}")

    answer = await alice.put(
        f"/v3/rooms/{quote(room_id)}/state/{TYPE}/more", {}, **{"org.matrix.msc4140.delay": "1000"}
    )

    assert (answer.status, answer.body["org.matrix.msc4140.errcode"]) == (400, "M_MAX_DELAYED_EVENTS_EXCEEDED")


@pytest.mark.parametrize("standing", ["is_suspended", "is_locked"])
async def test_who_may_no_longer_send_does_not_do_so_later_either(
    server: Server, alice: Client, bob: Client, standing: str
) -> None:
    room_id = await create_room(alice)
    delay_id = await delayed_state(alice, room_id, 60_000)
    accounts = server.application.accounts.service
    if standing == "is_locked":
        await accounts.set_locked(UserID(alice.user_id), is_locked=True)
    else:
        await accounts.set_suspended(UserID(alice.user_id), is_suspended=True)

    assert (await bob.post(f"{BASE}/{delay_id}/send")).status == 403
    assert await pdus_of(server, room_id, TYPE) == []


@pytest.mark.one_process("what it sends is held up here")
async def test_a_room_in_which_nothing_can_be_sent_holds_up_no_other(
    server: Server, alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, room_id = await create_room(alice), await create_room(bob)
    may_go_on = asyncio.Event()
    send = DelayedEventService._send

    async def held_up(self: DelayedEventService, event: DelayedEvent, since: int | None) -> None:
        if event.room_id == stuck:
            await may_go_on.wait()
        await send(self, event, since)

    monkeypatch.setattr(DelayedEventService, "_send", held_up)
    for number in range(AT_ONCE + 10):
        await delayed_state(alice, stuck, 1, f"{number}")
    await delayed_state(bob, room_id, 1)

    assert len(await sent(server, room_id)) == 1
    assert await pdus_of(server, stuck, TYPE) == []
    may_go_on.set()
    await nothing_waits(alice)
    assert len(await pdus_of(server, stuck, TYPE)) == AT_ONCE + 10


@pytest.mark.one_process("what it sends is held up here")
async def test_a_delay_that_is_restarted_as_it_ends_begins_again(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await create_room(alice)
    is_due, may_go_on = asyncio.Event(), asyncio.Event()
    send = DelayedEventService._send

    async def held_up(self: DelayedEventService, event: DelayedEvent, since: int | None) -> None:
        if event.room_id == room_id:
            is_due.set()
            await may_go_on.wait()
        await send(self, event, since)

    monkeypatch.setattr(DelayedEventService, "_send", held_up)
    delay_id = await delayed_state(alice, room_id, 200)
    await is_due.wait()

    restarted_ts = time.time_ns() // 1_000_000
    await alice.ok("POST", f"{BASE}/{delay_id}", {"action": "restart"})
    may_go_on.set()

    [pdu] = await sent(server, room_id)
    assert pdu["origin_server_ts"] >= restarted_ts + 200

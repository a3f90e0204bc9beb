"""Dehydrated devices (MSC3814)."""

import json
from typing import Any

import pytest

from tests.client import Client, unique
from tests.devices import CrossSigning, Device, claim, cross_signing, query

PATH = "/unstable/org.matrix.msc3814.v1/dehydrated_device"


def dehydrated(client: Client, device_id: str) -> tuple[Device, dict[str, Any]]:
    """A device without a login, and the body that creates it."""
    device = Device(Client(client.base_url, client.session, client.user_id, device_id))
    return device, {
        "device_id": device_id,
        "device_data": {"algorithm": "m.dehydration.v1.olm", "account": "c2VjcmV0"},
        "initial_device_display_name": "Dehydrated device",
        "device_keys": device.identity(),
        "one_time_keys": device.one_time_keys(2),
        "fallback_keys": device.fallback_key(),
    }


async def test_there_is_none_at_first(alice: Client) -> None:
    for answer in (await alice.get(PATH), await alice.delete(PATH), await alice.post(f"{PATH}/A/events")):
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_it_is_found_again_and_others_can_reach_it(alice: Client, bob: Client) -> None:
    device, body = dehydrated(alice, "DEHYDRATED")

    assert await alice.ok("PUT", PATH, body) == {"device_id": "DEHYDRATED"}

    assert await alice.ok("GET", PATH) == {"device_id": "DEHYDRATED", "device_data": body["device_data"]}
    found = (await query(bob, alice))["device_keys"][alice.user_id]["DEHYDRATED"]
    assert found["unsigned"] == {"device_display_name": "Dehydrated device"}
    given = [await claim(bob, device.client) for _ in range(3)]
    assert dict(given) == {**body["one_time_keys"], **body["fallback_keys"]}


async def with_messages(alice: Client, bob: Client, count: int) -> str:
    """Where to read what the dehydrated device was sent."""
    _, body = dehydrated(alice, "DEHYDRATED")
    await alice.ok("PUT", PATH, body)
    for number in range(count):
        messages = {alice.user_id: {"DEHYDRATED": {"n": number}}}
        await bob.ok("PUT", f"/v3/sendToDevice/m.test/{number}", {"messages": messages})
    return f"{PATH}/DEHYDRATED/events"


async def test_its_messages_are_read_in_pages_and_kept(alice: Client, bob: Client) -> None:
    events = await with_messages(alice, bob, 102)

    for _ in range(2):
        first = await alice.ok("GET", events)
        assert len(first["events"]) == 100
        last = (await alice.get(events, from_=first["next_batch"])).body
        assert "next_batch" not in last
        assert [event["content"]["n"] for event in (*first["events"], *last["events"])] == list(range(102))


async def test_its_messages_are_taken_in_pages_and_then_gone(alice: Client, bob: Client) -> None:
    events = await with_messages(alice, bob, 102)

    pages = [await alice.ok("POST", events)]
    assert pages[0] == await alice.ok("POST", events)  # nothing is lost before it is acknowledged
    while pages[-1]["events"]:
        pages.append(await alice.ok("POST", events, {"next_batch": pages[-1]["next_batch"]}))

    assert [event["content"]["n"] for page in pages for event in page["events"]] == list(range(102))
    assert (await alice.ok("POST", events))["events"] == []


async def test_a_new_one_takes_the_place_of_the_old(alice: Client, bob: Client) -> None:
    await alice.ok("PUT", PATH, dehydrated(alice, "ONE")[1])
    await alice.ok("PUT", PATH, dehydrated(alice, "TWO")[1])
    await alice.ok("PUT", PATH, dehydrated(alice, "TWO")[1])

    assert list((await query(bob, alice))["device_keys"][alice.user_id]) == ["TWO"]
    assert (await alice.post(f"{PATH}/ONE/events")).status == 404
    assert (await alice.get(f"{PATH}/ONE/events")).status == 404


async def test_it_can_be_deleted(alice: Client, bob: Client) -> None:
    await alice.ok("PUT", PATH, dehydrated(alice, "DEHYDRATED")[1])

    assert await alice.ok("DELETE", PATH) == {"device_id": "DEHYDRATED"}

    assert (await alice.get(PATH)).status == 404
    assert (await query(bob, alice))["device_keys"][alice.user_id] == {}


async def test_it_cannot_take_the_place_of_a_login(alice: Client) -> None:
    assert (await alice.put(PATH, dehydrated(alice, alice.device_id)[1])).status == 400
    assert (await alice.get("/v3/account/whoami")).status == 200


async def test_a_login_on_it_ends_with_it(alice: Client) -> None:
    await alice.ok("PUT", PATH, dehydrated(alice, "DEHYDRATED")[1])
    intruder = await alice.login(device_id="DEHYDRATED")
    assert (await intruder.get("/v3/account/whoami")).status == 200

    await alice.ok("DELETE", PATH)

    assert (await intruder.get("/v3/account/whoami")).status == 401


async def test_it_cannot_have_the_name_of_a_cross_signing_key(alice: Client) -> None:
    keys: CrossSigning = await cross_signing(alice)

    assert (await alice.put(PATH, dehydrated(alice, keys.public_key("master"))[1])).status == 403


@pytest.mark.parametrize(
    "change",
    [
        {"device_id": None},
        {"device_id": ""},
        {"device_id": "OTHER"},
        {"device_data": None},
        {"device_data": {}},
        {"device_data": {"algorithm": 1}},
        {"device_data": {"algorithm": "a", "account": "x" * 70_000}},
        {"device_keys": None},
        {"device_keys": {}},
        {"initial_device_display_name": 1},
        {"one_time_keys": []},
    ],
    ids=lambda change: repr(change)[:50],
)
async def test_malformed_devices_are_refused(alice: Client, change: dict[str, Any]) -> None:
    status, _ = await alice.put(PATH, {**dehydrated(alice, "DEHYDRATED")[1], **change})

    assert status in {400, 413}
    assert (await alice.get(PATH)).status == 404


@pytest.mark.parametrize("token", [1, "x", "-1", "9" * 30, {}])
async def test_malformed_tokens_are_refused(alice: Client, token: Any) -> None:
    await alice.ok("PUT", PATH, dehydrated(alice, "DEHYDRATED")[1])

    assert (await alice.post(f"{PATH}/DEHYDRATED/events", {"next_batch": token})).status == 400
    assert (await alice.get(f"{PATH}/DEHYDRATED/events", from_=str(token))).status == (200 if token == 1 else 400)


async def test_a_token_beyond_the_end_loses_nothing(alice: Client) -> None:
    await alice.ok("PUT", PATH, dehydrated(alice, "DEHYDRATED")[1])
    await alice.ok("POST", f"{PATH}/DEHYDRATED/events", {"next_batch": "9" * 17})
    messages: dict[str, Any] = {alice.user_id: {"DEHYDRATED": {}}}
    await alice.ok("PUT", f"/v3/sendToDevice/m.test/{unique()}", {"messages": messages})

    events = (await alice.ok("POST", f"{PATH}/DEHYDRATED/events"))["events"]

    assert [event["type"] for event in events] == ["m.test"], json.dumps(events)

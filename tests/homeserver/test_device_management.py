"""Devices (Client-Server API, "Device Management")."""

import pytest

from tests.client import Client, quote
from tests.homeserver.test_login import is_logged_in


async def device_ids(client: Client) -> set[str]:
    """The devices that the client's user has."""
    return {device["device_id"] for device in (await client.ok("GET", "/v3/devices"))["devices"]}


@pytest.mark.one_process("when a device was seen is written down every half minute")
async def test_devices_are_listed_with_when_and_where_they_were_seen(alice: Client) -> None:
    phone = await alice.login(initial_device_display_name="phone")
    await phone.get("/v3/account/whoami")

    devices = (await alice.ok("GET", "/v3/devices"))["devices"]

    by_id = {device["device_id"]: device for device in devices}
    assert by_id.keys() == {alice.device_id, phone.device_id}
    assert by_id[phone.device_id]["display_name"] == "phone"
    assert by_id[phone.device_id]["last_seen_ip"] == "127.0.0.1"
    assert by_id[phone.device_id]["last_seen_ts"] > 1_500_000_000_000
    assert await alice.ok("GET", f"/v3/devices/{phone.device_id}") == by_id[phone.device_id]


async def test_a_device_is_renamed(alice: Client) -> None:
    path = f"/v3/devices/{alice.device_id}"

    assert (await alice.put(path, {"display_name": "kettle"})).body == {}
    assert (await alice.put(path, {})).status == 200

    assert (await alice.ok("GET", path))["display_name"] == "kettle"
    status, error = await alice.put(path, {"display_name": "x" * 101})
    assert (status, error["errcode"]) == (400, "M_TOO_LARGE")


async def test_other_peoples_devices_do_not_exist(alice: Client, bob: Client) -> None:
    path = f"/v3/devices/{bob.device_id}"

    for answer in (
        await alice.get(path),
        await alice.put(path, {"display_name": "mine"}),
        await alice.put(path, {}),
    ):
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
    assert (await alice.delete(path, {"auth": alice.password_auth()})).status == 200
    assert await is_logged_in(bob)


async def test_deleting_a_device_needs_the_password_and_ends_its_session(alice: Client) -> None:
    phone = await alice.login()
    path = f"/v3/devices/{phone.device_id}"
    status, challenge = await alice.delete(path)
    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}])
    assert await is_logged_in(phone)

    answer = await alice.delete(path, {"auth": alice.password_auth(challenge["session"])})

    assert (answer.status, answer.body) == (200, {})
    assert not await is_logged_in(phone)
    assert await device_ids(alice) == {alice.device_id}
    assert (await alice.delete(path, {"auth": alice.password_auth()})).status == 200  # it had been removed before


async def test_deleting_several_devices(alice: Client) -> None:
    phone, tablet = await alice.login(), await alice.login()
    body = {"devices": [phone.device_id, tablet.device_id, "NOSUCH"]}
    status, challenge = await alice.post("/v3/delete_devices", body)
    assert status == 401

    answer = await alice.post("/v3/delete_devices", {**body, "auth": alice.password_auth(challenge["session"])})

    assert answer.status == 200
    assert await device_ids(alice) == {alice.device_id}


async def test_a_session_authorises_one_use(alice: Client) -> None:
    phone = await alice.login()
    body = {"devices": [phone.device_id]}
    _, challenge = await alice.post("/v3/delete_devices", body)
    auth = alice.password_auth(challenge["session"])
    assert (await alice.post("/v3/delete_devices", {**body, "auth": auth})).status == 200

    again = await alice.post("/v3/delete_devices", {**body, "auth": {"session": challenge["session"]}})

    assert again.status == 401


async def test_a_malformed_list_of_devices_is_refused(alice: Client) -> None:
    for body, errcode in (
        ({}, "M_MISSING_PARAM"),
        ({"devices": "X"}, "M_INVALID_PARAM"),
        ({"devices": [1]}, "M_INVALID_PARAM"),
    ):
        status, error = await alice.post("/v3/delete_devices", body)
        assert (status, error["errcode"]) == (400, errcode)


async def test_a_devices_notification_settings_go_with_it(alice: Client) -> None:
    other = await alice.login()
    base = f"/v3/user/{quote(alice.user_id)}/account_data"
    names = [
        f"{prefix}local_notification_settings.{device_id}"
        for prefix in ("m.", "org.matrix.msc3890.")
        for device_id in (other.device_id, alice.device_id)
    ]
    for name in names:
        await alice.ok("PUT", f"{base}/{name}", {"is_silenced": True})

    await other.ok("POST", "/v3/logout", {})

    found = [(await alice.get(f"{base}/{name}")).status for name in names]
    assert found == [404, 200, 404, 200]

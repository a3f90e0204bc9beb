"""Setting, listing and losing pushers ("Push Notifications", client behaviour; MSC3881)."""

from typing import Any

import pytest

from federation.protocol.types import UserID
from tests.client import Client, Server, quote, unique
from tests.push_gateway import Gateway, pusher, set_pusher

GATEWAY = Gateway(port=8443)


async def listed(client: Client) -> list[Any]:
    """The user's pushers."""
    found: list[Any] = (await client.ok("GET", "/v3/pushers"))["pushers"]
    return found


async def test_a_pusher_is_listed_as_it_was_set(alice: Client, bob: Client) -> None:
    pushkey = await set_pusher(alice, GATEWAY, profile_tag="tag", data={"format": "event_id_only", "mine": [1]})

    (found,) = await listed(alice)
    assert found == {
        **pusher(GATEWAY, pushkey, profile_tag="tag", data={"format": "event_id_only", "mine": [1]}),
        "org.matrix.msc3881.enabled": True,
        "org.matrix.msc3881.device_id": alice.device_id,
    }
    assert await listed(bob) == []


async def test_setting_it_again_changes_it_and_null_deletes_it(alice: Client) -> None:
    pushkey = await set_pusher(alice, GATEWAY)
    await set_pusher(alice, GATEWAY, pushkey=pushkey, lang="de", **{"org.matrix.msc3881.enabled": False})

    (found,) = await listed(alice)
    assert (found["lang"], found["org.matrix.msc3881.enabled"]) == ("de", False)
    gone = {"kind": None, "app_id": "org.example.app", "pushkey": pushkey}
    assert (await alice.post("/v3/pushers/set", gone)).status == 200
    assert await listed(alice) == []
    assert (await alice.post("/r0/pushers/set", gone)).status == 200


async def test_a_key_is_of_one_user_unless_they_append(alice: Client, bob: Client) -> None:
    pushkey = await set_pusher(alice, GATEWAY)
    await set_pusher(bob, GATEWAY, pushkey=pushkey, append=True)
    assert (len(await listed(alice)), len(await listed(bob))) == (1, 1)

    await set_pusher(bob, GATEWAY, pushkey=pushkey, append=False)
    assert (len(await listed(alice)), len(await listed(bob))) == (0, 1)


@pytest.mark.parametrize(
    ("change", "errcode"),
    [
        ({"kind": "pigeon"}, "M_INVALID_PARAM"),
        ({"kind": 1}, "M_INVALID_PARAM"),
        ({"app_id": None}, "M_MISSING_PARAM"),
        ({"pushkey": None}, "M_MISSING_PARAM"),
        ({"lang": None}, "M_MISSING_PARAM"),
        ({"app_display_name": None}, "M_MISSING_PARAM"),
        ({"device_display_name": 3}, "M_BAD_JSON"),
        ({"data": []}, "M_BAD_JSON"),
        ({"data": None}, "M_MISSING_PARAM"),
        ({"data": {}}, "M_MISSING_PARAM"),
        ({"data": {"url": 1}}, "M_BAD_JSON"),
        ({"data": {"url": "http://push.example/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example/other"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example/_matrix/push/v1/notify?a=b"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example/_matrix/push/v1/notify#a"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://a:b@push.example/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://push.example:99999/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https:///_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://[::1/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": "https://\nx/_matrix/push/v1/notify"}}, "M_INVALID_PARAM"),
        ({"data": {"url": GATEWAY.url, "format": 7}}, "M_BAD_JSON"),
        ({"data": {"url": GATEWAY.url, "much": "x" * 5000}}, "M_INVALID_PARAM"),
        ({"pushkey": "k" * 513}, "M_INVALID_PARAM"),
        ({"pushkey": "\u00fc" * 300}, "M_INVALID_PARAM"),
        ({"pushkey": "a\0b"}, "M_INVALID_PARAM"),
        ({"app_id": "a" * 65}, "M_INVALID_PARAM"),
        ({"append": "yes"}, "M_BAD_JSON"),
        ({"org.matrix.msc3881.enabled": "yes"}, "M_BAD_JSON"),
    ],
)
async def test_what_makes_no_sense_is_refused(alice: Client, change: dict[str, Any], errcode: str) -> None:
    body = {**pusher(GATEWAY, unique("key")), **change}

    answer = await alice.post("/v3/pushers/set", {name: value for name, value in body.items() if value is not None})

    assert (answer.status, answer.body["errcode"]) == (400, errcode)
    assert await listed(alice) == []


async def test_a_user_has_only_so_many(alice: Client) -> None:
    for number in range(50):
        await set_pusher(alice, GATEWAY, pushkey=f"key {number}")
    answer = await alice.post("/v3/pushers/set", pusher(GATEWAY, "one more"))
    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    await set_pusher(alice, GATEWAY, pushkey="key 7", lang="de")
    assert len(await listed(alice)) == 50


async def test_guests_have_none(server: Server) -> None:
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register?kind=guest", {}))

    assert (await guest.post("/v3/pushers/set", pusher(GATEWAY, "guest"))).status == 403
    assert (await guest.get("/v3/pushers")).status == 403


async def test_a_pusher_ends_with_its_device(alice: Client) -> None:
    phone = await alice.login()
    await set_pusher(phone, GATEWAY, pushkey="phone")
    await set_pusher(alice, GATEWAY, pushkey="web")

    await phone.ok("POST", "/v3/logout", {})
    assert [each["pushkey"] for each in await listed(alice)] == ["web"]
    auth = {"auth": alice.password_auth()}
    await alice.ok("DELETE", f"/v3/devices/{quote(alice.device_id)}", auth)
    again = await alice.login()
    assert await listed(again) == []


async def test_another_device_may_switch_it_off_without_taking_it_over(alice: Client) -> None:
    phone = await alice.login()
    await set_pusher(phone, GATEWAY, pushkey="phone")
    (found,) = await listed(alice)
    await alice.ok("POST", "/v3/pushers/set", {**found, "org.matrix.msc3881.enabled": False})

    (found,) = await listed(alice)
    assert (found["org.matrix.msc3881.device_id"], found["org.matrix.msc3881.enabled"]) == (phone.device_id, False)
    await phone.ok("POST", "/v3/logout", {})
    assert await listed(alice) == []


@pytest.mark.parametrize("ends_devices", [True, False])
async def test_a_new_password_ends_the_pushers_of_other_sessions(alice: Client, ends_devices: bool) -> None:
    phone = await alice.login()
    await set_pusher(phone, GATEWAY, pushkey="phone")
    await set_pusher(alice, GATEWAY, pushkey="web")

    body = {"new_password": "another one, longer", "logout_devices": ends_devices, "auth": alice.password_auth()}
    await alice.ok("POST", "/v3/account/password", body)
    assert [each["pushkey"] for each in await listed(alice)] == ["web"]


async def test_the_account_s_end_is_theirs(server: Server, alice: Client) -> None:
    await set_pusher(alice, GATEWAY)
    await alice.ok("POST", "/v3/account/deactivate", {"auth": alice.password_auth()})

    async with server.application.database.read() as tx:
        rows = await tx.fetch("select 1 from pushers where user_id = %s", (UserID(alice.user_id),))
    assert rows == []

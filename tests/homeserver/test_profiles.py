"""Profiles, as clients see them."""

from typing import Any

import pytest

from federation.protocol.types import UserID
from tests.client import Client, Server, quote


def path(client: Client, key: str | None = None) -> str:
    return f"/v3/profile/{quote(client.user_id)}" + ("" if key is None else f"/{quote(key)}")


async def test_a_new_user_has_an_empty_profile(alice: Client) -> None:
    assert await alice.ok("GET", path(alice)) == {}
    status, body = await alice.get(path(alice, "displayname"))
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("displayname", "Alice \0 Wonderland"),
        ("avatar_url", "mxc://hearth.test/abc"),
        ("m.tz", "Europe/London"),
        ("org.example.any", {"a": [1, None]}),
        ("org.example.null", None),
    ],
)
async def test_a_field_is_set_read_by_anybody_and_removed(alice: Client, bob: Client, key: str, value: Any) -> None:
    assert await alice.ok("PUT", path(alice, key), {key: value}) == {}

    assert await bob.ok("GET", path(alice, key)) == {key: value}
    assert await bob.anonymous().ok("GET", path(alice)) == {key: value}
    unstable = path(alice, key).replace("/v3/", "/unstable/uk.tcpip.msc4133/")
    assert await bob.ok("GET", unstable) == {key: value}

    assert await alice.ok("DELETE", unstable) == {}
    assert (await bob.get(path(alice, key))).status == 404
    assert await alice.ok("DELETE", path(alice, key)) == {}


async def test_only_the_user_changes_a_profile(alice: Client, bob: Client) -> None:
    answers = [
        await bob.put(path(alice, "displayname"), {"displayname": "Bob"}),
        await bob.delete(path(alice, "displayname")),
    ]

    assert [(answer.status, answer.body["errcode"]) for answer in answers] == [(403, "M_FORBIDDEN")] * 2
    assert (await bob.anonymous().put(path(alice, "displayname"), {"displayname": "x"})).status == 401


@pytest.mark.parametrize(
    ("key", "body", "errcode"),
    [
        ("displayname", {}, "M_MISSING_PARAM"),
        ("displayname", {"displayname": 7}, "M_BAD_JSON"),
        ("displayname", {"displayname": "x" * 2000}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": "https://example.org/x.png"}, "M_INVALID_PARAM"),
        ("avatar_url", {"avatar_url": {}}, "M_BAD_JSON"),
        ("m.tz", {"m.tz": 1}, "M_BAD_JSON"),
        ("org.example.x", b"[]", "M_BAD_JSON"),
        ("x" * 256, {"x" * 256: 1}, "M_KEY_TOO_LARGE"),
        ("org.example.big", {"org.example.big": "x" * 65_536}, "M_PROFILE_TOO_LARGE"),
    ],
)
async def test_what_cannot_be_is_refused(alice: Client, key: str, body: Any, errcode: str) -> None:
    answer = await alice.put(path(alice, key), body)

    assert (answer.status, answer.body["errcode"]) == (400, errcode)
    assert await alice.ok("GET", path(alice)) == {}


async def test_the_whole_profile_is_limited(alice: Client) -> None:
    await alice.ok("PUT", path(alice, "org.example.a"), {"org.example.a": "x" * 40_000})

    answer = await alice.put(path(alice, "org.example.b"), {"org.example.b": "x" * 40_000})

    assert (answer.status, answer.body["errcode"]) == (400, "M_PROFILE_TOO_LARGE")
    await alice.ok("PUT", path(alice, "org.example.a"), {"org.example.a": "y"})
    await alice.ok("PUT", path(alice, "org.example.b"), {"org.example.b": "x" * 40_000})


@pytest.mark.parametrize(
    ("user_id", "status"), [("@nobody:hearth.test", 404), ("nonsense", 400), ("@x:elsewhere.test", 403)]
)
async def test_an_unknown_user_has_no_profile(server: Server, user_id: str, status: int) -> None:
    assert (await server.anonymous.get(f"/v3/profile/{quote(user_id)}")).status == status
    assert (await server.anonymous.get(f"/v3/profile/{quote(user_id)}/displayname")).status == status


async def test_who_is_logged_in_may_ask_for_profiles_of_other_servers(alice: Client) -> None:
    assert (await alice.get(f"/v3/profile/{quote('@x:elsewhere.test')}")).status == 502


async def test_an_empty_name_is_no_name(alice: Client) -> None:
    await alice.ok("PUT", path(alice, "displayname"), {"displayname": "Alice"})
    await alice.ok("PUT", path(alice, "displayname"), {"displayname": ""})

    assert await alice.ok("GET", path(alice)) == {}


async def test_a_guest_has_only_a_name(server: Server) -> None:
    body = await server.anonymous.ok("POST", "/v3/register", {}, params={"kind": "guest"})
    guest = server.anonymous.logged_in(body)

    await guest.ok("PUT", path(guest, "displayname"), {"displayname": "Passer-by"})
    answer = await guest.put(path(guest, "avatar_url"), {"avatar_url": "mxc://hearth.test/a"})

    assert (answer.status, answer.body["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert await guest.ok("GET", path(guest)) == {"displayname": "Passer-by"}


async def test_a_suspended_user_changes_no_profile(server: Server, alice: Client) -> None:
    await alice.ok("PUT", path(alice, "displayname"), {"displayname": "Alice"})
    await server.application.accounts.service.set_suspended(UserID(alice.user_id), is_suspended=True)

    for answer in (
        await alice.put(path(alice, "displayname"), {"displayname": "Mallory"}),
        await alice.delete(path(alice, "displayname")),
    ):
        assert (answer.status, answer.body["errcode"]) == (403, "M_USER_SUSPENDED")
    assert await alice.ok("GET", path(alice)) == {"displayname": "Alice"}

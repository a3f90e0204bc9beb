"""Account data, tags and stored filters, as clients see them."""

import asyncio

import pytest

from federation.protocol.types import UserID
from tests.client import Client, Server, quote


def path(client: Client, name: str = "org.example.data", room_id: str | None = None) -> str:
    room = "" if room_id is None else f"/rooms/{quote(room_id)}"
    return f"/v3/user/{quote(client.user_id)}{room}/account_data/{quote(name)}"


async def test_data_is_kept_for_the_user(alice: Client) -> None:
    content = {"a": [1, 0.5, None], "nul": "\0"}

    assert await alice.ok("PUT", path(alice), content) == {}

    assert await alice.ok("GET", path(alice)) == content
    phone = await alice.login()
    assert await phone.ok("GET", path(alice)) == content


async def test_data_that_was_never_set_is_not_found(alice: Client) -> None:
    status, body = await alice.get(path(alice))

    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


async def test_nobody_else_reads_or_writes_it(alice: Client, bob: Client) -> None:
    await alice.ok("PUT", path(alice), {"secret": 1})

    for answer in (await bob.get(path(alice)), await bob.put(path(alice), {})):
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("name", ["m.fully_read", "m.push_rules"])
async def test_what_the_server_manages_cannot_be_set(alice: Client, name: str) -> None:
    status, body = await alice.put(path(alice, name), {})

    assert (status, body["errcode"]) == (405, "M_BAD_JSON")


async def test_push_rules_can_be_read(alice: Client) -> None:
    assert await alice.ok("GET", path(alice, "m.push_rules")) == await alice.ok("GET", "/v3/pushrules/")


async def test_deleted_data_is_not_found(alice: Client) -> None:
    unstable = path(alice).replace("/v3/", "/unstable/org.matrix.msc3391/")
    await alice.ok("PUT", path(alice), {"a": 1})

    assert await alice.ok("DELETE", unstable) == {}

    assert (await alice.get(path(alice))).status == 404
    assert await alice.ok("DELETE", unstable) == {}
    await alice.ok("PUT", path(alice), {})
    assert await alice.ok("GET", path(alice)) == {}


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        (b"[]", 400, "M_BAD_JSON"),
        (b"nonsense", 400, "M_NOT_JSON"),
        (b'{"a": NaN}', 400, "M_NOT_JSON"),
        (b'{"a": "' + b"x" * 300_000 + b'"}', 413, "M_TOO_LARGE"),
    ],
)
async def test_a_body_that_is_no_object_is_refused(alice: Client, body: bytes, status: int, errcode: str) -> None:
    answer = await alice.put(path(alice), body)

    assert (answer.status, answer.body["errcode"]) == (status, errcode)


@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
async def test_a_type_that_cannot_be_kept_is_refused(alice: Client, name: str) -> None:
    status, body = await alice.put(path(alice, name), {})

    assert (status, body["errcode"]) == (400, "M_INVALID_PARAM")
    assert (await alice.get(path(alice, name))).status in {400, 404}


async def test_data_of_a_room_needs_a_room(alice: Client) -> None:
    malformed = await alice.put(path(alice, room_id="@no:room"), {})
    foreign = await alice.put(path(alice, room_id="!unknown:hearth.test"), {})
    unset = await alice.get(path(alice, room_id="!unknown:hearth.test"))

    assert (malformed.status, malformed.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert (foreign.status, foreign.body["errcode"]) == (403, "M_FORBIDDEN")
    assert (unset.status, unset.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_ignored_users_follow_the_account_data(server: Server, alice: Client) -> None:
    async def ignored() -> frozenset[str]:
        async with server.application.database.read() as tx:
            return await server.application.user_data.account_data.ignored_users(tx, UserID(alice.user_id))

    assert await ignored() == frozenset()
    await alice.ok("PUT", path(alice, "m.ignored_user_list"), {"ignored_users": {"@x:y": {}}})
    assert await ignored() == {"@x:y"}
    await alice.ok("PUT", path(alice, "m.ignored_user_list"), {"ignored_users": "nobody"})
    assert await ignored() == frozenset()


# --- filters


async def test_a_filter_is_kept(alice: Client) -> None:
    filters = f"/v3/user/{quote(alice.user_id)}/filter"
    body = {"room": {"timeline": {"limit": 5, "types": ["m.*"]}}}

    filter_id = (await alice.ok("POST", filters, body))["filter_id"]

    assert not filter_id.startswith("{")
    assert await alice.ok("GET", f"{filters}/{filter_id}") == body
    assert (await alice.ok("POST", filters, body))["filter_id"] == filter_id
    assert (await alice.ok("POST", filters, {}))["filter_id"] != filter_id


async def test_filters_stored_at_once_get_ids_of_their_own(alice: Client) -> None:
    filters = f"/v3/user/{quote(alice.user_id)}/filter"

    answers = await asyncio.gather(
        *(alice.ok("POST", filters, {"room": {"timeline": {"limit": 1 + n % 4}}}) for n in range(12))
    )

    assert len({answer["filter_id"] for answer in answers}) == 4


@pytest.mark.parametrize("filter_id", ["9999", "x", "-1", "99999999999999999999", "%00"])
async def test_an_unknown_filter_is_not_found(alice: Client, filter_id: str) -> None:
    status, body = await alice.get(f"/v3/user/{quote(alice.user_id)}/filter/{filter_id}")

    assert status in {400, 404}
    assert body["errcode"] in {"M_NOT_FOUND", "M_INVALID_PARAM"}


async def test_a_malformed_filter_is_refused(alice: Client) -> None:
    status, body = await alice.post(f"/v3/user/{quote(alice.user_id)}/filter", {"room": {"rooms": 7}})

    assert (status, body["errcode"]) == (400, "M_BAD_JSON")


async def test_filters_are_ones_own(alice: Client, bob: Client) -> None:
    filters = f"/v3/user/{quote(alice.user_id)}/filter"
    filter_id = (await alice.ok("POST", filters, {}))["filter_id"]

    for answer in (await bob.get(f"{filters}/{filter_id}"), await bob.post(filters, {})):
        assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")

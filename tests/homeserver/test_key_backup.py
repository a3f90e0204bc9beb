"""Backups of room keys (Client-Server API, "Server-side key backups")."""

import asyncio
from typing import Any

import pytest
from yarl import URL

from tests.client import Client, quote

ALGORITHM = "m.megolm_backup.v1.curve25519-aes-sha2"
ROOM, OTHER_ROOM = "!room:hearth.test", "!other:hearth.test"
VERSION = "/v3/room_keys/version"
KEYS = "/v3/room_keys/keys"


def a_key(text: str = "secret", *, index: int = 5, forwarded: int = 1, verified: bool = False) -> dict[str, Any]:
    """A backed-up key."""
    return {
        "first_message_index": index,
        "forwarded_count": forwarded,
        "is_verified": verified,
        "session_data": {"ciphertext": text, "mac": "m", "ephemeral": "e"},
    }


async def a_backup(client: Client) -> str:
    """A new version."""
    body = await client.ok("POST", VERSION, {"algorithm": ALGORITHM, "auth_data": {"public_key": "abc"}})
    version: str = body["version"]
    return version


async def test_there_is_no_backup_at_first(alice: Client) -> None:
    status, body = await alice.get(VERSION)

    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


async def test_a_new_version_is_the_current_one(alice: Client) -> None:
    first, second = await a_backup(alice), await a_backup(alice)

    assert first != second
    assert await alice.ok("GET", VERSION) == {
        "algorithm": ALGORITHM,
        "auth_data": {"public_key": "abc"},
        "count": 0,
        "etag": "0",
        "version": second,
    }
    assert (await alice.ok("GET", f"{VERSION}/{first}"))["version"] == first


async def test_a_backup_is_its_users_alone(alice: Client, bob: Client) -> None:
    version = await a_backup(alice)

    assert (await bob.get(f"{VERSION}/{version}")).status == 404
    assert (await bob.delete(f"{VERSION}/{version}")).status == 404
    assert (await bob.put(KEYS, {"rooms": {}}, version=version)).status == 404
    assert (await bob.get(KEYS, version=version)).status == 404


async def test_auth_data_can_be_replaced(alice: Client) -> None:
    version = await a_backup(alice)
    change = {"algorithm": ALGORITHM, "auth_data": {"public_key": "new"}, "version": version}

    assert await alice.ok("PUT", f"{VERSION}/{version}", change) == {}

    assert (await alice.ok("GET", VERSION))["auth_data"] == {"public_key": "new"}


@pytest.mark.parametrize("change", [{"algorithm": "other"}, {"version": "0"}, {"auth_data": "text"}, {"version": 3}])
async def test_nothing_else_can_be_replaced(alice: Client, change: dict[str, Any]) -> None:
    version = await a_backup(alice)

    status, _ = await alice.put(f"{VERSION}/{version}", {"algorithm": ALGORITHM, "auth_data": {}, **change})

    assert status == 400
    assert (await alice.ok("GET", VERSION))["auth_data"] == {"public_key": "abc"}


async def test_deleting_a_version_leaves_the_one_before(alice: Client) -> None:
    first, second = await a_backup(alice), await a_backup(alice)
    await alice.ok("PUT", f"{KEYS}/{quote(ROOM)}/s", a_key(), params={"version": second})

    assert await alice.ok("DELETE", f"{VERSION}/{second}") == {}

    assert (await alice.get(f"{VERSION}/{second}")).status == 404
    assert (await alice.get(KEYS, version=second)).status == 404
    assert (await alice.ok("GET", VERSION))["version"] == first
    assert await alice.ok("DELETE", f"{VERSION}/{second}") == {}  # again
    assert (await alice.delete(f"{VERSION}/{int(second) + 1000}")).status == 404
    assert int(await a_backup(alice)) > int(second)


async def test_keys_come_back_as_they_were_stored(alice: Client) -> None:
    version = await a_backup(alice)
    rooms = {
        ROOM: {"sessions": {"one": a_key("1"), "two/+": a_key("2")}},
        OTHER_ROOM: {"sessions": {"one": a_key("3")}},
    }

    stored = await alice.ok("PUT", KEYS, {"rooms": rooms}, params={"version": version})

    assert (stored["count"], isinstance(stored["etag"], str)) == (3, True)
    params = {"version": version}
    assert await alice.ok("GET", KEYS, params=params) == {"rooms": rooms}
    assert await alice.ok("GET", f"{KEYS}/{quote(ROOM)}", params=params) == rooms[ROOM]
    assert await alice.ok("GET", f"{KEYS}/{quote(ROOM)}/{quote('two/+')}", params=params) == a_key("2")


async def test_room_and_session_can_be_stored_alone(alice: Client) -> None:
    params = {"version": await a_backup(alice)}

    await alice.ok("PUT", f"{KEYS}/{quote(ROOM)}", {"sessions": {"one": a_key("1")}}, params=params)
    await alice.ok("PUT", f"{KEYS}/{quote(ROOM)}/two", a_key("2"), params=params)

    found = await alice.ok("GET", KEYS, params=params)
    assert found == {"rooms": {ROOM: {"sessions": {"one": a_key("1"), "two": a_key("2")}}}}


async def test_what_is_not_there_is_empty_or_not_found(alice: Client) -> None:
    version = await a_backup(alice)

    assert (await alice.get(KEYS, version=version)).body == {"rooms": {}}
    assert (await alice.get(f"{KEYS}/{quote(ROOM)}", version=version)).body == {"sessions": {}}
    status, body = await alice.get(f"{KEYS}/{quote(ROOM)}/one", version=version)
    assert (status, body["errcode"]) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("before", "after", "is_replaced"),
    [
        (a_key(verified=False, index=1, forwarded=1), a_key("new", verified=True, index=9, forwarded=9), True),
        (a_key(verified=True, index=9, forwarded=9), a_key("new", verified=False, index=1, forwarded=1), False),
        (a_key(index=5, forwarded=1), a_key("new", index=4, forwarded=9), True),
        (a_key(index=5, forwarded=9), a_key("new", index=6, forwarded=1), False),
        (a_key(index=5, forwarded=5), a_key("new", index=5, forwarded=4), True),
        (a_key(index=5, forwarded=5), a_key("new", index=5, forwarded=6), False),
        (a_key(index=5, forwarded=5), a_key("new", index=5, forwarded=5), False),
    ],
)
async def test_the_better_key_is_kept(
    alice: Client, before: dict[str, Any], after: dict[str, Any], is_replaced: bool
) -> None:
    version = await a_backup(alice)
    path = f"{KEYS}/{quote(ROOM)}/one"
    first = (await alice.put(path, before, version=version)).body

    second = (await alice.put(path, after, version=version)).body

    assert (await alice.get(path, version=version)).body == (after if is_replaced else before)
    assert (second["count"], second["etag"] != first["etag"]) == (1, is_replaced)


async def test_keys_are_deleted_by_session_room_and_altogether(alice: Client) -> None:
    version = await a_backup(alice)
    rooms = {room: {"sessions": {"one": a_key(), "two": a_key()}} for room in (ROOM, OTHER_ROOM)}
    etags = [(await alice.put(KEYS, {"rooms": rooms}, version=version)).body["etag"]]

    for path, count in ((f"{KEYS}/{quote(ROOM)}/one", 3), (f"{KEYS}/{quote(OTHER_ROOM)}", 1), (KEYS, 0)):
        body = await alice.ok("DELETE", path, params={"version": version})
        assert body["count"] == count
        etags.append(body["etag"])

    assert len(set(etags)) == 4
    assert (await alice.get(VERSION)).body["etag"] == etags[-1]
    assert (await alice.get(KEYS, version=version)).body == {"rooms": {}}


async def test_only_the_current_version_is_written(alice: Client) -> None:
    first, second = await a_backup(alice), await a_backup(alice)

    status, body = await alice.put(KEYS, {"rooms": {}}, version=first)

    assert (status, body["errcode"], body["current_version"]) == (403, "M_WRONG_ROOM_KEYS_VERSION", second)


@pytest.mark.parametrize("version", ["", "0", "-1", "x", "\0", "9" * 30, "٣"])
async def test_unknown_versions_are_not_found(alice: Client, version: str) -> None:
    await a_backup(alice)

    for answer in (
        await alice.get(KEYS, version=version),
        await alice.put(KEYS, {"rooms": {}}, version=version),
        await alice.delete(KEYS, version=version),
    ):
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_the_version_is_required(alice: Client) -> None:
    await a_backup(alice)

    for method in ("GET", "PUT", "DELETE"):
        status, body = await alice.request(method, KEYS, {"rooms": {}})
        assert (status, body["errcode"]) == (400, "M_MISSING_PARAM")


@pytest.mark.parametrize(
    "change",
    [
        {"first_message_index": -1},
        {"first_message_index": "1"},
        {"first_message_index": 1.5},
        {"first_message_index": True},
        {"first_message_index": 2**63},
        {"forwarded_count": None},
        {"is_verified": 1},
        {"is_verified": None},
        {"session_data": "text"},
        {"session_data": None},
        {"session_data": {"ciphertext": "x" * 70_000}},
    ],
    ids=lambda change: repr(change)[:50],
)
async def test_malformed_keys_are_refused(alice: Client, change: dict[str, Any]) -> None:
    version = await a_backup(alice)

    status, _ = await alice.put(f"{KEYS}/{quote(ROOM)}/one", {**a_key(), **change}, version=version)

    assert status in {400, 413}
    assert (await alice.get(KEYS, version=version)).body == {"rooms": {}}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rooms": []},
        {"rooms": {ROOM: None}},
        {"rooms": {ROOM: {}}},
        {"rooms": {ROOM: {"sessions": []}}},
        {"rooms": {ROOM: {"sessions": {"one": 1}}}},
        {"rooms": {ROOM: {"sessions": {"\0": a_key()}}}},
        {"rooms": {"\0": {"sessions": {"one": a_key()}}}},
        {"rooms": {ROOM: {"sessions": {"x" * 300: a_key()}}}},
    ],
    ids=lambda body: repr(body)[:60],
)
async def test_malformed_bodies_are_refused(alice: Client, body: Any) -> None:
    version = await a_backup(alice)

    assert (await alice.put(KEYS, body, version=version)).status == 400


@pytest.mark.parametrize("part", ["%00", "%FF"])
async def test_impossible_names_in_the_path_are_refused(alice: Client, part: str) -> None:
    version = await a_backup(alice)
    url = URL(f"{alice.base_url}/_matrix/client{KEYS}/{part}/one?version={version}", encoded=True)
    async with alice.session.get(url, headers={"Authorization": f"Bearer {alice.access_token}"}) as response:
        assert response.status == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"algorithm": ALGORITHM},
        {"algorithm": 1, "auth_data": {}},
        {"algorithm": "m.unknown", "auth_data": {}},
        {"algorithm": ALGORITHM, "auth_data": []},
    ],
)
async def test_malformed_versions_are_refused(alice: Client, body: Any) -> None:
    assert (await alice.post(VERSION, body)).status == 400


async def test_parallel_writes_are_all_counted(alice: Client) -> None:
    version = await a_backup(alice)

    await asyncio.gather(*(alice.put(f"{KEYS}/{quote(ROOM)}/{n}", a_key(), version=version) for n in range(30)))

    assert (await alice.get(VERSION)).body["count"] == 30
    assert len((await alice.get(f"{KEYS}/{quote(ROOM)}", version=version)).body["sessions"]) == 30

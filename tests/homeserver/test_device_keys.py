"""Keys of devices: upload, query, claim (Client-Server API, "Key management API")."""

import asyncio
from typing import Any

import pytest
from olm.utility import ed25519_verify

from tests.client import Client, Server
from tests.devices import Device, a_device, claim, query, signable


async def test_uploaded_keys_are_found_by_others(alice: Client, bob: Client) -> None:
    device = Device(alice)

    await device.upload(device_keys=device.identity())

    found = (await query(bob, alice))["device_keys"][alice.user_id][alice.device_id]
    signature = found["signatures"][alice.user_id][device.key_id]
    ed25519_verify(found["keys"][device.key_id], signable(found), signature)
    assert {**found, "unsigned": {}} == {**device.identity(), "unsigned": {}}


async def test_a_query_names_the_device_as_its_user_does(alice: Client, bob: Client) -> None:
    phone = await alice.login(initial_device_display_name="Alice's phone")
    await a_device(phone)

    found = (await query(bob, alice))["device_keys"][alice.user_id]

    assert found[phone.device_id]["unsigned"] == {"device_display_name": "Alice's phone"}
    assert list(found) == [phone.device_id]  # the other device has no keys


async def test_a_query_for_one_device_finds_that_one(alice: Client, bob: Client) -> None:
    phone = await alice.login()
    await a_device(alice)
    await a_device(phone)

    body = await bob.ok("POST", "/v3/keys/query", {"device_keys": {alice.user_id: [phone.device_id]}})

    assert list(body["device_keys"][alice.user_id]) == [phone.device_id]


async def test_the_longest_device_id_may_have_keys(alice: Client, bob: Client) -> None:
    phone = await alice.login(device_id="d" * 255)

    await a_device(phone, one_time_keys=1)

    assert list((await query(bob, alice))["device_keys"][alice.user_id]) == [phone.device_id]
    assert await claim(bob, phone) is not None


async def test_users_of_unreachable_servers_are_failures(alice: Client) -> None:
    wanted: dict[str, list[str]] = {"@carol:elsewhere.test": [], alice.user_id: []}

    body = await alice.ok("POST", "/v3/keys/query", {"device_keys": wanted})

    assert list(body["failures"]) == ["elsewhere.test"]
    assert list(body["device_keys"]) == [alice.user_id]


async def test_one_time_keys_are_counted(alice: Client) -> None:
    device = await a_device(alice, one_time_keys=5)

    assert await device.upload(one_time_keys=device.one_time_keys(3)) == {"signed_curve25519": 8}
    assert await device.upload() == {"signed_curve25519": 8}


async def test_each_one_time_key_is_given_once_the_oldest_upload_first(alice: Client, bob: Client) -> None:
    device = Device(alice)
    first, second = device.one_time_keys(2), device.one_time_keys(2)
    await device.upload(device_keys=device.identity(), one_time_keys=first)
    await device.upload(one_time_keys=second)

    given = [await claim(bob, alice) for _ in range(4)]

    assert dict(given[:2]) == first
    assert dict(given[2:]) == second
    assert await claim(bob, alice) is None


async def test_parallel_claims_never_give_a_key_twice(alice: Client, bob: Client) -> None:
    device = Device(alice)
    uploaded = device.one_time_keys(45)
    await device.upload(device_keys=device.identity(), one_time_keys=uploaded)

    given = [each for each in await asyncio.gather(*(claim(bob, alice) for _ in range(50))) if each is not None]

    assert len(given) == 45
    assert dict(given) == uploaded


async def test_a_repeated_upload_changes_nothing(alice: Client) -> None:
    device = await a_device(alice)
    keys = device.one_time_keys(3)
    await device.upload(one_time_keys=keys)

    assert await device.upload(one_time_keys=keys) == {"signed_curve25519": 3}


async def test_a_repeated_upload_does_not_bring_back_a_key_that_was_given(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    keys = device.one_time_keys(1)
    await device.upload(one_time_keys=keys)
    assert await claim(bob, alice) is not None

    assert await device.upload(one_time_keys=keys) == {"signed_curve25519": 0}
    assert await claim(bob, alice) is None


async def test_another_key_under_a_used_id_is_refused(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    ((key_id, key),) = device.one_time_keys(1).items()
    await device.upload(one_time_keys={key_id: key})
    other = next(iter(device.one_time_keys(1).values()))
    fresh = device.one_time_keys(1)

    status, body = await alice.post("/v3/keys/upload", {"one_time_keys": {key_id: other, **fresh}})

    assert (status, body["errcode"]) == (400, "M_INVALID_PARAM")
    assert await device.upload() == {"signed_curve25519": 1}
    assert await claim(bob, alice) == (key_id, key)


async def test_the_fallback_key_is_given_when_no_other_is_left(alice: Client, bob: Client) -> None:
    device = await a_device(alice, one_time_keys=1)
    ((key_id, key),) = device.fallback_key().items()
    await device.upload(fallback_keys={key_id: key})

    given = [await claim(bob, alice) for _ in range(3)]

    assert given[0][0] != key_id
    assert given[1:] == [(key_id, key), (key_id, key)]


async def test_a_new_fallback_key_replaces_the_old(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    await device.upload(fallback_keys=device.fallback_key())
    newer = device.fallback_key()

    await device.upload(fallback_keys=newer)

    assert [await claim(bob, alice)] == list(newer.items())


async def test_fallback_keys_are_unused_until_they_are_given(server: Server, alice: Client, bob: Client) -> None:
    device = await a_device(alice, one_time_keys=1)
    await device.upload(fallback_keys=device.fallback_key())

    async def unused() -> tuple[int, list[str]]:
        counts = await key_counts(server, alice)
        return counts.one_time_keys["signed_curve25519"], counts.unused_fallback_keys

    assert await unused() == (1, ["signed_curve25519"])
    await claim(bob, alice)
    assert await unused() == (0, ["signed_curve25519"])
    await claim(bob, alice)
    assert await unused() == (0, [])
    await device.upload(fallback_keys=device.fallback_key())
    assert await unused() == (0, ["signed_curve25519"])


async def key_counts(server: Server, client: Client) -> Any:
    """As /sync asks for them."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one(
            "select device from devices where user_id = %s and device_id = %s", (client.user_id, client.device_id)
        )
    assert row is not None
    return await server.application.keys.counts.get(client.user_id, client.device_id, row[0])  # type: ignore[arg-type] # plain texts


async def test_unknown_devices_and_algorithms_give_no_key(alice: Client, bob: Client) -> None:
    await a_device(alice, one_time_keys=1)
    wanted = {alice.user_id: {alice.device_id: "curve25519", "NOSUCH": "signed_curve25519"}, bob.user_id: {}}

    body = await bob.ok("POST", "/v3/keys/claim", {"one_time_keys": wanted})

    assert body == {"one_time_keys": {}, "failures": {}}


async def test_a_deleted_device_leaves_no_keys(alice: Client, bob: Client) -> None:
    phone = await alice.login()
    await a_device(phone, one_time_keys=1)

    await phone.ok("POST", "/v3/logout")

    assert (await query(bob, alice))["device_keys"][alice.user_id] == {}
    assert await claim(bob, phone) is None


async def test_old_identity_keys_are_replaced_by_new_ones(alice: Client, bob: Client) -> None:
    await a_device(alice)

    newer = await a_device(alice)

    found = (await query(bob, alice))["device_keys"][alice.user_id][alice.device_id]
    assert found["keys"] == newer.identity()["keys"]


async def test_signatures_of_others_are_not_stored_with_device_keys(alice: Client, bob: Client) -> None:
    device = Device(alice)
    identity = device.identity()
    identity["signatures"][bob.user_id] = {"ed25519:SPAM": "AAAA"}

    await device.upload(device_keys=identity)

    found = (await query(bob, alice))["device_keys"][alice.user_id][alice.device_id]
    assert list(found["signatures"]) == [alice.user_id]


def deep(depth: int) -> Any:
    """An object within objects."""
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "@mallory:hearth.test"},
        {"user_id": None},
        {"device_id": "OTHER"},
        {"device_id": 1},
        {"algorithms": None},
        {"algorithms": "m.olm.v1"},
        {"algorithms": [1]},
        {"keys": None},
        {"keys": []},
        {"keys": {"ed25519:A": 1}},
        {"keys": {"ed25519:A": None}},
        {"keys": {"ed25519": "A"}},
        {"keys": {"ed25519:\0": "A"}},
        {"signatures": None},
        {"signatures": {"@a:b.test": None}},
        {"signatures": {"@a:b.test": {"ed25519:A": 1}}},
        {"signatures": {"nobody": {"ed25519:A": "A"}}},
        {"extra": 1.5},
        {"extra": 2**60},
        {"extra": deep(90)},
        {"extra": "x" * 40_000},
    ],
    ids=repr,
)
async def test_malformed_device_keys_are_refused_and_not_stored(
    alice: Client, bob: Client, change: dict[str, Any]
) -> None:
    identity = {**Device(alice).identity(), **change}

    status, body = await alice.post("/v3/keys/upload", {"device_keys": identity})

    if "extra" in change and isinstance(change["extra"], dict):
        assert status == 200  # nested below the limit of all JSON
    else:
        assert status == (413 if body["errcode"] == "M_TOO_LARGE" else 400)
        assert (await query(bob, alice))["device_keys"][alice.user_id] == {}


@pytest.mark.parametrize("name", ["user_id", "device_id", "algorithms", "keys", "signatures"])
async def test_device_keys_without_a_required_member_are_refused(alice: Client, name: str) -> None:
    identity = Device(alice).identity()
    del identity[name]

    status, body = await alice.post("/v3/keys/upload", {"device_keys": identity})

    assert (status, body["errcode"]) == (400, "M_MISSING_PARAM")


@pytest.mark.parametrize("part", ["one_time_keys", "fallback_keys"])
@pytest.mark.parametrize(
    "keys",
    [
        [1],
        "keys",
        7,
        {"signed_curve25519": {"key": "A", "signatures": {}}},
        {"signed_curve25519:A": "A"},
        {"signed_curve25519:A": None},
        {"signed_curve25519:A": {}},
        {"signed_curve25519:A": {"key": 1, "signatures": {}}},
        {"signed_curve25519:A": {"key": "A"}},
        {"signed_curve25519:A": {"key": "A", "signatures": []}},
        {"signed_curve25519:A": {"key": "A", "signatures": {}, "fallback": "yes"}},
        {"signed_curve25519:A": {"key": "A", "signatures": {"@a:b.test": {"ed25519:A": {}}}}},
        {"signed_curve25519:\0": {"key": "A", "signatures": {}}},
        {"signed_curve25519:A": {"key": "A", "signatures": {}, "extra": 0.1}},
        {f"signed_curve25519:{'A' * 300}": {"key": "A", "signatures": {}}},
        {f"curve25519:{number}": "A" for number in range(1001)},
    ],
    ids=lambda keys: repr(keys)[:60],
)
async def test_malformed_one_time_keys_are_refused(alice: Client, part: str, keys: Any) -> None:
    status, body = await alice.post("/v3/keys/upload", {part: keys})

    assert (status, body["errcode"] in {"M_BAD_JSON", "M_INVALID_PARAM"}) == (400, True)
    assert await Device(alice).upload() == {"signed_curve25519": 0}


async def test_two_fallback_keys_of_one_algorithm_are_refused(alice: Client) -> None:
    device = Device(alice)

    status, _ = await alice.post(
        "/v3/keys/upload", {"fallback_keys": {**device.fallback_key(), **device.fallback_key()}}
    )

    assert status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("query", {}),
        ("query", {"device_keys": []}),
        ("query", {"device_keys": {"@a:hearth.test": {}}}),
        ("query", {"device_keys": {"@a:hearth.test": None}}),
        ("query", {"device_keys": {"@a:hearth.test": [1]}}),
        ("query", {"device_keys": {"nobody": []}}),
        ("query", {"device_keys": {"@a\0:hearth.test": []}}),
        ("query", {"device_keys": {}, "timeout": "long"}),
        ("claim", {}),
        ("claim", {"one_time_keys": 1}),
        ("claim", {"one_time_keys": {"@a:hearth.test": "A"}}),
        ("claim", {"one_time_keys": {"@a:hearth.test": {"A": ["signed_curve25519"]}}}),
        ("claim", {"one_time_keys": {"@a:hearth.test": {"A": None}}}),
        ("claim", {"one_time_keys": {"@a:hearth.test": {"\0": "signed_curve25519"}}}),
        ("claim", {"one_time_keys": {"nobody": {"A": "signed_curve25519"}}}),
    ],
)
async def test_malformed_queries_and_claims_are_refused(alice: Client, path: str, body: Any) -> None:
    assert (await alice.post(f"/v3/keys/{path}", body)).status == 400


async def test_guests_may_use_keys(server: Server) -> None:
    guest = server.anonymous.logged_in(await server.anonymous.ok("POST", "/v3/register", {}, params={"kind": "guest"}))

    await a_device(guest, one_time_keys=1)

    assert await claim(guest, guest) is not None

"""Keys of devices between two servers (Server-Server API, "End-to-End Encryption", "Device Management")."""

import json
from typing import Any

import pytest
from olm.utility import ed25519_verify

from federation.protocol.errors import InvalidInput
from federation.protocol.types import DeviceID, UserID
from homeserver.services.remote_key_checks import checked_answer, checked_claims, checked_keys, checked_list
from tests.client import Client, Server, quote
from tests.devices import CrossSigning, a_device, claim, cross_signing, query, signable
from tests.federation.peer import Peer, path_of
from tests.federation.servers import Pair


async def people(pair: Pair) -> tuple[Client, Client]:
    """One of each server."""
    return await pair.near.register("alice"), await pair.far.register("bob")


async def test_keys_of_another_servers_user_are_found(pair: Pair) -> None:
    alice, bob = await people(pair)
    device = await a_device(bob)
    keys = await cross_signing(bob)
    await bob.ok("PUT", f"/v3/devices/{quote(bob.device_id)}", {"display_name": "Bob's telephone"})

    found = await query(alice, bob)

    known = found["device_keys"][bob.user_id][bob.device_id]
    ed25519_verify(known["keys"][device.key_id], signable(known), known["signatures"][bob.user_id][device.key_id])
    assert known["unsigned"] == {}
    assert found["master_keys"][bob.user_id]["keys"] == keys.key("master")["keys"]
    assert found["self_signing_keys"][bob.user_id] == keys.key("self_signing")
    assert found["user_signing_keys"] == {}
    assert found["failures"] == {}


async def test_another_server_is_told_of_our_users_alone(server: Server, alice: Client, bob: Client) -> None:
    peer = await Peer(server).trust()
    device, keys = await a_device(alice), await cross_signing(alice)
    before = await peer.ok("GET", path_of("/v1/user/devices/{}", bob.user_id))
    foreign = "@carol:elsewhere.test"

    listed = await peer.ok("GET", path_of("/v1/user/devices/{}", alice.user_id))
    asked: Any = {"device_keys": {alice.user_id: [], bob.user_id: [], foreign: [], "@nobody:hearth.test": []}}
    found = await peer.ok("POST", "/v1/user/keys/query", asked)

    assert before == {"user_id": bob.user_id, "stream_id": before["stream_id"], "devices": []}
    (only,) = listed["devices"]
    assert (listed["user_id"], only["device_id"], only["keys"]["keys"]) == (
        alice.user_id,
        alice.device_id,
        device.identity()["keys"],
    )
    assert "device_display_name" not in only
    assert listed["master_key"]["keys"] == found["master_keys"][alice.user_id]["keys"] == keys.key("master")["keys"]
    assert listed["self_signing_key"] == found["self_signing_keys"][alice.user_id] == keys.key("self_signing")
    assert found["device_keys"][alice.user_id][alice.device_id]["keys"] == only["keys"]["keys"]
    assert not any(found["device_keys"].get(unknown) for unknown in (foreign, "@nobody:hearth.test"))
    assert "user_signing_keys" not in found
    assert "user_signing_key" not in listed
    for unknown in (foreign, "@nobody:hearth.test"):
        answer = await peer.request("GET", path_of("/v1/user/devices/{}", unknown))
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_another_server_claims_keys_of_our_users_alone(server: Server, alice: Client) -> None:
    peer = await Peer(server).trust()
    await a_device(alice, one_time_keys=1)
    wanted = {alice.user_id: {alice.device_id: "signed_curve25519", "UNKNOWN": "signed_curve25519"}}
    body = {"one_time_keys": {**wanted, "@carol:elsewhere.test": {"X": "signed_curve25519"}}}

    first = await peer.ok("POST", "/v1/user/keys/claim", body)
    second = await peer.ok("POST", "/v1/user/keys/claim", body)

    assert list(first["one_time_keys"]) == [alice.user_id]
    assert list(first["one_time_keys"][alice.user_id]) == [alice.device_id]
    assert alice.device_id not in second["one_time_keys"].get(alice.user_id, {})


async def test_only_the_devices_that_were_asked_for_are_told(pair: Pair) -> None:
    alice, bob = await people(pair)
    await a_device(bob)
    second = await a_device(await bob.login())

    found = await alice.ok("POST", "/v3/keys/query", {"device_keys": {bob.user_id: [second.client.device_id]}})

    assert list(found["device_keys"][bob.user_id]) == [second.client.device_id]


async def test_each_key_of_another_servers_device_is_given_once(pair: Pair) -> None:
    alice, bob = await people(pair)
    device = await a_device(bob, one_time_keys=2)

    given = [await claim(alice, bob) for _ in range(3)]

    assert len({name for name, _ in filter(None, given)}) == 2
    assert given[2] is None
    for _, key in filter(None, given):
        ed25519_verify(
            device.account.identity_keys["ed25519"], signable(key), key["signatures"][bob.user_id][device.key_id]
        )


async def test_a_server_that_does_not_answer_is_named_and_keeps_no_other_from_it(pair: Pair) -> None:
    alice, bob = await people(pair)
    await a_device(bob, one_time_keys=1)
    carol = "@carol:127.0.0.1:1"

    found = await alice.ok("POST", "/v3/keys/query", {"device_keys": {bob.user_id: [], carol: []}})
    wanted = {bob.user_id: {bob.device_id: "signed_curve25519"}, carol: {"X": "signed_curve25519"}}
    claimed = await alice.ok("POST", "/v3/keys/claim", {"one_time_keys": wanted})

    assert list(found["device_keys"]) == [bob.user_id]
    assert list(claimed["one_time_keys"]) == [bob.user_id]
    assert found["failures"].keys() == claimed["failures"].keys() == {"127.0.0.1:1"}


# --- what a server may answer

HERE = UserID("@bob:there.example")
OTHER = UserID("@eve:elsewhere.example")
DEVICE = DeviceID("PHONE")


def a_key(user_id: str = HERE, device_id: str = DEVICE, **changes: Any) -> dict[str, Any]:
    """Keys of a device."""
    return {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": {}, "signatures": {}, **changes}


@pytest.mark.parametrize("answer", [{}, {"device_keys": []}, {"device_keys": None}])
def test_an_answer_without_keys_is_none(answer: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        checked_answer(answer, {HERE: ()})


@pytest.mark.parametrize(
    "bad",
    [
        1,
        [],
        {},
        a_key(user_id=OTHER),
        a_key(device_id="OTHER"),
        a_key(keys=[]),
        a_key(keys={"curve25519:PHONE": 1}),
        a_key(signatures={HERE: {"ed25519:PHONE": {}}}),
        a_key(number=1.5),
        a_key(large="x" * 40_000),
        a_key(deep=json.loads("[" * 500 + "]" * 500)),
    ],
)
def test_malformed_devices_are_left_out_and_good_ones_stay(bad: object) -> None:
    answer = {"device_keys": {HERE: {DEVICE: bad, "GOOD": a_key(device_id="GOOD"), "": a_key(device_id="")}}}

    checked = checked_answer(answer, {HERE: ()})

    assert list(checked["device_keys"][HERE]) == ["GOOD"]


def test_users_and_devices_that_nobody_asked_for_are_left_out() -> None:
    answer = {
        "device_keys": {HERE: {DEVICE: a_key(), "MORE": a_key(device_id="MORE")}, OTHER: {DEVICE: a_key(OTHER)}},
        "master_keys": {OTHER: {"user_id": OTHER, "usage": ["master"], "keys": {}}},
        "user_signing_keys": {HERE: {}},
    }

    checked = checked_answer(answer, {HERE: (DEVICE,)})

    assert list(checked["device_keys"]) == [HERE]
    assert list(checked["device_keys"][HERE]) == [DEVICE]
    assert checked["master_keys"] == checked["self_signing_keys"] == {}
    assert "user_signing_keys" not in checked


def test_signatures_of_others_are_no_business_of_the_server() -> None:
    signatures = {HERE: {"ed25519:PHONE": "own"}, OTHER: {"ed25519:X": "feigned"}}
    unsigned = {"device_display_name": "x" * 5000, "other": 1}
    answer = {"device_keys": {HERE: {DEVICE: a_key(signatures=signatures, unsigned=unsigned)}}}

    device = checked_answer(answer, {HERE: ()})["device_keys"][HERE][DEVICE]

    assert device["signatures"] == {HERE: {"ed25519:PHONE": "own"}}
    assert device["unsigned"] == {"device_display_name": "x" * 1000}


def test_malformed_cross_signing_keys_are_left_out() -> None:
    answer = {
        "device_keys": {HERE: {}},
        "master_keys": {HERE: {"user_id": OTHER, "usage": ["master"], "keys": {"ed25519:a": "a"}}},
        "self_signing_keys": [],
    }

    checked = checked_answer(answer, {HERE: ()})

    assert checked == {"device_keys": {HERE: {}}, "master_keys": {}, "self_signing_keys": {}}


@pytest.mark.parametrize(
    "keys",
    [
        1,
        {},
        {"signed_curve25519:A": {"key": "k", "signatures": {}}, "signed_curve25519:B": {"key": "k", "signatures": {}}},
        {"curve25519:A": "k"},
        {"signed_curve25519:A": {"key": 1, "signatures": {}}},
        {"signed_curve25519:A": {"key": "k"}},
        {"signed_curve25519:A": {"key": "k" * 5000, "signatures": {}}},
    ],
)
def test_malformed_claimed_keys_are_left_out(keys: object) -> None:
    answer = {"one_time_keys": {HERE: {DEVICE: keys}, OTHER: {DEVICE: {"signed_curve25519:A": {"key": "k"}}}}}

    assert checked_claims(answer, {HERE: {DEVICE: "signed_curve25519"}}) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": OTHER},
        {"user_id": None},
        {"stream_id": "1"},
        {"stream_id": True},
        {"stream_id": 2**64},
        {"devices": None},
        {"devices": {}},
    ],
)
def test_a_list_of_another_shape_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        checked_list({"user_id": HERE, "stream_id": 1, "devices": [], **changes}, HERE)


def test_what_is_malformed_in_a_list_is_left_out() -> None:
    good = {"device_id": DEVICE, "keys": a_key(), "device_display_name": "telephone"}
    nameless = {"device_id": "B", "keys": a_key(device_id="B"), "device_display_name": "\0"}
    devices = [1, {}, {"device_id": DEVICE, "keys": a_key(OTHER)}, {"device_id": 1, "keys": a_key()}, good, nameless]

    found = checked_list({"user_id": HERE, "stream_id": 7, "devices": devices, "master_key": 1}, HERE)

    assert [(device.device_id, device.display_name) for device in found.devices] == [(DEVICE, "telephone"), ("B", None)]
    assert (found.stream_id, found.keys) == (7, [])


def test_a_user_has_no_endless_devices() -> None:
    devices = [{"device_id": str(number), "keys": a_key(device_id=str(number))} for number in range(3000)]

    assert len(checked_list({"user_id": HERE, "stream_id": 7, "devices": devices}, HERE).devices) == 2000


def test_a_self_signing_key_that_the_master_key_did_not_sign_is_none() -> None:
    owner = Client("", None, user_id=HERE)  # type: ignore[arg-type]  # it says nothing
    keys, others = CrossSigning(owner), CrossSigning(owner)

    both = checked_keys(HERE, keys.key("master"), keys.key("self_signing"))
    one = checked_keys(HERE, keys.key("master"), others.key("self_signing"))

    assert [key.usage for key in both] == ["master", "self_signing"]
    assert [key.usage for key in one] == ["master"]
    assert checked_keys(HERE, None, keys.key("self_signing")) == []

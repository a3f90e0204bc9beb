"""Cross-signing keys and signatures (Client-Server API, "Cross-signing")."""

import asyncio
from typing import Any

import pytest
from olm.pk import PkSigning
from olm.utility import ed25519_verify

from tests.client import Client, Server
from tests.devices import USAGES, CrossSigning, a_device, cross_signing, query, signable

UPLOAD = "/v3/keys/device_signing/upload"
SIGNATURES = "/v3/keys/signatures/upload"


async def test_the_first_keys_need_no_password(alice: Client, bob: Client) -> None:
    keys = CrossSigning(alice)

    assert (await alice.post(UPLOAD, keys.body())).status == 200

    found = await query(bob, alice)
    assert found["master_keys"] == {alice.user_id: keys.key("master")}
    self_signing = found["self_signing_keys"][alice.user_id]
    (signature,) = self_signing["signatures"][alice.user_id].values()
    ed25519_verify(keys.public_key("master"), signable(self_signing), signature)


async def test_only_the_user_sees_the_user_signing_key(alice: Client, bob: Client) -> None:
    keys = await cross_signing(alice)

    assert (await query(bob, alice))["user_signing_keys"] == {}
    assert (await query(alice, alice))["user_signing_keys"] == {alice.user_id: keys.key("user_signing")}


async def test_the_unstable_path_is_served(alice: Client) -> None:
    assert (await alice.post("/unstable/keys/device_signing/upload", CrossSigning(alice).body())).status == 200
    assert (await alice.post("/unstable/keys/signatures/upload", {})).status == 200


async def test_the_same_keys_again_need_no_password(alice: Client) -> None:
    keys = await cross_signing(alice)

    assert (await alice.post(UPLOAD, keys.body())).status == 200
    assert (await alice.post(UPLOAD, {"master_key": keys.key("master")})).status == 200


@pytest.mark.parametrize("changed", USAGES)
async def test_any_other_key_needs_the_password(alice: Client, bob: Client, changed: str) -> None:
    keys = await cross_signing(alice)
    before = await query(alice, alice)
    keys.pairs[changed] = PkSigning(PkSigning.generate_seed())

    status, challenge = await alice.post(UPLOAD, keys.body())

    assert (status, challenge["flows"]) == (401, [{"stages": ["m.login.password"]}])
    assert await query(alice, alice) == before
    auth = alice.password_auth(challenge["session"])
    assert (await alice.post(UPLOAD, {**keys.body(), "auth": auth})).status == 200
    assert (await query(bob, alice))["master_keys"] == {alice.user_id: keys.key("master")}


async def test_an_empty_upload_asks_for_the_password_once_there_are_keys(alice: Client) -> None:
    status, body = await alice.post(UPLOAD, {})
    assert (status, body["errcode"]) == (400, "M_MISSING_PARAM")

    await cross_signing(alice)

    assert (await alice.post(UPLOAD, {})).status == 401


async def test_a_new_master_key_alone_takes_the_others_away(alice: Client) -> None:
    await cross_signing(alice)
    master_key = CrossSigning(alice).key("master")
    session = (await alice.post(UPLOAD, {"master_key": master_key})).body["session"]

    body = {"master_key": master_key, "auth": alice.password_auth(session)}
    await alice.ok("POST", UPLOAD, body)

    found = await query(alice, alice)
    assert found["master_keys"] == {alice.user_id: master_key}
    assert (found["self_signing_keys"], found["user_signing_keys"]) == ({}, {})


async def test_the_other_keys_may_follow_the_master_key(alice: Client) -> None:
    keys = CrossSigning(alice)
    await alice.ok("POST", UPLOAD, {"master_key": keys.key("master")})
    body = {"self_signing_key": keys.key("self_signing")}

    session = (await alice.post(UPLOAD, body)).body["session"]
    await alice.ok("POST", UPLOAD, {**body, "auth": alice.password_auth(session)})

    assert alice.user_id in (await query(alice, alice))["self_signing_keys"]


@pytest.mark.parametrize("usage", ["self_signing", "user_signing"])
async def test_a_key_that_the_master_key_did_not_sign_is_refused(alice: Client, usage: str) -> None:
    keys, others = CrossSigning(alice), CrossSigning(alice)

    status, body = await alice.post(UPLOAD, {**keys.body(), f"{usage}_key": others.key(usage)})

    assert (status, body["errcode"]) == (400, "M_INVALID_SIGNATURE")
    assert (await query(alice, alice))["master_keys"] == {}


async def test_a_key_with_the_name_of_a_device_is_refused(alice: Client) -> None:
    keys = CrossSigning(alice)
    await alice.login(device_id=keys.public_key("self_signing"))

    status, body = await alice.post(UPLOAD, keys.body())

    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "@mallory:hearth.test"},
        {"user_id": None},
        {"usage": None},
        {"usage": "master"},
        {"usage": [1]},
        {"usage": ["self_signing"]},
        {"usage": ["master", "true"]},
        {"keys": None},
        {"keys": {}},
        {"keys": {"ed25519:A": "A"}},
        {"keys": {"ed25519:A": None}},
        {"keys": {"ed25519:nqOvzeuGWT/sRx3h7+MHoInYj3Uk2LD/unI9kDYcHwk": "other"}},
        {"signatures": []},
        {"signatures": {"@a:b.test": {"ed25519:A": 1}}},
        {"extra": 1.5},
    ],
    ids=repr,
)
async def test_malformed_cross_signing_keys_are_refused(alice: Client, change: dict[str, Any]) -> None:
    master_key = {**CrossSigning(alice).key("master"), **change}

    assert (await alice.post(UPLOAD, {"master_key": master_key})).status == 400
    assert (await query(alice, alice))["master_keys"] == {}


async def test_concurrent_first_uploads_leave_one_set_of_keys(alice: Client) -> None:
    statuses = [
        answer.status
        for answer in await asyncio.gather(*(alice.post(UPLOAD, CrossSigning(alice).body()) for _ in range(8)))
    ]

    assert sorted(statuses) == [200] + [401] * 7


# --- signatures


async def test_a_device_signed_by_the_self_signing_key_is_seen_so_by_others(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    keys = await cross_signing(alice)
    signed = keys.sign("self_signing", device.identity())

    body = await alice.ok("POST", SIGNATURES, {alice.user_id: {alice.device_id: signed}})

    assert body == {"failures": {}}
    found = (await query(bob, alice))["device_keys"][alice.user_id][alice.device_id]
    by_alice = found["signatures"][alice.user_id]
    assert set(by_alice) == {device.key_id, f"ed25519:{keys.public_key('self_signing')}"}
    ed25519_verify(
        keys.public_key("self_signing"), signable(found), by_alice[f"ed25519:{keys.public_key('self_signing')}"]
    )


async def test_a_master_key_signed_by_a_device_is_seen_so_by_others(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    keys = await cross_signing(alice)
    signed = device.signed(keys.key("master"))

    body = await alice.ok("POST", SIGNATURES, {alice.user_id: {keys.public_key("master"): signed}})

    assert body == {"failures": {}}
    assert (await query(bob, alice))["master_keys"][alice.user_id]["signatures"] == signed["signatures"]


async def test_whom_a_user_has_verified_only_that_user_sees(server: Server, alice: Client, bob: Client) -> None:
    keys, bobs = await cross_signing(alice), await cross_signing(bob)
    signed = keys.sign("user_signing", bobs.key("master"))

    body = await alice.ok("POST", SIGNATURES, {bob.user_id: {bobs.public_key("master"): signed}})

    assert body == {"failures": {}}
    assert (await query(alice, bob))["master_keys"][bob.user_id]["signatures"] == signed["signatures"]
    for other in (bob, await server.register()):
        assert "signatures" not in (await query(other, bob))["master_keys"][bob.user_id]


async def test_each_signature_fails_for_itself(alice: Client, bob: Client) -> None:
    device, phone = await a_device(alice), await a_device(await alice.login())
    keys, bobs = await cross_signing(alice), await cross_signing(bob)
    forged = CrossSigning(alice).sign("self_signing", phone.identity())
    wrong = {**keys.sign("self_signing", device.identity())}
    wrong["signatures"][alice.user_id] = {f"ed25519:{keys.public_key('self_signing')}": "AAAA"}
    good = keys.sign("user_signing", bobs.key("master"))

    body = await alice.ok(
        "POST",
        SIGNATURES,
        {
            alice.user_id: {alice.device_id: wrong, phone.client.device_id: forged, "NOSUCH": device.identity()},
            bob.user_id: {bobs.public_key("master"): good, bobs.public_key("self_signing"): good},
        },
    )

    codes = {user: {name: error["errcode"] for name, error in of.items()} for user, of in body["failures"].items()}
    assert codes == {
        alice.user_id: {
            alice.device_id: "M_INVALID_SIGNATURE",
            phone.client.device_id: "M_INVALID_SIGNATURE",
            "NOSUCH": "M_NOT_FOUND",
        },
        bob.user_id: {bobs.public_key("self_signing"): "M_NOT_FOUND"},
    }
    assert "signatures" in (await query(alice, bob))["master_keys"][bob.user_id]


async def test_a_signature_about_other_keys_than_the_published_is_refused(alice: Client) -> None:
    device = await a_device(alice)
    keys = await cross_signing(alice)
    altered = keys.sign("self_signing", {**device.identity(), "algorithms": []})

    body = await alice.ok("POST", SIGNATURES, {alice.user_id: {alice.device_id: altered}})

    assert body["failures"][alice.user_id][alice.device_id]["errcode"] == "M_INVALID_PARAM"


async def test_nobody_signs_devices_of_others(alice: Client, bob: Client) -> None:
    device = await a_device(bob)
    await cross_signing(bob)
    keys = await cross_signing(alice)
    signed = keys.sign("self_signing", device.identity())

    body = await alice.ok("POST", SIGNATURES, {bob.user_id: {bob.device_id: signed}})

    assert body["failures"][bob.user_id][bob.device_id]["errcode"] == "M_NOT_FOUND"


async def test_replaced_keys_lose_their_signatures(alice: Client, bob: Client) -> None:
    device = await a_device(alice)
    keys = await cross_signing(alice)
    await alice.ok("POST", SIGNATURES, {alice.user_id: {alice.device_id: keys.sign("self_signing", device.identity())}})

    newer = CrossSigning(alice)
    session = (await alice.post(UPLOAD, newer.body())).body["session"]
    await alice.ok("POST", UPLOAD, {**newer.body(), "auth": alice.password_auth(session)})

    found = (await query(bob, alice))["device_keys"][alice.user_id][alice.device_id]
    assert set(found["signatures"][alice.user_id]) == {device.key_id}


@pytest.mark.parametrize(
    "body",
    [
        {"nobody": {}},
        {"@a:hearth.test": []},
        {"@a:hearth.test": {"A": 1}},
        {"@a:hearth.test": {"\0": {}}},
    ],
)
async def test_malformed_signatures_are_refused(alice: Client, body: Any) -> None:
    assert (await alice.post(SIGNATURES, body)).status == 400


@pytest.mark.parametrize(
    "signatures", [None, [], {"x": 1}, {"@a:hearth.test": []}, {"@a:hearth.test": {"ed25519:A": {}}}], ids=repr
)
async def test_malformed_signed_keys_fail(alice: Client, signatures: Any) -> None:
    device = await a_device(alice)
    await cross_signing(alice)

    body = await alice.ok(
        "POST", SIGNATURES, {alice.user_id: {alice.device_id: {**device.identity(), "signatures": signatures}}}
    )

    assert list(body["failures"][alice.user_id]) == [alice.device_id]

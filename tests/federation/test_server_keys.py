"""`inbound/server_keys.py`: keys that are given out (Server-Server API, "Retrieving server keys")."""

from collections.abc import Sequence

import pytest

from federation.protocol import server_keys, signatures
from federation.protocol.event_hashes import encode_base64
from federation.protocol.server_keys import OldKey
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject
from homeserver.signing_keys import OwnKeys
from tests.client import Server
from tests.federation.peer import Peer, now_ms
from tests.servers import SIGNING_KEY, running

SERVER = "/_matrix/key/v2/server"
QUERY = "/_matrix/key/v2/query"
HOUR_MS = 3600 * 1000


def is_signed(keys: JsonObject, name: str, key: SigningKey) -> bool:
    return signatures.verify_json(keys, name, key.key_id, key.public_key)


@pytest.mark.parametrize("path", [SERVER, SERVER + "/ed25519:auto", SERVER + "/ed25519%3Aauto"])
async def test_our_own_keys(server: Server, path: str) -> None:
    status, keys = await server.anonymous.get(path)

    assert status == 200
    assert keys["server_name"] == server.name
    assert keys["verify_keys"] == {SIGNING_KEY.key_id: {"key": encode_base64(SIGNING_KEY.public_key)}}
    assert keys["old_verify_keys"] == {}
    assert now_ms() + HOUR_MS < keys["valid_until_ts"] <= now_ms() + server_keys.MAX_VALIDITY_MS
    assert is_signed(keys, server.name, SIGNING_KEY)


async def test_old_keys_are_published_with_the_time_they_were_retired(conninfo: str) -> None:
    old = SigningKey.from_seed("before", b"b" * 32)
    retired = OldKey(key_id=old.key_id, public_key=old.public_key, expired_ts=1_700_000_000_000)

    async with running(conninfo, keys=OwnKeys(SIGNING_KEY, (retired,))) as server:
        _, keys = await server.anonymous.get(SERVER)

    assert keys["old_verify_keys"] == {
        old.key_id: {"key": encode_base64(old.public_key), "expired_ts": 1_700_000_000_000}
    }
    assert list(keys["verify_keys"]) == [SIGNING_KEY.key_id]
    assert is_signed(keys, server.name, SIGNING_KEY)


async def query(server: Server, body: JsonObject) -> Sequence[JsonObject]:
    """The lists in the answer to a query that must succeed."""
    status, answer = await server.anonymous.post(QUERY, body)
    assert status == 200, answer
    lists: Sequence[JsonObject] = answer["server_keys"]
    return lists


async def test_a_notary_signs_what_others_signed(server: Server) -> None:
    peer = await Peer(server).trust()

    status, answer = await server.anonymous.get(f"{QUERY}/{peer.name}")
    [many] = await query(server, {"server_keys": {peer.name: {peer.key.key_id: {}}}})

    assert status == 200
    [keys] = answer["server_keys"]
    assert keys == many
    assert keys["verify_keys"] == {peer.key.key_id: {"key": encode_base64(peer.key.public_key)}}
    assert is_signed(keys, peer.name, peer.key)
    assert is_signed(keys, server.name, SIGNING_KEY)


async def test_a_notary_gives_its_own_keys_too(server: Server) -> None:
    peer = await Peer(server).trust()

    lists = await query(server, {"server_keys": {server.name: {}, peer.name: {}}})

    assert sorted(keys["server_name"] for keys in lists) == sorted([server.name, peer.name])
    assert all(is_signed(keys, server.name, SIGNING_KEY) for keys in lists)


async def test_a_notary_knows_nothing_of_a_server_that_it_never_reached(server: Server) -> None:
    _, answer = await server.anonymous.get(f"{QUERY}/nowhere.invalid")

    assert answer == {"server_keys": []}
    assert await query(server, {"server_keys": {"nowhere.invalid": {}}}) == []
    assert await query(server, {"server_keys": {}}) == []


@pytest.mark.parametrize(
    "path",
    [
        "/not%20a%20name",
        "/a..b%2Fc",
        "/peer.example?minimum_valid_until_ts=soon",
        "/peer.example?minimum_valid_until_ts=-1",
        "/peer.example?minimum_valid_until_ts=1.5",
    ],
)
async def test_a_query_that_means_nothing(server: Server, path: str) -> None:
    answer = await server.anonymous.get(QUERY + path)

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"server_keys": []},
        {"server_keys": {"peer.example": []}},
        {"server_keys": {"not a name": {}}},
        {"server_keys": {"peer.example": {"ed25519:a": 1}}},
        {"server_keys": {"peer.example": {"ed25519:a": {"minimum_valid_until_ts": "soon"}}}},
        {"server_keys": {"peer.example": {"ed25519:a": {"minimum_valid_until_ts": True}}}},
        {"server_keys": {"peer.example": {"ed25519:a": {"minimum_valid_until_ts": 1.5}}}},
        {"server_keys": {"peer.example": {"ed25519:a": {"minimum_valid_until_ts": 2**60}}}},
        {"server_keys": {f"s{number}.example": {} for number in range(1001)}},
    ],
)
async def test_queries_that_mean_nothing(server: Server, body: JsonObject) -> None:
    answer = await server.anonymous.post(QUERY, body)

    assert answer.status == 400
    assert answer.body["errcode"] in ("M_BAD_JSON", "M_INVALID_PARAM")


async def test_a_query_of_whom_nobody_knows_is_small(server: Server) -> None:
    answer = await server.anonymous.post(QUERY, {"server_keys": {}, "padding": "x" * 256 * 1024})

    assert (answer.status, answer.body["errcode"]) == (413, "M_TOO_LARGE")

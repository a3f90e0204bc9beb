"""OpenID tokens and TURN credentials (Client-Server API, "OpenID", "Voice over IP")."""

import base64
import hashlib
import hmac
import time

from homeserver.config import Federation, Secret, Turn
from tests.client import Client, Server, quote
from tests.servers import running

USER_INFO = "/_matrix/federation/v1/openid/userinfo"


async def test_an_openid_token_tells_services_who_its_user_is(server: Server, alice: Client) -> None:
    token = await alice.ok("POST", f"/v3/user/{quote(alice.user_id)}/openid/request_token", {})

    assert token.keys() == {"access_token", "token_type", "matrix_server_name", "expires_in"}
    assert (token["token_type"], token["matrix_server_name"]) == ("Bearer", server.name)
    answer = await server.anonymous.get(USER_INFO, access_token=token["access_token"])
    assert (answer.status, answer.body) == (200, {"sub": alice.user_id})
    status, error = await server.anonymous.get("/v3/account/whoami", access_token=token["access_token"])
    assert (status, error["errcode"]) == (401, "M_UNKNOWN_TOKEN")


async def test_an_openid_token_is_for_oneself(alice: Client, bob: Client) -> None:
    status, error = await alice.post(f"/v3/user/{quote(bob.user_id)}/openid/request_token", {})

    assert (status, error["errcode"]) == (403, "M_FORBIDDEN")


async def test_only_an_openid_token_is_one(server: Server, alice: Client) -> None:
    status, error = await server.anonymous.get(USER_INFO, access_token=alice.access_token)
    assert (status, error["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    status, error = await server.anonymous.get(USER_INFO)
    assert (status, error["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_without_federation_nobody_else_is_told(conninfo: str) -> None:
    async with running(conninfo, federation=Federation(enabled=False)) as server:
        status, error = await server.anonymous.get(USER_INFO, access_token="x")
        assert (status, error["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_an_openid_token_ends_with_the_account(server: Server, alice: Client) -> None:
    token = await alice.ok("POST", f"/v3/user/{quote(alice.user_id)}/openid/request_token", {})
    await alice.ok("POST", "/v3/account/deactivate", {"auth": alice.password_auth()})

    assert (await server.anonymous.get(USER_INFO, access_token=token["access_token"])).status == 401


async def test_turn_credentials_are_made_from_the_shared_secret(conninfo: str) -> None:
    uris = ("turn:turn.hearth.test:3478?transport=udp",)
    async with running(conninfo, turn=Turn(uris=uris, shared_secret=Secret("secret"))) as server:
        alice = await server.register()
        body = await alice.ok("GET", "/v3/voip/turnServer")

    assert (body["uris"], body["ttl"]) == (list(uris), 86_400)
    expiry, _, user_id = body["username"].partition(":")
    assert user_id == alice.user_id
    assert abs(int(expiry) - time.time() - 86_400) < 60
    mac = hmac.new(b"secret", body["username"].encode(), hashlib.sha1).digest()
    assert body["password"] == base64.b64encode(mac).decode()


async def test_without_turn_servers_there_are_none(server: Server, alice: Client) -> None:
    assert (await alice.get("/v3/voip/turnServer")).body == {}
    assert (await server.anonymous.get("/v3/voip/turnServer")).status == 401

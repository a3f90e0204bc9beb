"""Versions, well-known, capabilities (Client-Server API, "API Versions", "Server Discovery", "Capabilities")."""

import pytest

from homeserver.config import Calls, Federation, PolicyServer, Support
from tests.client import Client, Server
from tests.servers import running


async def test_versions_need_no_login(server: Server) -> None:
    status, body = await server.anonymous.get("/versions")

    assert status == 200
    assert {"r0.6.1", "v1.1"} <= set(body["versions"])
    assert all(isinstance(value, bool) for value in body["unstable_features"].values())


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("v1.2", "/v1/rooms/!a:hearth.test/hierarchy"),
        ("v1.3", "/v1/rooms/!a:hearth.test/relations/$a"),
        ("v1.4", "/v1/rooms/!a:hearth.test/threads"),
        ("v1.11", "/v1/media/config"),
    ],
)
async def test_a_version_is_named_only_if_what_it_brought_is_served(
    server: Server, alice: Client, version: str, path: str
) -> None:
    versions = (await server.anonymous.get("/versions")).body["versions"]

    is_served = (await alice.get(path)).body.get("errcode") != "M_UNRECOGNIZED"
    assert is_served or version not in versions


async def test_what_is_older_than_its_version_is_served_under_its_first_name_too(server: Server) -> None:
    # Clients that choose a path by the versions named take these.
    refreshed = await server.anonymous.post("/unstable/org.matrix.msc2918/refresh", {"refresh_token": "x"})
    assert (refreshed.status, refreshed.body["errcode"]) == (401, "M_UNKNOWN_TOKEN")
    token = await server.anonymous.post("/unstable/org.matrix.msc3882/login/get_token", {})
    assert (token.status, token.body["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_capabilities_name_the_room_versions(server: Server, alice: Client) -> None:
    capabilities = (await alice.ok("GET", "/v3/capabilities"))["capabilities"]

    assert capabilities["m.room_versions"]["default"] == "12"
    assert capabilities["m.room_versions"]["available"]["12"] == "stable"
    assert capabilities["m.change_password"] == {"enabled": True}
    assert "m.account_moderation" not in capabilities
    assert (await server.anonymous.get("/v3/capabilities")).status == 401


async def test_the_well_known_files(conninfo: str) -> None:
    async with running(
        conninfo,
        public_base_url="https://matrix.hearth.test/",
        federation=Federation(well_known_server="matrix.hearth.test:443"),
        support=Support(page="https://hearth.test/help", email="help@hearth.test"),
        calls=Calls(("https://calls.hearth.test/jwt",)),
        policy_server=PolicyServer("6yhHGKhCiXTSEN2ksjV7kX_N6rBQZ3Xb-M7LlC6NS-s"),
    ) as server:
        client = await server.anonymous.get("/.well-known/matrix/client")
        livekit = {"type": "livekit", "livekit_service_url": "https://calls.hearth.test/jwt"}
        assert client.body == {
            "m.homeserver": {"base_url": "https://matrix.hearth.test"},
            "org.matrix.msc4143.rtc_foci": [livekit],
        }
        member = await server.register("member")
        path = "/unstable/org.matrix.msc4143/rtc/transports"
        assert await member.ok("GET", path) == {"rtc_transports": [livekit]}
        assert (await server.anonymous.get(path)).status == 401
        assert client.headers["Access-Control-Allow-Origin"] == "*"
        assert (await server.anonymous.get("/.well-known/matrix/server")).body == {"m.server": "matrix.hearth.test:443"}
        assert (await server.anonymous.get("/.well-known/matrix/support")).body == {
            "contacts": [{"role": "m.role.admin", "email_address": "help@hearth.test"}],
            "support_page": "https://hearth.test/help",
        }
        assert (await server.anonymous.get("/.well-known/matrix/policy_server")).body == {
            "public_keys": {"ed25519": "6yhHGKhCiXTSEN2ksjV7kX_N6rBQZ3Xb-M7LlC6NS-s"}
        }


async def test_what_is_not_configured_is_not_found(server: Server) -> None:
    for name in ("server", "support", "policy_server"):
        answer = await server.anonymous.get(f"/.well-known/matrix/{name}")
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_the_landing_and_login_pages_are_pages(server: Server) -> None:
    for path, text in (("/", b"hearth.test"), ("/_matrix/static/client/login/", b"matrixLogin.onLogin")):
        answer = await server.anonymous.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert text in answer.body
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]

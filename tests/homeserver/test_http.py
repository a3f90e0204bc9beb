"""What holds for every request (Client-Server API, "API Standards", "Web Browser Clients")."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import orjson
import pytest
import yarl

from homeserver.config import Listener
from tests.client import Client, Server
from tests.servers import running

LOGIN = "/v3/login"


@pytest.mark.parametrize("path", ["/v3/nonsense", "/_matrix/nonsense", "/v3/login/", "/_matrix", "/v9/login"])
async def test_an_unknown_path(server: Server, path: str) -> None:
    answer = await server.anonymous.get(path)

    assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_a_known_path_with_a_wrong_method(server: Server) -> None:
    answer = await server.anonymous.put(LOGIN)

    assert (answer.status, answer.body["errcode"]) == (405, "M_UNRECOGNIZED")


@pytest.mark.parametrize("path", ["/versions", "/v3/account/whoami", "/v3/nonsense"])
async def test_browsers_may_ask_beforehand(server: Server, path: str) -> None:
    answer = await server.anonymous.request("OPTIONS", path)

    assert answer.status in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert {"GET", "POST", "PUT", "DELETE", "OPTIONS"} <= set(
        answer.headers["Access-Control-Allow-Methods"].split(", ")
    )
    assert {"X-Requested-With", "Content-Type", "Authorization"} <= set(
        answer.headers["Access-Control-Allow-Headers"].split(", ")
    )


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        (b"", 400, "M_NOT_JSON"),
        (b"{", 400, "M_NOT_JSON"),
        (b"\xff\xfe", 400, "M_NOT_JSON"),
        (b'{"a": NaN}', 400, "M_NOT_JSON"),
        (b'{"a": Infinity}', 400, "M_NOT_JSON"),
        (b'{"a": "\\ud800"}', 400, "M_NOT_JSON"),
        (b"[" * 50_000, 400, "M_NOT_JSON"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, None),
        (b'{"type": "m.login.password", "type": "m.login.password"}', 400, "M_BAD_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'"text"', 400, "M_BAD_JSON"),
        (b"null", 400, "M_BAD_JSON"),
        (b" " * (11 * 1024 * 1024), 413, "M_TOO_LARGE"),
    ],
)
async def test_a_body_that_is_no_object(server: Server, body: bytes, status: int, errcode: str | None) -> None:
    answer = await server.anonymous.request("POST", LOGIN, body)

    assert answer.status == status
    assert answer.body["errcode"] in ([errcode] if errcode else ["M_NOT_JSON", "M_BAD_JSON"])


async def test_a_body_that_never_says_its_length_is_cut_off(server: Server) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 100_000

    async with server.anonymous.session.post(f"{server.base_url}/_matrix/client/v3/login", data=endless()) as response:
        assert response.status == 413
        assert (await response.json())["errcode"] == "M_TOO_LARGE"


@pytest.mark.parametrize("path", ["/v3/devices/%FF", "/v3/devices/%00", "/v3/devices/a%2Fb", "/v3/devices/%E2%82"])
async def test_a_strange_path_parameter(alice: Client, path: str) -> None:
    url = yarl.URL(f"{alice.base_url}/_matrix/client{path}", encoded=True)
    async with alice.session.get(url, headers={"Authorization": f"Bearer {alice.access_token}"}) as response:
        body = await response.json()

    assert (response.status, body["errcode"]) in ((400, "M_INVALID_PARAM"), (404, "M_NOT_FOUND"))


async def test_a_nul_in_a_text_is_the_clients_mistake(alice: Client) -> None:
    status, error = await alice.put(f"/v3/devices/{alice.device_id}\x00", {"display_name": "x"})

    assert (status, error["errcode"]) in ((400, "M_INVALID_PARAM"), (404, "M_NOT_FOUND"))


async def test_head_is_get_without_a_body(server: Server) -> None:
    answer = await server.anonymous.request("HEAD", "/versions")

    assert answer.status == 200


async def test_a_proxy_says_where_a_client_is(conninfo: str) -> None:
    async def seen(listener: Listener, forwarded: str) -> str:
        async with running(conninfo, listeners=(listener,)) as server:
            alice = await server.register()
            alice.headers["X-Forwarded-For"] = forwarded
            await alice.get("/v3/account/whoami")
            device = await alice.ok("GET", f"/v3/devices/{alice.device_id}")
            return str(device["last_seen_ip"])

    trusting = Listener(port=0, behind_proxy=True)
    assert await seen(trusting, "6.6.6.6, 203.0.113.7") == "203.0.113.7"
    assert await seen(Listener(port=0), "203.0.113.7") == "127.0.0.1"


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense",
        b"GET /_matrix/client/versions?a b HTTP/1.1\r\nHost: x",
        b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nno colon",
        b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x",
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
        b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
    ],
)
async def test_what_is_no_http(server: Server, head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.application.ports[0])
    try:
        writer.write(head + b"\r\n\r\n")
        answer, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()

    assert b" 400 " in answer.splitlines()[0]
    assert orjson.loads(body)["errcode"] == "M_UNKNOWN"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Encoding": "gzip"}, b"{}"),
        ({"Content-Encoding": "deflate"}, b"\xff\xff"),
        ({"Content-Encoding": "br"}, b"{}"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 30_000_000)),
    ],
    ids=["no gzip", "no deflate", "no brotli", "a bomb"],
)
async def test_a_compressed_body_that_cannot_be_unpacked(
    server: Server, headers: dict[str, str], body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await server.anonymous.request("POST", LOGIN, body, headers=headers)

    assert answer.status in {400, 413}
    assert answer.body["errcode"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]

"""What a client can put on the wire that no client library would: it harms nobody but itself."""

import asyncio
from urllib.parse import urlsplit

import pytest

from tests.clients import Client, Server


async def raw_request(client: Client, head: bytes, body: bytes = b"") -> int:
    """Send a request byte for byte; the answer's status."""
    address = urlsplit(client.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    token = client.access_token.encode()
    writer.write(
        head
        + b"\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (token, len(body), body)
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ")[1])


async def test_a_user_agent_that_is_no_text_keeps_nobodys_last_use_from_being_written(
    server: Server, alice: Client, bob: Client
) -> None:
    whoami = b"GET /_matrix/client/v3/account/whoami HTTP/1.1\r\nUser-Agent: "

    assert await raw_request(alice, whoami + b"\xff\xfe hostile") == 200
    assert await raw_request(bob, whoami + b"good") == 200

    await server.application.activity.flush()  # what the background task does, whose end would be the server's
    for client in (alice, bob):
        devices = (await client.ok("GET", "/v3/devices"))["devices"]
        assert devices[0]["last_seen_ts"]


@pytest.mark.parametrize("text", ["--5", "-", "+5", "٣", "1" * 30, "5-"])
async def test_a_number_in_the_query_that_is_none_is_refused(alice: Client, text: str) -> None:
    assert (await alice.get("/v3/sync", timeout=text)).status == 400

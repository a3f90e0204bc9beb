"""What a client can put on the wire that no client library would: it harms nobody but itself."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest

from federation import web
from homeserver import listening
from homeserver.config import RateLimit, RateLimits, Registration, RegistrationMode
from homeserver.services.sync import SyncService
from homeserver.services.user_views import LARGE_AT_ONCE
from tests.client import Client, Server, quote
from tests.rooms import create_room
from tests.servers import running


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

    # what the background task does, whose end would be the server's
    await server.application.accounts.activity.flush()
    for client in (alice, bob):
        devices = (await client.ok("GET", "/v3/devices"))["devices"]
        assert devices[0]["last_seen_ts"]


@pytest.mark.one_process("its patience is shortened here")
async def test_a_body_that_comes_slowly_is_not_waited_for(alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_SECONDS", 0.1)
    address = urlsplit(alice.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")

    status_line = await asyncio.wait_for(reader.readline(), 10)

    writer.close()
    await writer.wait_closed()
    assert status_line.split(b" ")[1] == b"408"


@pytest.mark.one_process("its patience is shortened here")
@pytest.mark.parametrize("said", [b"", b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n"])
async def test_a_request_that_never_is_whole_is_not_waited_for(
    conninfo: str, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(listening, "IDLE_SECONDS", 0.3)
    async with running(conninfo) as server:
        address = urlsplit(server.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(said)

        assert await asyncio.wait_for(reader.read(), 10) == b""

        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("text", ["--5", "-", "+5", "٣", "1" * 30, "5-"])
async def test_a_number_in_the_query_that_is_none_is_refused(alice: Client, text: str) -> None:
    assert (await alice.get("/v3/sync", timeout=text)).status == 400


async def test_who_has_not_said_who_they_are_sends_no_large_body(alice: Client) -> None:
    large = b'{"type":"m.login.password","refresh_token":"x","action":"send","a":"' + b"x" * 100_000 + b'"}'
    delayed = "/unstable/org.matrix.msc4140/delayed_events/x"

    for path in ("/v3/login", "/v3/refresh", "/v3/register", delayed, f"{delayed}/send"):
        assert (await alice.anonymous().request("POST", path, large)).status == 413, path


async def test_join_rules_of_odd_types_are_no_internal_error(alice: Client, bob: Client) -> None:
    odd: list[Any] = [[], {}, None, 1]
    allow = [{"type": "m.room_membership", "room_id": each} for each in odd]
    rule = {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
    room_id = await create_room(alice, initial_state=[rule])

    assert (await bob.post(f"/v3/join/{quote(room_id)}")).status == 403


async def test_a_query_of_very_many_devices_is_answered_at_once(alice: Client) -> None:
    names = [f"N{number}" for number in range(100_000)]

    answer = await alice.post("/v3/keys/query", {"device_keys": {alice.user_id: names}})

    assert (answer.status, answer.body["device_keys"]) == (200, {alice.user_id: {}})


async def test_registration_tokens_cannot_be_guessed_for_long(conninfo: str) -> None:
    async with running(
        conninfo,
        registration=Registration(mode=RegistrationMode.TOKEN),
        rate_limits=RateLimits(login=RateLimit(0.0001, 3)),
    ) as server:
        auth = {"type": "m.login.registration_token", "token": "guess"}
        anonymous = server.anonymous
        session = (await anonymous.post("/v3/register", {})).body["session"]
        statuses = [(await anonymous.post("/v3/register", {"auth": auth})).status for _ in range(2)]
        form = f"session={session}&token=guess".encode()
        page = "/v3/auth/m.login.registration_token/fallback/web"
        statuses += [(await anonymous.request("POST", page, form)).status for _ in range(2)]

    assert statuses == [401, 401, 403, 429]


@pytest.mark.one_process("each process answers so many")
async def test_many_first_syncs_of_one_user_are_answered_a_few_at_a_time(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_room(alice)
    syncs = server.application.syncs
    under_way, most = 0, 0
    collect = SyncService._collect_now

    async def counted(self: SyncService, *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await collect(self, *arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(type(syncs), "_collect_now", counted)
    answers = await asyncio.gather(*(alice.get("/v3/sync") for _ in range(10)))

    assert [answer.status for answer in answers] == [200] * 10
    assert most == LARGE_AT_ONCE

"""Two processes of one server, on machines whose clocks differ by an hour: nothing is early, late or expired."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from homeserver import signing_keys
from tests.client import Client, quote
from tests.rooms import create_room, join
from tests.scenarios.hearth_process import HearthProcess, a_directory, a_visitor, serving

AHEAD = """
import time
ahead = {seconds}
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + ahead
time.time_ns = lambda: now_ns() + ahead * 1_000_000_000
"""


@asynccontextmanager
async def two_processes(conninfo: str, seconds: int) -> AsyncIterator[tuple[HearthProcess, HearthProcess]]:
    """Both on this database; the clock of the second is ahead."""
    parts = conninfo_to_dict(conninfo)
    url = f"postgresql://{parts['user']}@{quote(str(parts['host']))}:{parts['port']}/{parts['dbname']}"
    shared = a_directory()
    (shared / "sitecustomize.py").write_text(AHEAD.format(seconds=seconds), encoding="utf-8")
    signing_keys.create(shared / "signing.key")
    settings = f"database: {{url: '{url}'}}\nsigning_key_file: {shared}/signing.key\n"
    try:
        async with serving(settings) as right, serving(settings, python_path=shared) as wrong:
            yield right, wrong
    finally:
        shutil.rmtree(shared)


async def test_a_clock_that_is_an_hour_ahead_changes_nothing(conninfo: str) -> None:
    async with two_processes(conninfo, 3600) as (right, wrong), a_visitor(right) as visitor:

        def at(server: HearthProcess, client: Client) -> Client:
            tokens = {"user_id": client.user_id, "device_id": client.device_id, "access_token": client.access_token}
            return Client(server.base_url, client.session).logged_in(tokens)

        alice = await visitor.register_as("alice", refresh_token=True)
        bob = await at(wrong, visitor).register_as("bob", refresh_token=True)
        room_id = await create_room(alice, preset="public_chat")
        await join(bob, room_id)
        for server in (right, wrong):  # tokens that live for five minutes
            for client in (alice, bob):
                assert (await at(server, client).get("/v3/account/whoami")).status == 200

        path = f"/v3/rooms/{quote(room_id)}/send/m.room.message"
        delayed: list[Any] = []
        for number, server in enumerate((right, wrong, right, wrong)):
            delay = {"org.matrix.msc4140.delay": "1800000"}
            delayed.append(await at(server, alice).ok("PUT", f"{path}/{number}", {"body": "later"}, params=delay))
        await asyncio.sleep(1)
        waiting = (await alice.ok("GET", "/unstable/org.matrix.msc4140/delayed_events"))["delayed_events"]
        assert {each["delay_id"] for each in waiting} == {each["delay_id"] for each in delayed}
        assert max(each["running_since"] for each in waiting) - min(each["running_since"] for each in waiting) < 60_000

        await types(at(wrong, alice), room_id)
        since = await until_typing(at(wrong, bob), room_id, alice, None)
        since = await until_typing(at(right, bob), room_id, alice, None)
        since = (await at(wrong, bob).ok("GET", "/v3/sync"))["next_batch"]
        await types(at(right, bob), room_id)
        await until_typing(at(right, alice), room_id, bob, since)


async def types(client: Client, room_id: str) -> None:
    path = f"/v3/rooms/{quote(room_id)}/typing/{quote(client.user_id)}"
    await client.ok("PUT", path, {"typing": True, "timeout": 60_000})


async def until_typing(reader: Client, room_id: str, writer: Client, since: str | None) -> str:
    """Sync until the writer is told to type; the token then."""
    async with asyncio.timeout(10):
        while True:
            query = {"timeout": "2000"} | ({"since": since} if since else {})
            answer = await reader.ok("GET", "/v3/sync", params=query)
            since = answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
            for event in room.get("ephemeral", {}).get("events", []):
                if event["type"] == "m.typing" and writer.user_id in event["content"]["user_ids"]:
                    return str(since)

"""Pushes while what tells them is killed: every message is told, and none of them often."""

import asyncio
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.client import Client
from tests.federation.authority import Authority
from tests.homeserver.test_workers import until, workers
from tests.push_gateway import a_gateway, set_pusher
from tests.rooms import create_room, join
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving

MESSAGES = 40
KILLS = 2
_SETTINGS = """
federation:
  allowed_ranges: [127.0.0.0/8]
  certificate_authorities: [{authority}]
  notary_servers: []
"""


async def send_until_answered(client: Client, room_id: str, number: int) -> str:
    """Send a message as clients do, again with the same transaction ID while nobody answers; its ID."""
    while True:
        try:
            path = f"/v3/rooms/{room_id}/send/m.room.message/{number}"
            answer = await client.put(path, {"msgtype": "m.text", "body": str(number)})
            if answer.status == 200:
                return str(answer.body["event_id"])
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kills_all", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_killed_processes_lose_no_push(tmp_path: Path, kills_all: bool) -> None:
    authority = Authority(tmp_path)
    settings = _SETTINGS.format(authority=authority.certificate)
    arguments = () if kills_all else ("--workers", "2")
    async with (
        a_gateway(authority) as gateway,
        serving(settings, arguments=arguments) as server,
        a_visitor(server, 10) as visitor,
    ):
        gateway.delay_seconds = 0.01
        alice, bob = await visitor.register_as("alice"), await visitor.register_as("bob")
        room_id = await create_room(alice, preset="public_chat")
        await join(bob, room_id)
        pushkey = await set_pusher(bob, gateway)
        sent: list[str] = []

        async def keep_sending() -> None:
            for number in range(MESSAGES):
                sent.append(await send_until_answered(alice, room_id, number))
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_sending())
            for kill in range(1, KILLS + 1):
                await until(partial(_has_sent, sent, kill * MESSAGES // (KILLS + 1)))
                await kill_one(server, kills_all=kills_all)
        await gateway.until(lambda: {each.get("event_id") for each in gateway.told.get(pushkey, ())} >= set(sent))

    told = Counter(each["event_id"] for each in gateway.told[pushkey] if "event_id" in each)
    assert set(told) == set(sent)
    assert list(told) == sent  # in the order in which each was told first
    assert sum(told.values()) < 2 * MESSAGES


def _has_sent(sent: list[str], wanted: int) -> bool:
    return len(sent) >= wanted


async def kill_one(server: HearthProcess, *, kills_all: bool) -> None:
    """Kill the whole server and start it again, or one of its workers, which is replaced."""
    if kills_all:
        server.kill()
        server.start()
        await server.wait_until_ready()
    else:
        os.kill(min(workers(server)), signal.SIGKILL)

"""A worker that is stopped (SIGSTOP) with the log's lock: the others go on after seconds, and nobody has to help."""

import asyncio
import os
import signal
import time

import psycopg
import pytest

from homeserver import supervisor
from tests.client import Client
from tests.homeserver.test_workers import until, workers
from tests.rooms import create_room
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving
from tests.scenarios.load import Counts, until_answered

WAITED_SECONDS = 5 + 5
"""For the lock of who is stopped, and for what else the machine does."""

HOLDERS = (
    "select count(*) from pg_locks join pg_class on pg_class.oid = relation join pg_stat_activity using (pid)"
    " where relname = 'log_head' and mode = 'RowExclusiveLock' and granted and state = 'idle in transaction'"
)


async def stop_with_the_lock(server: HearthProcess) -> int:
    """Stop a worker in the middle of an append; its process ID."""
    async with await psycopg.AsyncConnection.connect(server.conninfo(), autocommit=True) as connection:
        for _ in range(500):
            for pid in workers(server):
                os.kill(pid, signal.SIGSTOP)
                for _ in range(3):  # the others finish theirs
                    await asyncio.sleep(0.02)
                    row = await (await connection.execute(HOLDERS)).fetchone()
                    if row == (0,):
                        break
                else:
                    return pid
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.05)
    raise AssertionError("no worker was met with the lock")


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_who_is_stopped_with_the_logs_lock_holds_up_others_for_seconds_and_is_followed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(arguments=("--workers", "2")) as server, a_visitor(server) as visitor:
        alice = await visitor.register_as("alice")
        room_id = await create_room(alice)
        journal: dict[str, str] = {}
        longest = [0.0]
        over = asyncio.Event()

        async def keep_sending(name: int) -> None:
            number = 0
            while not over.is_set():
                number += 1
                txn_id = f"{name}-{number}"
                async with a_visitor(server, 4) as own:  # whom a stopped worker does not answer asks again
                    client = Client(own.base_url, own.session, alice.user_id, access_token=alice.access_token)
                    path = f"/v3/rooms/{room_id}/send/m.room.message/{txn_id}"
                    began = time.monotonic()
                    while txn_id not in journal:
                        try:
                            journal[txn_id] = (await client.ok("PUT", path, {"body": txn_id}))["event_id"]
                        except (TimeoutError, OSError):
                            continue
                    longest[0] = max(longest[0], time.monotonic() - began)

        async with asyncio.TaskGroup() as group:
            for name in range(12):
                group.create_task(keep_sending(name))
            await asyncio.sleep(1)
            pid = await stop_with_the_lock(server)
            began, sent = time.monotonic(), len(journal)
            while len(journal) < sent + 12:  # noqa: ASYNC110  # of all of them
                await asyncio.sleep(0.01)
            waited = time.monotonic() - began
            await until(lambda: pid not in workers(server) and len(workers(server)) == 2)
            followed = time.monotonic() - began
            over.set()

        assert "has said nothing" in server.log
        assert followed < supervisor.SILENT_BEATS * supervisor.BEAT_SECONDS + 15
        assert waited < WAITED_SECONDS
        assert len(set(journal.values())) == len(journal)
        path = f"/v3/rooms/{room_id}/messages"
        told: list[str] = []
        token = ""
        while True:
            query = {"dir": "b", "limit": "1000"} | ({"from": token} if token else {})
            page = await until_answered(alice, Counts(), "GET", path, **query)
            told += [event["event_id"] for event in page["chunk"] if event["type"] == "m.room.message"]
            token = page.get("end", "")
            if not token:
                break
        assert sorted(told) == sorted(journal.values())
    with capsys.disabled():
        print(  # noqa: T201  # the figures
            f"\na worker stopped with the log's lock: others went on after {waited:.1f} s, another took its place after"
            f" {followed:.1f} s; of {len(journal)} sends the longest took {longest[0]:.1f} s",
            end="",
        )

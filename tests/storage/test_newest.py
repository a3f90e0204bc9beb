"""What processes of one machine tell each other of the log."""

import asyncio
import os

from storage.newest import Newest, shared_memory
from tests.client import Client
from tests.servers import running


def test_the_newest_of_all_places_counts() -> None:
    descriptor = shared_memory()
    first, second = (Newest(descriptor, place, 2) for place in range(2))
    os.close(descriptor)

    first.tell(7)
    second.tell(5)
    assert first.position == second.position == 7
    second.tell(9)
    first.tell(8)
    assert first.position == second.position == 9
    first.tell(3)
    assert first.position == 9


def test_what_is_lost_is_forgotten() -> None:
    newest = Newest()
    newest.tell(9)
    newest.forget(6)
    assert newest.position == 6
    newest.tell(7)
    assert newest.position == 7


async def test_a_request_is_answered_from_what_another_process_of_the_machine_has_written(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        alice = await one.register("alice")
        there = Client(other.base_url, alice.session, alice.user_id, alice.device_id, alice.access_token)
        await there.ok("GET", "/v3/sync")
        async with other.application.tail.reading:  # it hears of nothing
            await alice.ok("POST", "/v3/createRoom", {})
            other.application.tail._newest.tell(one.application.tail.position)
            synced = asyncio.create_task(there.ok("GET", "/v3/sync"))
            await asyncio.sleep(0.1)
            assert not synced.done()

        assert (await synced)["rooms"]["join"]

"""A disk that is full: clients are told to come again, nothing answered is lost, and with room again all goes on."""

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client, quote
from tests.rooms import create_room, join
from tests.scenarios.hearth_process import HearthProcess, a_directory, a_visitor, serving
from tests.scenarios.load import Counts, Journal, Syncer, check_refusal, until_answered

SENDERS = 4
MESSAGES = 400
"""Of each sender at most: more than fits into what is left."""
BACK_SECONDS = 60


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own, mounted here; the test is skipped where that is not allowed."""
    options = f"size={megabytes}m,mode=0711"
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small file system to fill it")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)  # noqa: S607  # as mount
        shutil.rmtree(directory)


def move(directory: Path, place: Path) -> None:
    """Move a directory and leave a link to it, all with the same owners."""
    subprocess.run(["/bin/cp", "-a", directory, place], check=True)
    shutil.rmtree(directory)
    directory.symlink_to(place)


def fill(directory: Path) -> Path:
    """Leave nothing free; the file that takes it all."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # a close has nothing left to write
        while True:
            file.write(bytes(1 << 16))
    return filler


class Writers:
    """Clients that write large messages until they are refused."""

    def __init__(self, client: Client, room_id: str) -> None:
        self.client = client
        self.path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/"
        self.answered: dict[str, tuple[Any, str]] = {}
        """What was sent and its event ID, by transaction ID."""
        self.refused: dict[str, Any] = {}

    async def write_until_refused(self, sender: int) -> None:
        for number in range(MESSAGES):
            txn_id, content = f"{sender}-{number}", {"msgtype": "m.text", "body": secrets.token_hex(25_000)}
            answer = await self.client.request("PUT", self.path + txn_id, content)
            if answer.status != 200:
                check_refusal("PUT", self.path, answer.status, answer.body, answer.headers)
                self.refused[txn_id] = content
                return
            self.answered[txn_id] = (content, answer.body["event_id"])

    async def check_refused_again(self) -> None:
        """Whoever tries again while the disk is full hears the same soon, or succeeds."""
        await asyncio.gather(*(self._try_again(txn_id, content) for txn_id, content in self.refused.items()))

    async def _try_again(self, txn_id: str, content: dict[str, Any]) -> None:
        async with asyncio.timeout(20):
            answer = await self.client.request("PUT", self.path + txn_id, content)
        if answer.status == 200:
            self.answered[txn_id] = (content, answer.body["event_id"])
            del self.refused[txn_id]
        else:
            check_refusal("PUT", self.path, answer.status, answer.body, answer.headers)

    async def send_what_was_refused(self) -> None:
        for txn_id, content in self.refused.items():
            body = await until_answered(self.client, Counts(), "PUT", self.path + txn_id, content)
            self.answered[txn_id] = (content, body["event_id"])


async def fill_and_recover(server: HearthProcess, disk: Path) -> None:
    """The story: a conversation, a disk that fills up under it, and room again."""
    async with a_visitor(server) as visitor:
        alice, bob = await visitor.register("alice"), await visitor.register("bob")
        room_id = await create_room(alice, preset="public_chat")
        await join(bob, room_id)
        syncer = Syncer(bob, Journal(), random.Random(0))
        await syncer.catch_up()
        seen_before = len(syncer.rooms[room_id])
        filler = fill(disk)
        writers = Writers(alice, room_id)
        await asyncio.gather(*(writers.write_until_refused(sender) for sender in range(SENDERS)))
        assert writers.refused, "the disk was not full"
        for _ in range(3):
            await writers.check_refused_again()
            fill(disk)
            await asyncio.sleep(1)

        filler.unlink()
        async with asyncio.timeout(BACK_SECONDS):
            await writers.send_what_was_refused()
        assert server.is_running
        await syncer.catch_up()
        told = syncer.rooms[room_id][seen_before:]
        assert sorted(told) == sorted(event_id for _, event_id in writers.answered.values())
        for txn_id, (content, event_id) in list(writers.answered.items())[::20]:
            assert await alice.ok("PUT", writers.path + txn_id, content) == {"event_id": event_id}


@pytest.mark.timeout(240)
async def test_a_full_disk_is_told_and_survived() -> None:
    directory = a_directory()
    with small_disk(directory, 160):
        async with serving(directory=directory) as server:
            await fill_and_recover(server, directory)


@pytest.mark.timeout(240)
async def test_a_full_disk_of_the_write_ahead_log_is_told_and_survived() -> None:
    async with serving() as server:
        server.stop()
        log, disk = server.cluster / "pg_wal", server.directory / "wal"
        disk.mkdir()
        with small_disk(disk, 100):
            move(log, disk / "pg_wal")
            server.start()
            await server.wait_until_ready()
            try:
                await fill_and_recover(server, disk)
            finally:
                server.stop()


async def test_a_start_on_a_full_disk_says_so_and_leaves_nothing_behind() -> None:
    directory = a_directory()
    with small_disk(directory, 160):
        async with serving(directory=directory) as server:
            server.stop()
            before = sorted(server.cluster.parent.iterdir())
            filler = fill(directory)
            server.start()
            assert await asyncio.to_thread(server.wait_for_end) == 2
            assert "No space left on device" in server.log
            assert sorted(server.cluster.parent.iterdir()) == before
            filler.unlink()
            server.start()
            await server.wait_until_ready()
